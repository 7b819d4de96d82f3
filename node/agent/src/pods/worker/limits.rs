//! What a pod may use on this node's disk, and what is given back when it has ended.

use std::collections::BTreeMap;
use std::path::PathBuf;

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::Container as Spec;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::Worker;
use crate::pods::plan;
use crate::pods::state::{Failed, Fate, Phase, main_containers};
use crate::volumes::{self, PodDir, used};

/// How often the size of an emptyDir is looked at, in seconds.
const LOOK_SECONDS: i64 = 10;

impl Worker {
    /// Fails a pod that has written more than it may. Answers when to look again.
    pub(super) async fn check_limits(&mut self) -> Option<Timestamp> {
        let runs = self.fate == Fate::Runs && self.memory.failed.is_none() && !plan::ended(self.input());
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let dir = PodDir::new(&self.context.root, &uid).filter(|_| runs && self.memory.mounted)?;
        let limits = self.limits(&dir);
        if limits.is_empty() {
            return None;
        }
        let layers = self.context.runtime.writable_layers(&uid).await.unwrap_or_default();
        let measured =
            tokio::task::spawn_blocking(move || limits.into_iter().find(|one| one.is_over(&layers)));
        if let Ok(Some(over)) = measured.await {
            let message = over.message;
            self.context.recorder.pod(&self.pod, None, true, "Evicted", message.clone());
            // At once: it writes on.
            let failed =
                Failed { reason: "Evicted".to_owned(), message, grace: Some(1), ..Default::default() };
            self.memory.failed = Some(failed);
            return None;
        }
        Timestamp::now().saturating_add(SignedDuration::from_secs(LOOK_SECONDS)).ok()
    }

    /// What of the pod has a limit: emptyDir volumes, containers, and all of it where every container has one.
    fn limits(&self, dir: &PodDir) -> Vec<Limit> {
        let bytes = |text: &str| {
            Quantity::parse(text).ok().and_then(|q| u64::try_from(q.value()).ok()).filter(|b| *b > 0)
        };
        let all = volumes::volumes(&self.pod);
        let mut limits: Vec<Limit> = all
            .iter()
            .filter_map(|volume| {
                let text = &volume.empty_dir.as_ref()?.size_limit.as_ref()?.0;
                let message =
                    format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{text}\". ", volume.name);
                Some(Limit {
                    paths: vec![dir.volume(volume)?],
                    layers: Vec::new(),
                    most: bytes(text)?,
                    message,
                })
            })
            .collect();
        let logs = self.context.log_directory(&self.pod);
        let specs = main_containers(&self.pod);
        let of = |spec: &Spec| -> Option<(String, u64)> {
            let text = spec.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?.0.clone();
            bytes(&text).map(|most| (text, most))
        };
        let (mut sum, mut every) = (0_u64, !specs.is_empty());
        for spec in specs {
            let Some((text, most)) = of(spec) else {
                every = false;
                continue;
            };
            sum = sum.saturating_add(most);
            let name = &spec.name;
            let message = format!("Container {name} exceeded its local ephemeral storage limit \"{text}\". ");
            let (paths, layers) = (vec![logs.join(name)], vec![name.clone()]);
            limits.push(Limit { paths, layers, most, message });
        }
        if every {
            let on_disk = all.iter().filter(|v| volumes::is_on_disk(v));
            let paths = on_disk.filter_map(|v| dir.volume(v)).chain([logs]).collect();
            let layers = specs.iter().map(|s| s.name.clone()).collect();
            let message =
                format!("Pod ephemeral local storage usage exceeds the total limit of containers {sum}. ");
            limits.push(Limit { paths, layers, most: sum, message });
        }
        limits
    }

    /// Devices of a pod that has ended are free for others.
    pub(super) fn free_devices(&self) {
        let running = self.state.containers.iter().any(|c| c.phase == Phase::Running);
        if !running && (self.fate != Fate::Runs || plan::ended(self.input())) {
            let uid = self.pod.metadata.uid.clone().unwrap_or_default();
            self.pods.release(&uid);
            self.context.placement.retain(|pod| pod != uid);
        }
    }
}

/// Directories and writable layers of containers that together may take so much.
struct Limit {
    paths: Vec<PathBuf>,
    /// By the containers' names.
    layers: Vec<String>,
    /// Bytes.
    most: u64,
    /// What is said when it is more.
    message: String,
}

impl Limit {
    fn is_over(&self, layers: &BTreeMap<String, u64>) -> bool {
        let files = self.paths.iter().map(|path| used::below(path)).fold(0, u64::saturating_add);
        let written =
            self.layers.iter().filter_map(|name| layers.get(name)).fold(0, |a: u64, b| a.saturating_add(*b));
        files.saturating_add(written) > self.most
    }
}
