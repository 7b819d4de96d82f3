//! What a pod may use on this node's disk, and what is given back when it has ended.

use std::path::Path;

use coracle_api::quantity::Quantity;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Worker;
use crate::pods::plan;
use crate::pods::state::{Fate, Phase};
use crate::volumes::{self, PodDir};

/// How often the size of an emptyDir is looked at, in seconds.
const LOOK_SECONDS: i64 = 10;
/// Files that are counted in one look: more is more than any limit is meant for.
const MAX_FILES: u64 = 1_000_000;

impl Worker {
    /// Fails a pod whose emptyDir is larger than it may be. Answers when to look again.
    pub(super) async fn check_limits(&mut self) -> Option<Timestamp> {
        let runs = self.fate == Fate::Runs && self.memory.failed.is_none() && !plan::ended(self.input());
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let dir = PodDir::new(&self.context.root, &uid).filter(|_| runs && self.memory.mounted)?;
        let limited: Vec<_> = volumes::volumes(&self.pod)
            .iter()
            .filter_map(|volume| {
                let limit = &volume.empty_dir.as_ref()?.size_limit.as_ref()?.0;
                let bytes = Quantity::parse(limit).ok()?.value();
                Some((volume.name.clone(), limit.clone(), u64::try_from(bytes).ok()?, dir.volume(volume)?))
            })
            .filter(|(_, _, bytes, _)| *bytes > 0)
            .collect();
        if limited.is_empty() {
            return None;
        }
        let measured = tokio::task::spawn_blocking(move || {
            let mut files = 0;
            limited.into_iter().find(|(_, _, bytes, path)| used(path, &mut files, 0) > *bytes)
        });
        if let Ok(Some((name, limit, _, _))) = measured.await {
            let message = format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". ");
            self.context.recorder.pod(&self.pod, None, true, "Evicted", message.clone());
            self.memory.failed = Some(("Evicted".to_owned(), message));
            return None;
        }
        Timestamp::now().saturating_add(SignedDuration::from_secs(LOOK_SECONDS)).ok()
    }

    /// Devices of a pod that has ended are free for others.
    pub(super) fn free_devices(&self) {
        let running = self.state.containers.iter().any(|c| c.phase == Phase::Running);
        if !running && (self.fate != Fate::Runs || plan::ended(self.input())) {
            let uid = self.pod.metadata.uid.clone().unwrap_or_default();
            if let Err(error) = self.context.devices.retain(|pod| pod != uid) {
                tracing::warn!(%error, "devices of an ended pod could not be taken back");
            }
        }
    }
}

/// Bytes on disk below a directory. Links are not followed.
fn used(path: &Path, files: &mut u64, depth: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let mut sum = 0_u64;
    for entry in entries.flatten() {
        *files += 1;
        if *files > MAX_FILES || depth > 64 {
            break;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        sum = sum.saturating_add(metadata.blocks().saturating_mul(512));
        if metadata.is_dir() {
            sum = sum.saturating_add(used(&entry.path(), files, depth + 1));
        }
    }
    sum
}
