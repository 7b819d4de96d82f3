//! One task a pod: look, decide, act, say; until nothing is left to do, and again when something changes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::plan::{Action, Input, Plan, plan};
use super::source::Pods;
use super::state::{Failed, Fate, Memory, PodState, Waiting, find_container};
use super::steps::{container, sandbox};
use super::termination;
use super::{replaced, status, unsupported};
use crate::context::Context;
use crate::logs::rotate;
use crate::probes::Prober;
use crate::volumes::PodDir;

mod admit;
mod give_back;
mod limits;
mod mirror;
mod mount;
pub mod report;
mod resize;
mod start;
mod step;
mod stop;

/// A step that takes longer than this lets the status be written first.
const SLOW: Duration = Duration::from_millis(500);
/// Looked at again at least this often.
const RESYNC: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);

/// What the API wants of a pod.
#[derive(Clone)]
pub struct Wanted {
    /// The newest object known.
    pub pod: Arc<Pod>,
    /// Whether it runs, leaves or is gone.
    pub fate: Fate,
    /// The node has ended it.
    pub failed: Option<Failed>,
    /// How often the mirror of a static pod was lost.
    pub mirrors_lost: u64,
}

impl Wanted {
    /// A pod as a source has it.
    pub fn new(pod: Pod, fate: Fate) -> Self {
        Self { pod: Arc::new(pod), fate, failed: None, mirrors_lost: 0 }
    }
}

/// The task of one pod.
pub struct Worker {
    context: Arc<Context>,
    pods: Pods,
    wanted: watch::Receiver<Wanted>,
    wake: Arc<Notify>,
    pod: Arc<Pod>,
    fate: Fate,
    state: PodState,
    memory: Memory,
    prober: Prober,
    /// Of a static pod: the status that its mirror has.
    written: Option<PodStatus>,
    volumes: mount::Tasks,
    said_backoff: Option<(String, Instant)>,
    /// Of a static pod: its mirror's uid, and how often one was lost before.
    mirror: Option<(String, u64)>,
    mirrors_lost: u64,
    /// The container that is being started, and which attempt that is.
    starting: Option<(String, u32)>,
}

enum Done {
    /// Look again at once.
    Again,
    /// Look again when something changes, or then.
    Wait(Option<Timestamp>),
    /// The pod is no more.
    Finished,
}

impl Worker {
    /// A worker for the pod that `wanted` holds.
    pub fn new(
        context: Arc<Context>,
        pods: Pods,
        wanted: watch::Receiver<Wanted>,
        wake: Arc<Notify>,
    ) -> Self {
        let now = wanted.borrow().clone();
        let uid = now.pod.metadata.uid.clone().unwrap_or_default();
        let prober = Prober::new(uid, wake.clone(), &context);
        Self {
            pod: now.pod,
            fate: now.fate,
            context,
            pods,
            wanted,
            wake,
            state: PodState::default(),
            memory: Memory::default(),
            prober,
            written: None,
            volumes: mount::Tasks::new(),
            said_backoff: None,
            mirror: None,
            mirrors_lost: now.mirrors_lost,
            starting: None,
        }
    }

    /// Runs until nothing of the pod is left. By reference: a future that owned it would hold it twice.
    pub async fn run(&mut self) {
        let mut hot = 0_u32;
        loop {
            self.take_wanted();
            // Boxed: what a turn takes is not held while the pod is idle.
            let done = match Box::pin(self.turn()).await {
                Ok(done) => done,
                Err(error) => {
                    tracing::warn!(pod = %self.name(), error = format!("{error:#}"), "will try again");
                    Done::Wait(Timestamp::now().saturating_add(SignedDuration::from_secs(1)).ok())
                }
            };
            match done {
                Done::Finished => return,
                // Whatever goes wrong, a worker never spins.
                Done::Again if hot < 50 => hot += 1,
                Done::Again => {
                    hot = 0;
                    tokio::time::sleep(RETRY).await;
                }
                Done::Wait(at) => {
                    hot = 0;
                    self.wait(at).await;
                }
            }
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

    fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.fate = wanted.fate;
        self.mirrors_lost = wanted.mirrors_lost;
        if self.memory.failed.is_none() {
            self.memory.failed = wanted.failed;
        }
        let version = |pod: &Pod| pod.metadata.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
        // The watch may lag behind our own writes.
        let newer = match (version(&wanted.pod), version(&self.pod)) {
            (Some(theirs), Some(ours)) => theirs >= ours,
            _ => true,
        };
        // A file says nothing of a status.
        if newer && !super::static_pods::is_static(&wanted.pod) {
            self.pod = wanted.pod;
        }
    }

    async fn wait(&mut self, at: Option<Timestamp>) {
        let until =
            at.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO));
        let limit = until.unwrap_or(RESYNC).min(RESYNC) + Duration::from_millis(1);
        tokio::select! {
            changed = self.wanted.changed() => {
                if changed.is_err() {
                    // The source is gone: the agent ends, and pods run on.
                    std::future::pending::<()>().await;
                }
            }
            () = self.wake.notified() => {}
            () = tokio::time::sleep(limit) => {}
        }
    }

    fn input(&self) -> Input<'_> {
        Input {
            pod: &self.pod,
            fate: self.fate,
            state: &self.state,
            memory: &self.memory,
            now: Timestamp::now(),
        }
    }

    /// Its containers are being ended for good, or have ended.
    fn is_ending(&self) -> bool {
        self.fate != Fate::Runs || super::plan::ended(self.input())
    }

    async fn turn(&mut self) -> anyhow::Result<Done> {
        self.look().await?;
        if self.memory.ending_since.is_none() && self.is_ending() {
            self.memory.ending_since = Some(Timestamp::now());
        }
        if !self.admit().await {
            return Ok(Done::Wait(Timestamp::now().saturating_add(SignedDuration::from_secs(1)).ok()));
        }
        let Plan { actions, wake } = plan(self.input());
        let mut acted = false;
        for action in actions {
            if matches!(action, Action::Finish) {
                return Ok(Done::Finished);
            }
            let quiet = matches!(action, Action::BackOff { .. });
            self.act(action).await?;
            acted |= !quiet;
            // A pod that was just told to leave is not started any further.
            if self.wanted.has_changed().unwrap_or(false) {
                return Ok(Done::Again);
            }
        }
        if acted {
            return Ok(Done::Again);
        }
        self.refresh();
        if self.resize().await? {
            return Ok(Done::Again);
        }
        let failed = self.memory.failed.is_some();
        let look_again = self.check_limits().await;
        if self.memory.failed.is_some() && !failed {
            return Ok(Done::Again);
        }
        self.free_devices();
        self.write_status().await?;
        Ok(Done::Wait(wake.into_iter().chain(look_again).min()))
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        self.state = self
            .context
            .runtime
            .pod_state(&uid)
            .await
            .map_err(|e| anyhow::anyhow!("ask the runtime: {}", container::words(&e)))?;
        self.state.on_network_of(&self.pod, self.context.node_ip);
        if let Some((name, attempt)) = &self.starting {
            // It counts when its hook is done.
            self.state.containers.retain(|c| c.name != *name || c.attempt < *attempt);
        }
        self.read_last_words();
        match self.fate {
            // Nobody is left to tell.
            Fate::Gone => self.prober.stop(),
            _ if self.is_ending() => self.prober.fit_ending(&self.state),
            _ => self.prober.fit(&self.pod, &self.state),
        }
        self.memory.probed = self.prober.results();
        let ended = self.pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
        if self.memory.refused.is_none() && !ended && self.fate == Fate::Runs {
            if let Some(error) = crate::volumes::unsupported(&self.pod) {
                self.refuse("UnsupportedVolume", "FailedMount", error.to_string());
            } else if let Some(field) = unsupported::field(&self.pod) {
                let message = format!("{field} is not supported by this node yet");
                self.refuse("UnsupportedField", "UnsupportedField", message);
            }
        }
        Ok(())
    }

    /// This node can never run the pod. It stays Pending and says why: one that failed would be replaced by its owner at
    /// once, and again, without end.
    fn refuse(&mut self, reason: &str, event: &'static str, message: String) {
        self.context.recorder.pod(&self.pod, None, true, event, message.clone());
        self.memory.refused = Some((reason.to_owned(), message));
    }

    async fn act(&mut self, action: Action) -> anyhow::Result<()> {
        let runtime = self.context.runtime.clone();
        let failed = |what: &str, e: tonic::Status| anyhow::anyhow!("{what}: {}", container::words(&e));
        match action {
            // Boxed, the larger ones: a turn that only looks does not hold what they take.
            Action::Mount => Box::pin(self.mount()).await,
            Action::RunSandbox { attempt } => Box::pin(self.run_sandbox(attempt)).await,
            Action::Start { name, attempt, backoff } => {
                if let Some(backoff) = backoff {
                    self.memory.backoff.insert(name.clone(), backoff);
                } else {
                    self.memory.backoff.remove(&name);
                }
                Box::pin(self.start(&name, attempt)).await?;
            }
            Action::Stop(endings) => Box::pin(self.stop(endings)).await?,
            Action::BackOff { name, message } => {
                let recent = self
                    .said_backoff
                    .as_ref()
                    .is_some_and(|(n, at)| *n == name && at.elapsed() < Duration::from_secs(10));
                if !recent {
                    let words = format!(
                        "Back-off restarting failed container {name} in pod {}_{}({})",
                        self.pod.metadata.name.as_deref().unwrap_or_default(),
                        self.pod.metadata.namespace.as_deref().unwrap_or_default(),
                        self.pod.metadata.uid.as_deref().unwrap_or_default(),
                    );
                    tracing::debug!(pod = %self.name(), message);
                    self.context.recorder.pod(&self.pod, Some(&name), true, "BackOff", words);
                    self.said_backoff = Some((name, Instant::now()));
                }
            }
            Action::RemoveContainer { id } => {
                self.remove_logs(&id).await;
                runtime.remove_container(&id).await.map_err(|e| failed("remove a container", e))?
            }
            Action::StopSandbox { id } => {
                runtime.stop_sandbox(&id).await.map_err(|e| failed("stop the sandbox", e))?
            }
            Action::RemoveSandbox { id } => {
                runtime.remove_sandbox(&id).await.map_err(|e| failed("remove the sandbox", e))?
            }
            Action::GiveBack => self.give_back_volumes().await,
            Action::RemoveFiles => {
                self.free_devices();
                self.remove_files().await?;
            }
            Action::Delete => {
                // Who takes its place finds all of it free.
                self.free_devices();
                self.write_status().await?;
                self.delete().await?;
            }
            Action::Finish => {}
        }
        Ok(())
    }

    fn waiting(
        before: Option<&Waiting>,
        reason: &str,
        message: String,
        seconds: impl Fn(u32) -> i64,
    ) -> Waiting {
        let failures = before.map_or(0, |w| w.failures).saturating_add(1);
        let retry_at = Timestamp::now()
            .saturating_add(SignedDuration::from_secs(seconds(failures)))
            .unwrap_or(Timestamp::MAX);
        Waiting { reason: reason.to_owned(), message, retry_at, failures }
    }

    async fn run_sandbox(&mut self, attempt: u32) {
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let mut wanted = self.wanted.clone();
        let prepared = tokio::select! {
            prepared = sandbox::prepare(&context, &pod, attempt, &mut self.memory) => prepared,
            // Images are pulled first, which may take long.
            _ = wanted.wait_for(Wanted::ends) => return,
        };
        let made = match prepared {
            Ok(prepared) => sandbox::make(&context, prepared, &mut self.memory).await,
            Err(failure) => Err(failure),
        };
        match made {
            Ok(()) => self.memory.sandbox_error = None,
            Err(sandbox::Failure::Refused(refusal)) => self.reject(refusal.reason, refusal.message),
            Err(sandbox::Failure::Again(error)) => {
                let message = format!("Failed to create pod sandbox: {error}");
                self.context.recorder.pod(&self.pod, None, true, "FailedCreatePodSandBox", message.clone());
                let before = self.memory.sandbox_error.as_ref();
                self.memory.sandbox_error =
                    Some(Self::waiting(before, "FailedCreatePodSandBox", message, |n| {
                        (1_i64 << n.min(5)).min(30)
                    }));
            }
        }
    }

    /// Fills in how containers ended, in their own words, and which of them the agent ended to start them anew.
    fn read_last_words(&mut self) {
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let Some(dir) = PodDir::new(&self.context.root, &uid) else { return };
        let logs = self.context.log_directory(&self.pod);
        for ended in self.state.containers.iter_mut().filter(|c| c.phase == super::state::Phase::Exited) {
            let Some(spec) = find_container(&self.pod, &ended.name) else { continue };
            let log = logs.join(&ended.name).join(format!("{}.log", ended.attempt));
            if let Some(words) = termination::message(&dir, &spec, ended, &log) {
                ended.message = words;
            }
            ended.replaced = self.memory.replaced.contains(&ended.id) || replaced::is_noted(&dir, &ended.id);
        }
    }

    /// Removes what was put aside of the log of a container that is to be forgotten; the runtime removes the rest.
    async fn remove_logs(&self, id: &str) {
        let Some(container) = self.state.by_id(Some(id)) else { return };
        let directory = self.context.log_directory(&self.pod).join(&container.name);
        for old in rotate::aside(&directory.join(format!("{}.log", container.attempt))).unwrap_or_default() {
            let _ = tokio::fs::remove_file(old).await;
        }
    }

    async fn remove_files(&mut self) -> anyhow::Result<()> {
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let logs = self.context.log_directory(&self.pod);
        self.context.tokens.forget(&uid);
        let Some(dir) = PodDir::new(&self.context.root, &uid) else { return Ok(()) };
        self.give_back(&dir).await?;
        tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            dir.remove()?;
            match std::fs::remove_dir_all(&logs) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await??;
        Ok(())
    }

    fn status(&self) -> PodStatus {
        status::status(self.input(), &self.context.node_ip.to_string())
    }
}
