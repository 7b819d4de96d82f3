//! Probes of running containers: one task a probe, results in a table that the pod's worker reads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as Spec, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::context::Context;
use crate::events::Recorder;
use crate::pods::state::{Container, Doom, Phase, PodState, Probed, init_containers, main_containers};
use crate::runtime::Runtime;

pub mod check;
pub mod counts;

use check::{Found, Target};
use counts::Counts;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Holds the others back until it passes.
    Startup,
    /// Restarts the container when it fails.
    Liveness,
    /// Takes the pod out of Services while it fails.
    Readiness,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

type Results = Arc<Mutex<BTreeMap<String, Probed>>>;

/// The probes of one pod. Dropping it ends them.
pub struct Prober {
    tasks: HashMap<(String, Kind), AbortHandle>,
    results: Results,
    wake: Arc<Notify>,
    recorder: Recorder,
    runtime: Runtime,
    counts: Counts,
    /// Of the pod.
    uid: String,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
        self.counts.forget(&self.uid);
    }
}

impl Prober {
    /// For the pod of that uid. `wake` is notified when a result changes.
    pub fn new(uid: String, wake: Arc<Notify>, context: &Context) -> Self {
        context.probes.begin(&uid);
        Self {
            tasks: HashMap::new(),
            results: Results::default(),
            wake,
            recorder: context.recorder.clone(),
            runtime: context.runtime.clone(),
            counts: context.probes.clone(),
            uid,
        }
    }

    /// What is known now, by container id.
    pub fn results(&self) -> BTreeMap<String, Probed> {
        self.results.lock().clone()
    }

    /// While a pod ends, whether its containers are ready is looked at until they have ended, as the kubelet does; nothing
    /// else, and nothing anew.
    pub fn fit_ending(&mut self, state: &PodState) {
        self.keep(|id, kind| kind == Kind::Readiness && is_running(state, id));
        self.results.lock().retain(|id, _| is_running(state, id));
    }

    /// Ends all probes: the pod is gone.
    pub fn stop(&mut self) {
        self.tasks.drain().for_each(|(_, task)| task.abort());
    }

    /// Starts and ends probes so that they fit the running containers.
    pub fn fit(&mut self, pod: &Arc<Pod>, state: &PodState) {
        self.keep(|id, _| is_running(state, id));
        self.results.lock().retain(|id, _| is_running(state, id));
        let Some(ip) = state.sandbox().and_then(|s| s.ips.first()) else { return };
        for spec in init_containers(pod).iter().chain(main_containers(pod)) {
            let Some(container) = state.newest(&spec.name).filter(|c| c.phase == Phase::Running) else {
                continue;
            };
            self.start(pod, spec, container, ip);
        }
    }

    fn keep(&mut self, keeps: impl Fn(&str, Kind) -> bool) {
        for (_, task) in self.tasks.extract_if(|(id, kind), _| !keeps(id, *kind)) {
            task.abort();
        }
    }

    fn start(&mut self, pod: &Arc<Pod>, spec: &Spec, container: &Container, ip: &str) {
        let started = spec.startup_probe.is_none()
            || self.results.lock().get(&container.id).and_then(|p| p.started) == Some(true);
        let probes = [
            (Kind::Startup, spec.startup_probe.as_ref().filter(|_| !started)),
            (Kind::Liveness, spec.liveness_probe.as_ref().filter(|_| started)),
            (Kind::Readiness, spec.readiness_probe.as_ref().filter(|_| started)),
        ];
        for (kind, probe) in probes {
            let key = (container.id.clone(), kind);
            if let Some(probe) = probe
                && !self.tasks.contains_key(&key)
            {
                let task = Task {
                    kind,
                    probe: probe.clone(),
                    pod: pod.clone(),
                    spec: spec.clone(),
                    id: container.id.clone(),
                    started_at: container.started_at,
                    ip: ip.to_owned(),
                    results: self.results.clone(),
                    wake: self.wake.clone(),
                    recorder: self.recorder.clone(),
                    runtime: self.runtime.clone(),
                    counts: self.counts.clone(),
                };
                self.tasks.insert(key, tokio::spawn(task.run()).abort_handle());
            }
        }
    }
}

fn is_running(state: &PodState, id: &str) -> bool {
    state.by_id(Some(id)).is_some_and(|container| container.phase == Phase::Running)
}

/// The number of a port that may be a name of the container.
pub fn port(spec: &Spec, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let named = spec.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.and_then(|p| u16::try_from(p.container_port).ok()).or_else(|| name.parse().ok())
        }
    }
    .filter(|p| *p > 0)
}

struct Task {
    kind: Kind,
    probe: Probe,
    pod: Arc<Pod>,
    spec: Spec,
    id: String,
    started_at: i64,
    ip: String,
    results: Results,
    wake: Arc<Notify>,
    recorder: Recorder,
    runtime: Runtime,
    counts: Counts,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

impl Task {
    async fn run(self) {
        let initial = u64::try_from(self.probe.initial_delay_seconds.unwrap_or(0)).unwrap_or(0);
        let age = k8s_openapi::jiff::Timestamp::now().as_nanosecond() - i128::from(self.started_at);
        let age = Duration::from_nanos(u64::try_from(age.max(0)).unwrap_or(0));
        tokio::time::sleep(Duration::from_secs(initial).saturating_sub(age)).await;
        let period = seconds(self.probe.period_seconds, 10);
        let limit = seconds(self.probe.timeout_seconds, 1);
        let success = self.probe.success_threshold.unwrap_or(1).max(1);
        let failure = self.probe.failure_threshold.unwrap_or(3).max(1);
        let (mut passed, mut failed) = (0, 0);
        loop {
            let target = Target { spec: &self.spec, id: &self.id, ip: &self.ip, runtime: &self.runtime };
            let looked = check::check(&self.probe, &target, limit).await;
            match self.told(looked) {
                Some(true) => (passed, failed) = (passed + 1, 0),
                Some(false) => (passed, failed) = (0, failed + 1),
                None => {}
            }
            if passed >= success {
                self.say(true);
                if self.kind == Kind::Startup {
                    return;
                }
            } else if failed >= failure {
                self.say(false);
                if self.kind != Kind::Readiness {
                    return;
                }
            }
            // A pod that is not ready is looked at more often in its first seconds, so that it serves soon.
            let eager = self.kind == Kind::Readiness
                && passed == 0
                && failed <= 10
                && period > Duration::from_secs(1);
            tokio::time::sleep(if eager { Duration::from_secs(1) } else { period }).await;
        }
    }

    /// Counts a look and tells people of it: whether it passed. `None`: nothing can be said of it.
    fn told(&self, looked: Result<Found, String>) -> Option<bool> {
        let kind = self.kind.word();
        let warn = |reason, words: String| {
            self.recorder.pod(
                &self.pod,
                Some(&self.spec.name),
                true,
                reason,
                format!("{kind} probe {words}"),
            );
        };
        let passed = match looked {
            Ok(Found::Fine) => true,
            Ok(Found::Warning(what)) => {
                warn("ProbeWarning", format!("warning: {what}"));
                true
            }
            Ok(Found::Broken(why)) => {
                warn("Unhealthy", format!("errored and resulted in failure state: {why}"));
                return None;
            }
            Err(why) => {
                warn("Unhealthy", format!("failed: {why}"));
                false
            }
        };
        self.counts.count(&self.pod, &self.spec.name, self.kind, passed);
        Some(passed)
    }

    fn say(&self, good: bool) {
        let mut results = self.results.lock();
        let entry = results.entry(self.id.clone()).or_default();
        let before = *entry;
        match (self.kind, good) {
            (Kind::Startup, true) => entry.started = Some(true),
            (Kind::Startup, false) => entry.doomed = Some(Doom::Startup),
            (Kind::Liveness, true) => {}
            (Kind::Liveness, false) => entry.doomed = Some(Doom::Liveness),
            (Kind::Readiness, good) => entry.ready = Some(good),
        }
        if *entry != before {
            self.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::state::Sandbox;

    fn prober() -> Prober {
        let answer =
            async |_| Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::empty()));
        let client = kube::Client::new(tower::service_fn(answer), "default");
        Prober {
            tasks: HashMap::new(),
            results: Results::default(),
            wake: Arc::default(),
            recorder: Recorder::new(client, "n".into(), Default::default()).0,
            runtime: Runtime::new("unix:///nowhere").expect("a client"),
            counts: Counts::default(),
            uid: "u".into(),
        }
    }

    #[tokio::test]
    async fn while_a_pod_ends_only_its_readiness_is_looked_at() {
        let probe = serde_json::json!({"exec": {"command": ["x"]}, "initialDelaySeconds": 3600});
        let containers = serde_json::json!([{"name": "a", "livenessProbe": probe, "readinessProbe": probe},
            {"name": "b", "startupProbe": probe}]);
        let pod = serde_json::json!({"metadata": {"uid": "u"}, "spec": {"containers": containers}});
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).expect("a Pod"));
        let running = |name: &str| Container {
            id: name.into(),
            name: name.into(),
            phase: Phase::Running,
            started_at: i64::MAX,
            ..Container::default()
        };
        let sandbox = Sandbox { ips: vec!["192.0.2.1".into()], ..Sandbox::default() };
        let mut state = PodState {
            sandboxes: vec![sandbox],
            containers: vec![running("a"), running("b")],
            ..PodState::default()
        };
        let mut prober = prober();
        let tasks = |prober: &Prober| {
            let mut all: Vec<String> =
                prober.tasks.keys().map(|(id, kind)| format!("{id} {}", kind.word())).collect();
            all.sort();
            all
        };
        prober.fit(&pod, &state);
        assert_eq!(tasks(&prober), ["a Liveness", "a Readiness", "b Startup"]);
        prober.fit_ending(&state);
        assert_eq!(tasks(&prober), ["a Readiness"], "who serves until the end is told");
        state.containers[0].phase = Phase::Exited;
        prober.fit_ending(&state);
        assert!(tasks(&prober).is_empty());
    }
}
