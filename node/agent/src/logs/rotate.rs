//! Logs of containers do not grow without end: at a size a file is put aside and a new one begun; so many are kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::runtime::label;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// How large logs may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The size at which a file is put aside, in bytes.
    pub bytes: u64,
    /// Files that are kept, the current one included; at least 2.
    pub files: usize,
    /// Looks at the files so often.
    pub period: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 10 << 20, files: 5, period: LOOK }
    }
}

/// Looks after the logs until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(context.tuning.logs.period) => {}
            () = shutdown.cancelled() => return,
        }
        look(&context).await;
    }
}

async fn look(context: &Context) {
    // The runtime being away is told elsewhere.
    let Ok(containers) = context.runtime.containers(HashMap::new()).await else { return };
    for container in containers.iter().filter(|c| c.state == 1) {
        let of = |key: &str| container.labels.get(key).map(|v| v.replace('/', "_")).unwrap_or_default();
        let pod = format!("{}_{}_{}", of(label::POD_NAMESPACE), of(label::POD_NAME), of(label::POD_UID));
        let attempt = container.metadata.as_ref().map_or(0, |m| m.attempt);
        let path = context
            .root
            .join("logs")
            .join(pod)
            .join(of(label::CONTAINER_NAME))
            .join(format!("{attempt}.log"));
        let size = tokio::fs::metadata(&path).await.map_or(0, |m| m.len());
        if size < context.tuning.logs.bytes {
            continue;
        }
        if let Err(error) = rotate(context, &container.id, path.clone()).await {
            tracing::warn!(%error, path = %path.display(), "a log could not be put aside; it grows on");
        }
    }
}

async fn rotate(context: &Context, id: &str, path: PathBuf) -> std::io::Result<()> {
    let aside = put_aside(&path, Timestamp::now())?;
    if let Err(status) = context.runtime.reopen_log(id).await {
        // The container still writes to the file: it keeps its name.
        std::fs::rename(&aside, &path)?;
        return Err(std::io::Error::other(status.message().to_owned()));
    }
    forget_oldest(&path, context.tuning.logs.files)
}

/// Renames the file to one with the time in its name, as the kubelet does.
fn put_aside(path: &Path, now: Timestamp) -> std::io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(format!("{name}.{}", now.strftime("%Y%m%d-%H%M%S")));
    std::fs::rename(path, &aside)?;
    Ok(aside)
}

/// The files of a log that were put aside, oldest first.
pub fn aside(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let Some(directory) = path.parent() else { return Ok(Vec::new()) };
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let mut old = Vec::new();
    for entry in std::fs::read_dir(directory)?.take(10_000) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(&prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
            old.push(entry.path());
        }
    }
    // Their names sort by time.
    old.sort();
    Ok(old)
}

fn forget_oldest(path: &Path, files: usize) -> std::io::Result<()> {
    let old = aside(path)?;
    let surplus = old.len().saturating_sub(files.max(2) - 1);
    old.iter().take(surplus).try_for_each(std::fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_files_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("0.log");
        for second in 0..7 {
            std::fs::write(&path, format!("{second}")).expect("written");
            put_aside(&path, Timestamp::from_second(second).expect("a time")).expect("put aside");
            forget_oldest(&path, 5).expect("forgotten");
        }
        let mut left: Vec<String> = std::fs::read_dir(dir.path())
            .expect("entries")
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        let expected = [3, 4, 5, 6].map(|s| format!("0.log.19700101-00000{s}"));
        assert_eq!(left, expected);
    }
}
