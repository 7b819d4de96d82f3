//! Pull policy, the back-off of failed pulls, and their words.

use k8s_openapi::api::core::v1::Container;

pub mod credentials;
pub mod gc;
pub mod progress;

/// Whether an image must be pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Asked of the registry each time.
    Always,
    /// Only when it is not there.
    IfNotPresent,
    /// Must be there.
    Never,
}

/// The policy of a container: what it says, or `Always` for `:latest` and for no tag.
pub fn policy(container: &Container) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("IfNotPresent") => Policy::IfNotPresent,
        Some("Never") => Policy::Never,
        _ => match tag(container.image.as_deref().unwrap_or_default()) {
            Some("latest") | None => Policy::Always,
            Some(_) => Policy::IfNotPresent,
        },
    }
}

/// The tag or the digest of an image name.
fn tag(image: &str) -> Option<&str> {
    if let Some((_, digest)) = image.split_once('@') {
        return Some(digest);
    }
    let last = image.rsplit('/').next()?;
    last.split_once(':').map(|(_, tag)| tag)
}

/// How long to wait after so many failures in a row, in seconds: 10 doubling to 300.
pub fn backoff_seconds(failures: u32) -> i64 {
    (10_i64 << failures.saturating_sub(1).min(5)).min(300)
}

/// A duration as Kubernetes' Events write it: `1.234s`, `87ms`.
pub fn words(duration: std::time::Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    let text = format!("{:.3}", duration.as_secs_f64());
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults() {
        let table = [
            ("app", Policy::Always),
            ("app:latest", Policy::Always),
            ("app:v1", Policy::IfNotPresent),
            ("host:5000/app", Policy::Always),
            ("host:5000/app:v1", Policy::IfNotPresent),
            ("app@sha256:00", Policy::IfNotPresent),
        ];
        for (image, expected) in table {
            let container = Container { image: Some(image.into()), ..Default::default() };
            assert_eq!(policy(&container), expected, "{image}");
        }
    }

    #[test]
    fn backs_off() {
        let seen: Vec<_> = (1..8).map(backoff_seconds).collect();
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
    }
}
