//! One pod's life on this node: look, decide ([`plan`]), act, tell.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::v1::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::config::{self, Facts};
use super::plan::{self, Action, Memory};
use super::{Input, status};
use crate::Shared;
use crate::cri::{Observed, StartError};
use crate::images::{self, Outcome};
use crate::probes::{self, Verdict};
use crate::volumes::{self, Volumes};

/// A round happens at least this often, in case an event was lost.
const IDLE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// Attempts of a container whose records and logs are kept.
const KEPT_ATTEMPTS: usize = 2;
/// Steps of one round; a plan that never ends is a fault, not a reason to spin.
const MAX_ROUNDS: usize = 32;

/// The worker of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    uid: String,
    pod: Arc<Pod>,
    input: watch::Receiver<Input>,
    memory: Memory,
    volumes: Option<Volumes>,
    told: Value,
    probes: HashMap<String, Vec<AbortHandle>>,
    verdicts: (mpsc::Sender<Verdict>, mpsc::Receiver<Verdict>),
}

impl Worker {
    pub fn new(shared: Arc<Shared>, uid: String, pod: Arc<Pod>, input: watch::Receiver<Input>) -> Self {
        Self {
            shared,
            uid,
            pod,
            input,
            memory: Memory::default(),
            volumes: None,
            told: Value::Null,
            probes: HashMap::new(),
            verdicts: mpsc::channel(64),
        }
    }

    /// Runs until the pod is gone from the node.
    pub async fn run(mut self) {
        loop {
            let current = self.input.borrow_and_update().pod.clone();
            let gone = current.is_none();
            if let Some(pod) = current {
                self.pod = pod;
            }
            let ending = gone || self.pod.metadata.deletion_timestamp.is_some();
            let wait = if ending {
                match self.tear_down(gone).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(pod = self.name(), error = format!("{error:#}"), "tear the pod down");
                        RETRY
                    }
                }
            } else {
                self.round().await
            };
            tokio::select! {
                changed = self.input.changed() => if changed.is_err() { return },
                verdict = self.verdicts.1.recv() => if let Some(verdict) = verdict { self.judge(verdict) },
                () = tokio::time::sleep(wait) => {}
            }
        }
        for handle in self.probes.into_values().flatten() {
            handle.abort();
        }
    }

    fn name(&self) -> String {
        let meta = &self.pod.metadata;
        format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default()
        )
    }

    /// Looks, acts until there is nothing to do, and tells. Returns how long to wait.
    async fn round(&mut self) -> Duration {
        let mut wait = IDLE;
        for _ in 0..MAX_ROUNDS {
            let observed = match self.shared.cri.observe(&self.uid).await {
                Ok(observed) => observed,
                Err(error) => {
                    tracing::debug!(
                        pod = self.name(),
                        error = error.message(),
                        "the runtime does not answer"
                    );
                    return RETRY;
                }
            };
            self.probe(&observed);
            // A pod that has ended stays as it was told, even when its containers are gone.
            if observed.sandbox.is_none() && self.ended() {
                return IDLE;
            }
            let now = Timestamp::now();
            let now_ns = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
            let actions = plan::next(&self.pod, &observed, &mut self.memory, now_ns);
            self.explain_waits(&actions, &observed);
            let mut acted = false;
            wait = IDLE;
            for action in actions {
                match action {
                    Action::Wait(left) => wait = wait.min(left),
                    action => match self.act(action, &observed).await {
                        Ok(()) => acted = true,
                        Err(retry_in) => wait = wait.min(retry_in),
                    },
                }
            }
            if !acted {
                self.tell(&observed, now).await;
                return wait;
            }
        }
        tracing::warn!(pod = self.name(), "still not settled after {MAX_ROUNDS} rounds");
        wait.min(RETRY)
    }

    fn ended(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// Containers that wait for their restart say so.
    fn explain_waits(&mut self, actions: &[Action], observed: &Observed) {
        let started: Vec<&str> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Start { container, .. } => Some(container.as_str()),
                _ => None,
            })
            .collect();
        let Some(spec) = self.pod.spec.clone() else { return };
        for one in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let latest = observed.latest(&one.name);
            let exited = latest.filter(|status| status.state() == ContainerState::ContainerExited);
            let init = spec.init_containers.iter().flatten().any(|init| init.name == one.name);
            let restarts = plan::standing(&spec, one, init, latest) == plan::Standing::Restart;
            if restarts && exited.is_some() && !started.contains(&one.name.as_str()) {
                let delay = self.memory.delay.get(&one.name).copied().unwrap_or_default();
                let message = format!(
                    "back-off {} restarting failed container={} pod={}_{}({})",
                    shown(delay),
                    one.name,
                    self.pod.metadata.name.as_deref().unwrap_or_default(),
                    self.pod.metadata.namespace.as_deref().unwrap_or_default(),
                    self.uid,
                );
                let waiting = ("CrashLoopBackOff".to_owned(), message);
                if self.memory.waiting.get(&one.name) != Some(&waiting) {
                    let words = format!(
                        "Back-off restarting failed container {} in pod {}",
                        one.name,
                        self.name().replace('/', "_")
                    );
                    self.shared.events.warning(&self.pod, Some(&one.name), "BackOff", words);
                    self.memory.waiting.insert(one.name.clone(), waiting);
                }
            }
        }
    }

    /// Carries out one step. An error is how long to wait before the next try.
    async fn act(&mut self, action: Action, observed: &Observed) -> Result<(), Duration> {
        match action {
            Action::Wait(left) => Err(left),
            Action::RemoveSandbox { id } => self
                .shared
                .cri
                .remove_sandbox(&id)
                .await
                .map_err(|status| self.complain("remove a sandbox", &status)),
            Action::RunSandbox { attempt } => self.run_sandbox(attempt).await,
            Action::Start { container, attempt } => self.start(&container, attempt, observed).await,
            Action::Stop { container, id } => {
                let why = self.memory.unhealthy.remove(&id);
                let message = match &why {
                    Some(why) => format!("Container {container} failed {why}, will be restarted"),
                    None => format!("Stopping container {container}"),
                };
                self.shared.events.normal(&self.pod, Some(&container), "Killing", message);
                self.shared
                    .cri
                    .stop(&id, self.grace())
                    .await
                    .map_err(|status| self.complain("stop a container", &status))
            }
        }
    }

    fn complain(&self, what: &str, status: &tonic::Status) -> Duration {
        tracing::warn!(pod = self.name(), error = status.message(), "{what}");
        RETRY
    }

    fn grace(&self) -> i64 {
        let asked = self.pod.metadata.deletion_grace_period_seconds;
        let own = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        asked.or(own).unwrap_or(30).max(0)
    }

    async fn run_sandbox(&mut self, attempt: u32) -> Result<(), Duration> {
        let config = config::sandbox(&self.pod, &self.shared.root_dir, attempt);
        let _ = std::fs::create_dir_all(&config.log_directory);
        let handler = ""; // The runtime's default: RuntimeClass comes with the second runtime.
        if let Err(status) = self.shared.cri.run_sandbox(config, handler).await {
            let message = format!("Failed to create pod sandbox: {}", status.message());
            self.shared.events.warning(&self.pod, None, "FailedCreatePodSandBox", message);
            return Err(self.complain("make a sandbox", &status));
        }
        Ok(())
    }

    async fn start(&mut self, name: &str, attempt: u32, observed: &Observed) -> Result<(), Duration> {
        let pod = self.pod.clone();
        let Some(container) = find(&pod, name) else { return Err(IDLE) };
        let Some(sandbox) = observed.ready_sandbox() else { return Err(RETRY) };
        self.image(&pod, container).await?;
        let facts = Facts {
            node_name: &self.shared.node_name,
            host_ip: self.shared.node_ip.to_string(),
            pod_ip: observed.ip().unwrap_or_default(),
        };
        if self.volumes.is_none() {
            let made = volumes::make(&self.shared.client, &pod, &self.shared.root_dir, &facts).await;
            match made {
                Ok(made) => {
                    self.volumes = Some(made);
                    self.memory.blocked = None;
                }
                Err(error) => {
                    self.memory.blocked = Some(("ContainerCreating".to_owned(), error.to_string()));
                    self.shared.events.warning(&pod, None, "FailedMount", error.to_string());
                    return Err(RETRY);
                }
            }
        }
        let volumes = self.volumes.as_ref().ok_or(RETRY)?;
        let made = config::container(&self.shared.client, &pod, container, attempt, volumes, &facts).await;
        let config = match made {
            Ok(config) => config,
            Err(error) => return Err(self.wait(container, "CreateContainerConfigError", error.to_string())),
        };
        let log_dir = config::sandbox(&pod, &self.shared.root_dir, 0).log_directory;
        let _ = std::fs::create_dir_all(std::path::Path::new(&log_dir).join(name));
        let sandbox_config = config::sandbox(&pod, &self.shared.root_dir, 0);
        match self.shared.cri.start(&sandbox.id, sandbox_config, config).await {
            Ok(_) => {
                self.memory.waiting.remove(name);
                self.shared.events.normal(&pod, Some(name), "Created", format!("Created container: {name}"));
                self.shared.events.normal(&pod, Some(name), "Started", format!("Started container {name}"));
                self.forget_old(name, observed).await;
                Ok(())
            }
            Err(StartError::Create(status)) => {
                Err(self.wait(container, "CreateContainerError", status.message().to_owned()))
            }
            Err(StartError::Start(status)) => {
                Err(self.wait(container, "RunContainerError", status.message().to_owned()))
            }
        }
    }

    /// The container waits for this reason; an event says so.
    fn wait(&mut self, container: &Container, reason: &str, message: String) -> Duration {
        let words = format!("Error: {message}");
        self.shared.events.warning(&self.pod, Some(&container.name), "Failed", words);
        self.memory.waiting.insert(container.name.clone(), (reason.to_owned(), message));
        RETRY * 5
    }

    async fn image(&mut self, pod: &Pod, container: &Container) -> Result<(), Duration> {
        let name = container.name.as_str();
        let image = container.image.as_deref().unwrap_or_default();
        let policy = container.image_pull_policy.as_deref().unwrap_or(images::default_policy(image));
        let events = &self.shared.events;
        let pulling = || events.normal(pod, Some(name), "Pulling", format!("Pulling image {image:?}"));
        match self.shared.images.ensure(&self.uid, image, policy, pulling).await {
            Outcome::Present => {
                let message = format!(
                    "Container image {image:?} already present on machine and can be accessed by the pod"
                );
                events.normal(pod, Some(name), "Pulled", message);
                Ok(())
            }
            Outcome::Pulled { took } => {
                let message = format!(
                    "Successfully pulled image {image:?} in {took:.0?} ({took:.0?} including waiting)."
                );
                events.normal(pod, Some(name), "Pulled", message);
                Ok(())
            }
            Outcome::Waiting { reason, message, retry_in } => {
                if reason == "ImagePullBackOff" {
                    events.normal(pod, Some(name), "BackOff", format!("Back-off pulling image {image:?}"));
                } else {
                    events.warning(
                        pod,
                        Some(name),
                        "Failed",
                        format!("Failed to pull image {image:?}: {message}"),
                    );
                }
                events.warning(pod, Some(name), "Failed", format!("Error: {reason}"));
                self.memory.waiting.insert(name.to_owned(), (reason.to_owned(), message));
                Err(retry_in)
            }
        }
    }

    /// Removes attempts older than the last ones, with their logs.
    async fn forget_old(&self, name: &str, observed: &Observed) {
        let attempts: Vec<&ContainerStatus> = observed.attempts(name).collect();
        // The new attempt is not in `observed` yet.
        for old in attempts.iter().rev().skip(KEPT_ATTEMPTS - 1) {
            if self.shared.cri.remove(&old.id).await.is_ok() {
                let _ = std::fs::remove_file(&old.log_path);
            }
        }
    }

    /// Starts probes of containers that run, ends those of containers that do not.
    fn probe(&mut self, observed: &Observed) {
        let running: HashMap<&str, &ContainerStatus> = observed
            .containers
            .iter()
            .filter(|one| one.state() == ContainerState::ContainerRunning)
            .map(|one| (one.id.as_str(), one))
            .collect();
        self.probes.retain(|id, handles| {
            let keep = running.contains_key(id.as_str());
            if !keep {
                handles.iter().for_each(AbortHandle::abort);
            }
            keep
        });
        for map in [&mut self.memory.started, &mut self.memory.ready] {
            map.retain(|id, _| running.contains_key(id.as_str()));
        }
        let Some(ip) = observed.ip() else { return };
        for (id, status) in running {
            let name = status.metadata.as_ref().map(|meta| meta.name.as_str()).unwrap_or_default();
            if self.probes.contains_key(id) {
                continue;
            }
            let Some(container) = find(&self.pod, name) else { continue };
            let handles = probes::start(container, id, ip, &self.verdicts.0);
            self.probes.insert(id.to_owned(), handles);
        }
    }

    fn judge(&mut self, verdict: Verdict) {
        if let Some(message) = &verdict.failure {
            let words = format!("{} probe failed: {message}", verdict.kind.word());
            self.shared.events.warning(&self.pod, Some(&verdict.container), "Unhealthy", words);
        }
        match verdict.kind {
            probes::Kind::Readiness => {
                if let Some(healthy) = verdict.decided {
                    self.memory.ready.insert(verdict.id, healthy);
                }
            }
            kind => match verdict.decided {
                Some(true) if kind == probes::Kind::Startup => {
                    self.memory.started.insert(verdict.id, true);
                }
                Some(false) => {
                    self.memory.unhealthy.insert(verdict.id, format!("{} probe", kind.word().to_lowercase()));
                }
                _ => {}
            },
        }
    }

    async fn tell(&mut self, observed: &Observed, now: Timestamp) {
        let status = status::of(&self.pod, observed, &self.memory, self.shared.node_ip, now);
        if status == self.told {
            return;
        }
        let meta = &self.pod.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let pods =
            Api::<Pod>::namespaced(self.shared.client.clone(), meta.namespace.as_deref().unwrap_or_default());
        // The uid makes it a conflict to write to another pod of the same name.
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": status}));
        match pods.patch_status(name, &PatchParams::default(), &patch).await {
            Ok(pod) => {
                self.told = status;
                self.pod = Arc::new(pod);
            }
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {}
            Err(error) => tracing::debug!(pod = self.name(), %error, "write the pod's status"),
        }
    }

    /// Stops the containers in order, removes everything, and lets the API forget the pod.
    async fn tear_down(&mut self, gone: bool) -> anyhow::Result<()> {
        let observed = self.shared.cri.observe(&self.uid).await?;
        let grace = if gone { 0 } else { self.grace() };
        let running =
            observed.containers.iter().filter(|one| one.state() == ContainerState::ContainerRunning);
        let stops = running.map(|one| {
            let name = one.metadata.as_ref().map(|meta| meta.name.clone()).unwrap_or_default();
            let message = format!("Stopping container {name}");
            self.shared.events.normal(&self.pod, Some(&name), "Killing", message);
            self.shared.cri.stop(&one.id, grace)
        });
        for stopped in futures::future::join_all(stops).await {
            stopped?;
        }
        for id in observed.stale.iter().chain(observed.sandbox.as_ref().map(|sandbox| &sandbox.id)) {
            self.shared.cri.remove_sandbox(id).await?;
        }
        volumes::remove(&self.shared.root_dir, &self.uid);
        let meta = &self.pod.metadata;
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let _ =
            std::fs::remove_dir_all(config::log_directory(&self.shared.root_dir, namespace, name, &self.uid));
        if !gone {
            let params = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
                ..DeleteParams::default()
            };
            let pods = Api::<Pod>::namespaced(self.shared.client.clone(), namespace);
            match pods.delete(name, &params).await {
                Ok(_) => {}
                Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|one| one.name == name)
}

/// As the kubelet writes durations: `10s`, `1m20s`, `5m0s`.
fn shown(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}
