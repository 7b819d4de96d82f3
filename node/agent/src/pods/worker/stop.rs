//! Ending containers: the `preStop` hook first, and what is left of the grace for the container itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use tokio::sync::watch;

use super::step::attend;
use super::{Wanted, Worker};
use crate::context::Context;
use crate::hooks;
use crate::pods::plan::Ending;
use crate::pods::replaced;
use crate::pods::state::{Fate, Memory, find_container, grace_left};
use crate::pods::steps::container::words;
use crate::probes::check::Target;
use crate::volumes::PodDir;

/// What a container has left after a hook that used up the grace, in seconds.
const LEAST: i64 = 2;

impl Worker {
    /// Ends containers: their hooks all at once, themselves by their turns. A shorter grace that is asked for meanwhile
    /// (another deletion, a removal by force) breaks it off, and so does the end of the whole pod: the next plan has what is
    /// left.
    pub(super) async fn stop(&mut self, endings: Vec<Ending>) -> anyhow::Result<()> {
        let ip = self.state.sandbox().and_then(|s| s.ips.first()).cloned().unwrap_or_default();
        // How many of each turn still run.
        let turns = endings.iter().map(|e| e.turn).max().map_or(0, |most| most + 1);
        let left = (0..turns).map(|turn| endings.iter().filter(|e| e.turn == turn).count()).collect();
        let (left, _) = watch::channel::<Vec<usize>>(left);
        let left = Arc::new(left);
        let longest = endings.iter().map(|e| e.grace).max().unwrap_or(0);
        let (pod, mut stops) = (self.pod.clone(), Vec::new());
        for ending in endings {
            let spec = find_container(&self.pod, &ending.name);
            if ending.replaces {
                self.replace(&ending);
            }
            let told = !self.memory.hooked.insert(ending.id.clone());
            if !told {
                self.context.recorder.pod(
                    &self.pod,
                    Some(&ending.name),
                    false,
                    "Killing",
                    ending.why.clone(),
                );
            }
            let stop = Stop { context: self.context.clone(), pod: &pod, spec, ip: ip.clone(), hook: !told };
            stops.push(stop.run(ending, left.clone()));
        }
        let began = Instant::now();
        let (fate, ended) = (self.fate, self.memory.failed.is_some());
        let mut memory = Memory {
            failed: self.memory.failed.clone(),
            ending_since: self.memory.ending_since,
            ..Default::default()
        };
        let hurried = move |now: &Wanted| {
            let passed = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
            memory.failed = memory.failed.take().or_else(|| now.failed.clone());
            let grace = grace_left(&now.pod, now.fate, &memory, k8s_openapi::jiff::Timestamp::now());
            let shorter = grace + 1 < longest.saturating_sub(passed);
            fate == Fate::Runs && !ended && now.failed.is_some()
                || (now.fate != Fate::Runs || fate != Fate::Runs) && shorter
        };
        let (wake, wanted) = (self.wake.clone(), self.wanted.clone());
        let step = futures::future::join_all(stops);
        let Some(results) = attend(step, self, &wake, wanted, hurried).await else { return Ok(()) };
        for result in results {
            result.map_err(|e| anyhow::anyhow!("stop a container: {}", words(&e)))?;
        }
        Ok(())
    }
}

impl Worker {
    /// Remembers that a container is to be started anew, beyond an end of this agent too.
    fn replace(&mut self, ending: &Ending) {
        let known = |id: &str| self.state.by_id(Some(id)).is_some();
        self.memory.replaced.retain(|id| known(id));
        self.memory.replaced.insert(ending.id.clone());
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let noted = PodDir::new(&self.context.root, &uid).map(|dir| replaced::note(&dir, &ending.id, known));
        if let Some(Err(error)) = noted {
            tracing::warn!(
                pod = %self.name(), container = ending.name, %error,
                "that it is to be started anew is known to this agent only"
            );
        }
    }
}

struct Stop<'a> {
    context: Arc<Context>,
    pod: &'a Pod,
    spec: Option<Spec>,
    ip: String,
    /// Its hook is still to be run.
    hook: bool,
}

impl Stop<'_> {
    async fn run(self, ending: Ending, left: Arc<watch::Sender<Vec<usize>>>) -> Result<(), tonic::Status> {
        let began = Instant::now();
        let limit = Duration::from_secs(u64::try_from(ending.grace).unwrap_or(0));
        if self.hook {
            self.pre_stop(&ending, limit).await;
        }
        let mut watched = left.subscribe();
        let turn = ending.turn;
        let before = watched.wait_for(|left| left.iter().take(turn).all(|count| *count == 0));
        let _ = tokio::time::timeout(limit.saturating_sub(began.elapsed()), before).await;
        let took = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);
        let grace = ending.grace.saturating_sub(took).max(LEAST.min(ending.grace));
        let stopped = self.context.runtime.stop_container(&ending.id, grace).await;
        left.send_modify(|left| {
            if let Some(count) = left.get_mut(turn) {
                *count = count.saturating_sub(1);
            }
        });
        stopped
    }

    async fn pre_stop(&self, ending: &Ending, limit: Duration) {
        let Some(spec) = &self.spec else { return };
        let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) else { return };
        let target = Target { spec, id: &ending.id, ip: &self.ip, runtime: &self.context.runtime };
        if let Err(why) = hooks::run(hook, &target, limit).await {
            let message = format!("PreStopHook failed: {why}");
            self.context.recorder.pod(self.pod, Some(&spec.name), true, "FailedPreStopHook", message);
        }
    }
}
