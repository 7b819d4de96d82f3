//! What a pod may use on this node's disk, and what is given back when it has ended.

use coracle_api::quantity::Quantity;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Worker;
use crate::pods::plan;
use crate::pods::state::{Failed, Fate, Phase};
use crate::volumes::{self, PodDir, used};

/// How often the size of an emptyDir is looked at, in seconds.
const LOOK_SECONDS: i64 = 10;

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
            limited.into_iter().find(|(_, _, bytes, path)| used::below(path) > *bytes)
        });
        if let Ok(Some((name, limit, _, _))) = measured.await {
            let message = format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". ");
            self.context.recorder.pod(&self.pod, None, true, "Evicted", message.clone());
            // At once: it writes on.
            let failed =
                Failed { reason: "Evicted".to_owned(), message, grace: Some(1), ..Default::default() };
            self.memory.failed = Some(failed);
            return None;
        }
        Timestamp::now().saturating_add(SignedDuration::from_secs(LOOK_SECONDS)).ok()
    }

    /// Devices of a pod that has ended are free for others.
    pub(super) fn free_devices(&self) {
        let running = self.state.containers.iter().any(|c| c.phase == Phase::Running);
        if !running && (self.fate != Fate::Runs || plan::ended(self.input())) {
            let uid = self.pod.metadata.uid.clone().unwrap_or_default();
            self.pods.release(&uid);
            if let Err(error) = self.context.devices.retain(|pod| pod != uid) {
                tracing::warn!(%error, "devices of an ended pod could not be taken back");
            }
        }
    }
}
