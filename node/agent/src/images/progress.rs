//! Events about a pull that takes long: how far it is.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::context::Context;

/// When a pull first tells how far it is; each next time after twice as long.
const FIRST: Duration = Duration::from_secs(4);
/// The longest time between two Events about a pull.
const LONGEST: Duration = Duration::from_secs(300);

/// What a pull answers; while it takes long, Events say how far it is, where the runtime tells that.
pub async fn told<T>(
    context: &Context,
    (pod, spec): (&Pod, &Container),
    (image, handler): (&str, &str),
    pull: impl Future<Output = T>,
) -> T {
    let mut pull = std::pin::pin!(pull);
    let mut pause = FIRST;
    loop {
        match tokio::time::timeout(pause, &mut pull).await {
            Ok(pulled) => return pulled,
            Err(_) => pause = (pause * 2).min(LONGEST),
        }
        if let Some((received, total)) = context.runtime.pull_progress(image, handler).await {
            let message = format!("Pulling image \"{image}\": {}", words(received, total));
            context.recorder.pod(pod, Some(&spec.name), false, "Pulling", message);
        }
    }
}

/// `12.5MB of 40MB (31%)`.
fn words(received: u64, total: u64) -> String {
    let percent = received.saturating_mul(100) / total.max(1);
    format!("{} of {} ({percent}%)", size(received), size(total))
}

/// Bytes for people, in powers of 1000 as registries show them.
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..1_000_000 => (1_000, "kB"),
        1_000_000..1_000_000_000 => (1_000_000, "MB"),
        _ => (1_000_000_000, "GB"),
    };
    let tenths = bytes.saturating_mul(10) / unit;
    match tenths % 10 {
        0 => format!("{}{name}", tenths / 10),
        rest => format!("{}.{rest}{name}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(words(12_550_000, 40_000_000), "12.5MB of 40MB (31%)");
        // A manifest may say any size.
        assert_eq!(words(u64::MAX, u64::MAX), "1844674407.3GB of 1844674407.3GB (1%)");
        assert_eq!(words(0, 0), "0kB of 0kB (0%)");
        assert_eq!(words(1_500, 2_000_000_000), "1.5kB of 2GB (0%)");
    }
}
