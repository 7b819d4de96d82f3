//! Eviction under pressure: what is short on the node is read, told as conditions, made room for, and in the end taken
//! from pods, one at a time, those that use more than they asked for first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::images::gc;
use crate::pods::source::Pods;
use crate::pods::state::{Failed, Fate};
use crate::runtime::label;
use crate::tuning::Eviction;
use crate::volumes::{PodDir, is_component};

pub mod rank;
pub mod signals;
pub mod thresholds;

use rank::Candidate;
use signals::{Machine, Rehearsal, Signal, Source};
use thresholds::{Crossed, Monitor};

/// How long an evicted pod may take to end before the next is looked for.
const CLEANUP: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(200);

/// Looks until `shutdown`.
pub async fn run(context: Arc<Context>, pods: Pods, config: Eviction, shutdown: CancellationToken) {
    if config.thresholds.is_empty() {
        return;
    }
    let machine = Machine { root: context.root.clone(), images: Default::default() };
    let mut manager = Manager { context, pods, monitor: Monitor::default() };
    let look = async {
        if let Some(file) = config.signals.clone() {
            manager.run(&Rehearsal { source: machine, file }, &config).await;
        } else {
            *machine.images.write() = manager.image_filesystem().await;
            manager.run(&machine, &config).await;
        }
    };
    tokio::select! {
        () = look => {}
        () = shutdown.cancelled() => {}
    }
}

struct Manager {
    context: Arc<Context>,
    pods: Pods,
    monitor: Monitor,
}

impl Manager {
    /// Where the runtime keeps images; asked for until it answers.
    async fn image_filesystem(&self) -> Option<std::path::PathBuf> {
        loop {
            match self.context.runtime.image_filesystem().await {
                Ok(found) => return found.map(|(path, _)| path.into()),
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn run(&mut self, source: &dyn Source, config: &Eviction) {
        loop {
            let evicted = self.turn(source, config).await;
            match evicted {
                Some(uid) => self.wait_for_end(&uid).await,
                None => tokio::time::sleep(config.period).await,
            }
        }
    }

    /// Reads, tells, and evicts one pod if need be: its uid.
    async fn turn(&mut self, source: &dyn Source, config: &Eviction) -> Option<String> {
        let look = |monitor: &mut Monitor| {
            monitor.look(&config.thresholds, config.transition, &source.read(), Timestamp::now())
        };
        let (pressure, crossed) = look(&mut self.monitor);
        self.context.pressure.send_if_modified(|old| std::mem::replace(old, pressure) != pressure);
        let mut crossed = crossed?;
        let signal = crossed.threshold.signal;
        tracing::warn!(signal = signal.name(), left = crossed.reading.available, "the node runs short");
        let words = format!("Attempting to reclaim {}", signal.resource());
        self.context.recorder.own_node(&self.context.node_name, true, "EvictionThresholdMet", words);
        if signal.is_disk() {
            self.remove_dead().await;
            gc::remove_all_unused(&self.context).await;
            // What could be had without anybody's loss may be enough.
            crossed = look(&mut self.monitor).1?;
        }
        self.evict(&crossed, config).await
    }

    /// Removes the containers of pods that have ended, with their logs: the status has said how they ended.
    async fn remove_dead(&self) {
        let ended = self.pods.list_with_fate().into_iter().filter(|(pod, fate)| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            *fate == Fate::Runs && matches!(phase, Some("Succeeded" | "Failed"))
        });
        let ended: HashMap<String, Arc<Pod>> =
            ended.filter_map(|(pod, _)| Some((pod.metadata.uid.clone()?, pod))).collect();
        let containers = self.context.runtime.containers(HashMap::new()).await.unwrap_or_default();
        for (id, name, pod) in dead(&containers, &ended) {
            if let Err(status) = self.context.runtime.remove_container(id).await {
                tracing::warn!(
                    container = id,
                    message = status.message(),
                    "a dead container could not be removed"
                );
                continue;
            }
            let _ = tokio::fs::remove_dir_all(self.context.log_directory(pod).join(name)).await;
            tracing::info!(pod = pod.metadata.name, container = name, "a dead container is removed");
        }
    }

    async fn evict(&self, crossed: &Crossed, config: &Eviction) -> Option<String> {
        let running = self.pods.list_with_fate().into_iter().filter(|(pod, fate)| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            *fate == Fate::Runs && !matches!(phase, Some("Succeeded" | "Failed")) && !rank::is_critical(pod)
        });
        let pods: Vec<Arc<Pod>> = running.map(|(pod, _)| pod).collect();
        let chosen =
            rank::first(crossed.threshold.signal, self.candidates(crossed.threshold.signal, &pods).await);
        let Some(chosen) = chosen else {
            tracing::warn!("no pod is left that could be evicted");
            return None;
        };
        let pod = pods.iter().find(|p| p.metadata.uid.as_deref() == Some(chosen.uid.as_str()))?;
        let message = rank::message(crossed, &chosen);
        self.context.recorder.pod(pod, None, true, "Evicted", message.clone());
        tracing::warn!(pod = pod.metadata.name, message, "evicted");
        let grace = if crossed.threshold.grace.is_some() { config.max_pod_grace.max(1) } else { 1 };
        let failed = Failed { reason: "Evicted".into(), message, disrupted: true, grace: Some(grace) };
        self.pods.fail(&chosen.uid, failed);
        Some(chosen.uid)
    }

    /// What each pod uses of what is short.
    async fn candidates(&self, signal: Signal, pods: &[Arc<Pod>]) -> Vec<Candidate> {
        let mut used: HashMap<(String, String), (u64, u64)> = HashMap::new();
        for stat in self.context.runtime.stats().await.unwrap_or_default() {
            let Some(attributes) = stat.attributes else { continue };
            let of = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
            let memory = stat.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value);
            let disk = stat.writable_layer.and_then(|l| l.used_bytes).map_or(0, |v| v.value);
            let sum = used.entry((of(label::POD_UID), of(label::CONTAINER_NAME))).or_default();
            *sum = (sum.0.saturating_add(memory), sum.1.saturating_add(disk));
        }
        let processes = match signal {
            Signal::PidAvailable => self.context.runtime.processes().await.unwrap_or_default(),
            _ => HashMap::new(),
        };
        let mut candidates = Vec::new();
        for pod in pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let resource = if signal == Signal::MemoryAvailable { "memory" } else { "ephemeral-storage" };
            let containers: Vec<(String, u64, u64)> = used
                .iter()
                .filter(|((of, _), _)| *of == uid)
                .map(|((_, name), (memory, disk))| {
                    let usage = if signal == Signal::MemoryAvailable { *memory } else { *disk };
                    (name.clone(), usage, rank::request(pod, Some(name), resource))
                })
                .collect();
            let usage = match signal {
                Signal::PidAvailable => rank::processes(processes.get(&uid), &containers),
                _ => containers.iter().map(|(_, usage, _)| usage).sum(),
            };
            let files = if signal.is_disk() { self.files(&uid, pod).await } else { 0 };
            candidates.push(Candidate {
                priority: rank::priority(pod),
                usage: usage.saturating_add(files),
                request: if signal == Signal::PidAvailable { 0 } else { rank::request(pod, None, resource) },
                containers,
                uid,
            });
        }
        candidates
    }

    /// Bytes of a pod's own volumes and logs.
    async fn files(&self, uid: &str, pod: &Pod) -> u64 {
        let (dir, logs) = (PodDir::new(&self.context.root, uid), self.context.log_directory(pod));
        let measured = tokio::task::spawn_blocking(move || {
            let own = dir.map_or(0, |dir| crate::volumes::used::below(&dir.path));
            own.saturating_add(crate::volumes::used::below(&logs))
        });
        measured.await.unwrap_or(0)
    }

    async fn wait_for_end(&self, uid: &str) {
        let ended = async {
            loop {
                tokio::time::sleep(STEP).await;
                let labels = HashMap::from([(label::POD_UID.to_owned(), uid.to_owned())]);
                let running = self.context.runtime.containers(labels).await;
                if running.is_ok_and(|all| all.iter().all(|c| c.state != 1)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(CLEANUP, ended).await;
    }
}

/// Pure: the containers that do not run of pods that have ended: their ids and names.
fn dead<'a>(
    containers: &'a [cri::Container],
    ended: &'a HashMap<String, Arc<Pod>>,
) -> Vec<(&'a str, &'a str, &'a Pod)> {
    let of = |one: &'a cri::Container| {
        let pod = ended.get(one.labels.get(label::POD_UID)?)?;
        let name = one.labels.get(label::CONTAINER_NAME).filter(|name| is_component(name))?;
        let over = one.state() == cri::ContainerState::ContainerExited;
        over.then_some((one.id.as_str(), name.as_str(), pod.as_ref()))
    };
    containers.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dead_of_ended_pods_makes_room() {
        let one = |id: &str, uid: &str, state: cri::ContainerState| cri::Container {
            id: id.into(),
            state: state.into(),
            labels: [(label::POD_UID, uid), (label::CONTAINER_NAME, "main")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Default::default()
        };
        let (over, runs) = (cri::ContainerState::ContainerExited, cri::ContainerState::ContainerRunning);
        let all =
            [one("1", "ended", over), one("2", "ended", runs), one("3", "lives", over), one("4", "x", over)];
        let ended = HashMap::from([("ended".to_owned(), Arc::new(Pod::default()))]);
        let chosen: Vec<_> = dead(&all, &ended).into_iter().map(|(id, name, _)| (id, name)).collect();
        assert_eq!(chosen, [("1", "main")]);
    }
}
