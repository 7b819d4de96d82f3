//! What a pod that has ended holds of the node and of others: given back before its object goes.

use std::time::Instant;

use super::Worker;
use crate::volumes::PodDir;

impl Worker {
    /// Gives back the volumes and devices of a pod that has ended; what keeps them is tried again.
    pub(super) async fn give_back_volumes(&mut self) {
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let began = Instant::now();
        self.context.tokens.forget(&uid);
        let given = match PodDir::new(&self.context.root, &uid) {
            Some(dir) => self.give_back(&dir).await,
            None => Ok(()),
        };
        match given {
            Ok(()) => {
                self.memory.given_back = true;
                self.memory.mounted = false;
                self.memory.mount_error = None;
                tracing::debug!(pod = %self.name(), took = ?began.elapsed(), "volumes are given back");
            }
            Err(error) => {
                let message = format!("{error:#}");
                tracing::warn!(pod = %self.name(), error = message, "volumes of an ended pod are not given back yet");
                let before = self.memory.mount_error.as_ref().filter(|e| e.reason == "FailedUnMount");
                let waiting =
                    Self::waiting(before, "FailedUnMount", message, |n| (1_i64 << n.min(7)).min(120));
                self.memory.mount_error = Some(waiting);
            }
        }
    }

    /// What drivers have of the pod, and the volumes on this node. Its logs and last words stay.
    pub(super) async fn give_back(&mut self, dir: &PodDir) -> anyhow::Result<()> {
        self.volumes.end().await;
        crate::csi::volume::give_back(&self.context, dir).await?;
        crate::claims::give_back(&self.context, dir).await?;
        let dir = dir.clone();
        Ok(tokio::task::spawn_blocking(move || dir.remove_volumes()).await??)
    }
}
