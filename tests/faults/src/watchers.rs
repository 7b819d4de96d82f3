//! Watchers: one at each server, which goes on there from where it was whenever its watch ends.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_history::Seen;
use futures::StreamExt;
use kube::api::{WatchEvent, WatchParams};

use crate::clients::{LABEL, Shared, config_maps, read};

/// How far a watcher is.
pub type Progress = Arc<AtomicU64>;

/// Watches at one server from a revision until the run is over.
///
/// # Errors
/// When it is told that it is too late, or something without sense.
pub async fn watch(
    kubeconfig: &Path,
    from: u64,
    shared: Arc<Shared>,
    progress: Progress,
) -> Result<Vec<Seen>> {
    let maps = config_maps(kubeconfig).await?;
    let mut seen = Vec::new();
    let mut revision = from;
    while !shared.over() {
        // Not for long: one whose server is gone without a word is begun anew.
        let params = WatchParams::default().labels(LABEL).timeout(10);
        let after = revision.to_string();
        let begun = tokio::time::timeout(Duration::from_secs(4), maps.watch(&params, &after));
        let Ok(Ok(events)) = begun.await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut events = std::pin::pin!(events);
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(12), events.next()).await {
            let (map, added, gone) = match event {
                Ok(WatchEvent::Added(map)) => (map, true, false),
                Ok(WatchEvent::Modified(map)) => (map, false, false),
                Ok(WatchEvent::Deleted(map)) => (map, false, true),
                Ok(WatchEvent::Bookmark(mark)) => {
                    revision = mark.metadata.resource_version.parse()?;
                    progress.store(revision, Ordering::Relaxed);
                    continue;
                }
                Ok(WatchEvent::Error(status)) if status.code == 410 => {
                    bail!("a watch from {revision} was told {status:?}")
                }
                Ok(WatchEvent::Error(_)) | Err(_) => break,
            };
            let (value, at) = read(&map).context("an event without value or revision")?;
            let key = map.metadata.name.context("an event without a name")?;
            seen.push(Seen { revision: at, key, value: (!gone).then_some(value), added });
            revision = at;
            progress.store(revision, Ordering::Relaxed);
            if shared.over() {
                break;
            }
        }
    }
    Ok(seen)
}
