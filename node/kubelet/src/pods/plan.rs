//! What to do next for a pod; pure. Rules: Kubernetes' documentation of the pod lifecycle.

use std::collections::HashMap;
use std::time::Duration;

use coracle_cri_api::v1::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::cri::Observed;

/// Back-off of a container that fails, and the running time after which it starts again from the beginning.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(300);
const STEADY: Duration = Duration::from_secs(600);

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Remove the pod's sandboxes of before.
    RemoveSandbox { id: String },
    /// Make a sandbox.
    RunSandbox { attempt: u32 },
    /// Fetch the image and start the next attempt.
    Start { container: String, attempt: u32 },
    /// Stop a container, and let the next round decide about its restart.
    Stop { container: String, id: String },
    /// Look again after this long.
    Wait(Duration),
}

/// What a worker remembers between rounds.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Containers whose liveness or startup probe failed, by id.
    pub unhealthy: HashMap<String, String>,
    /// Whether the startup probe has succeeded, and the last verdict of readiness, by id.
    pub started: HashMap<String, bool>,
    pub ready: HashMap<String, bool>,
    /// Delay of the next restart, by container name.
    pub delay: HashMap<String, Duration>,
    /// The container id that `delay` already counts.
    pub counted: HashMap<String, String>,
    /// Waiting reason and message, by container name.
    pub waiting: HashMap<String, (String, String)>,
    /// Why the pod as a whole waits, such as a missing volume.
    pub blocked: Option<(String, String)>,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Absent,
    Running,
    /// Ended, and stays so.
    Succeeded,
    Failed,
    /// Ended, and is to be started again.
    Restart,
}

/// Whether init container is a sidecar: it runs beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Where a container stands, by its last attempt and the pod's restart policy.
pub fn standing(
    spec: &PodSpec,
    container: &Container,
    init: bool,
    latest: Option<&ContainerStatus>,
) -> Standing {
    let Some(latest) = latest else { return Standing::Absent };
    match latest.state() {
        ContainerState::ContainerRunning => Standing::Running,
        // Made but never started: an agent ended in between.
        ContainerState::ContainerCreated | ContainerState::ContainerUnknown => Standing::Restart,
        ContainerState::ContainerExited => {
            let own = container.restart_policy.as_deref();
            let policy = own.or(spec.restart_policy.as_deref()).unwrap_or("Always");
            let sidecar = init && is_sidecar(container);
            match (latest.exit_code == 0, policy) {
                (true, "Always") if !init || sidecar => Standing::Restart,
                (true, _) => Standing::Succeeded,
                (false, "Never") => Standing::Failed,
                (false, _) => Standing::Restart,
            }
        }
    }
}

/// Whether every init container has done its part.
pub fn initialized(spec: &PodSpec, observed: &Observed, memory: &Memory) -> bool {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let app_started = spec.containers.iter().any(|one| observed.latest(&one.name).is_some());
    app_started || inits.iter().all(|one| init_done(spec, one, observed, memory))
}

fn init_done(spec: &PodSpec, init: &Container, observed: &Observed, memory: &Memory) -> bool {
    let latest = observed.latest(&init.name);
    let standing = standing(spec, init, true, latest);
    if is_sidecar(init) {
        let started = latest
            .is_some_and(|one| memory.started.get(&one.id).copied().unwrap_or(init.startup_probe.is_none()));
        return standing == Standing::Running && started;
    }
    standing == Standing::Succeeded
}

/// Whether the pod has ended for good: every container has, or an init container failed for good.
pub fn finished(spec: &PodSpec, observed: &Observed) -> bool {
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let standing_of = |one: &Container, init| standing(spec, one, init, observed.latest(&one.name));
    inits.iter().any(|one| standing_of(one, true) == Standing::Failed)
        || spec
            .containers
            .iter()
            .all(|one| matches!(standing_of(one, false), Standing::Succeeded | Standing::Failed))
}

/// The next steps, in order. `now_ns` is nanoseconds since the Unix epoch.
pub fn next(pod: &Pod, observed: &Observed, memory: &mut Memory, now_ns: i64) -> Vec<Action> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut actions: Vec<Action> =
        observed.stale.iter().map(|id| Action::RemoveSandbox { id: id.clone() }).collect();
    if finished(spec, observed) {
        let running = running_containers(observed);
        actions.extend(running.map(|(container, id)| Action::Stop { container, id }));
        return actions;
    }
    if observed.ready_sandbox().is_none() {
        let mut attempt = 0;
        if let Some(dead) = &observed.sandbox {
            attempt = dead.metadata.as_ref().map_or(0, |meta| meta.attempt) + 1;
            actions.push(Action::RemoveSandbox { id: dead.id.clone() });
        }
        actions.push(Action::RunSandbox { attempt });
        return actions;
    }
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let app_started = spec.containers.iter().any(|one| observed.latest(&one.name).is_some());
    for init in inits {
        if app_started && !is_sidecar(init) {
            continue;
        }
        actions.extend(container(spec, init, true, observed, memory, now_ns));
        if !app_started && !init_done(spec, init, observed, memory) {
            return actions;
        }
    }
    for one in &spec.containers {
        actions.extend(container(spec, one, false, observed, memory, now_ns));
    }
    actions
}

fn running_containers(observed: &Observed) -> impl Iterator<Item = (String, String)> {
    let running = observed.containers.iter().filter(|one| one.state() == ContainerState::ContainerRunning);
    running
        .map(|one| (one.metadata.as_ref().map(|meta| meta.name.clone()).unwrap_or_default(), one.id.clone()))
}

fn container(
    spec: &PodSpec,
    container: &Container,
    init: bool,
    observed: &Observed,
    memory: &mut Memory,
    now_ns: i64,
) -> Option<Action> {
    let name = container.name.clone();
    let latest = observed.latest(&container.name);
    match (standing(spec, container, init, latest), latest) {
        (Standing::Absent, _) => Some(Action::Start { container: name, attempt: 0 }),
        (Standing::Running, Some(latest)) if memory.unhealthy.contains_key(&latest.id) => {
            Some(Action::Stop { container: name, id: latest.id.clone() })
        }
        (Standing::Restart, Some(latest)) => {
            let attempt = latest.metadata.as_ref().map_or(0, |meta| meta.attempt) + 1;
            match back_off(&name, latest, memory, now_ns) {
                None => Some(Action::Start { container: name, attempt }),
                Some(left) => Some(Action::Wait(left)),
            }
        }
        _ => None,
    }
}

/// The time left until a container may start again. Its first restart is at once, as the kubelet does.
fn back_off(name: &str, latest: &ContainerStatus, memory: &mut Memory, now_ns: i64) -> Option<Duration> {
    if latest.state() != ContainerState::ContainerExited {
        return None;
    }
    if memory.counted.get(name) != Some(&latest.id) {
        let ran = Duration::from_nanos(u64::try_from(latest.finished_at - latest.started_at).unwrap_or(0));
        let attempt = latest.metadata.as_ref().map_or(0, |meta| meta.attempt);
        let delay = match memory.delay.get(name) {
            _ if ran >= STEADY => Duration::ZERO,
            Some(before) if before.is_zero() => FIRST_DELAY,
            Some(before) => (*before * 2).min(LONGEST_DELAY),
            // An agent that has just started goes by the number of attempts.
            None if attempt == 0 => Duration::ZERO,
            None => (FIRST_DELAY * 2_u32.saturating_pow(attempt.min(5) - 1)).min(LONGEST_DELAY),
        };
        memory.delay.insert(name.to_owned(), delay);
        memory.counted.insert(name.to_owned(), latest.id.clone());
    }
    let delay = memory.delay.get(name).copied().unwrap_or_default();
    let since = Duration::from_nanos(u64::try_from(now_ns - latest.finished_at).unwrap_or(0));
    delay.checked_sub(since).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_cri_api::v1::{ContainerMetadata, PodSandboxMetadata, PodSandboxState, PodSandboxStatus};
    use serde_json::{Value, json};

    const SECOND: i64 = 1_000_000_000;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn sandbox(state: PodSandboxState) -> Option<PodSandboxStatus> {
        let metadata = Some(PodSandboxMetadata::default());
        Some(PodSandboxStatus { id: "s".into(), state: state.into(), metadata, ..Default::default() })
    }

    fn one(name: &str, attempt: u32, state: ContainerState, exit_code: i32) -> ContainerStatus {
        let metadata = Some(ContainerMetadata { name: name.into(), attempt });
        let id = format!("{name}-{attempt}");
        ContainerStatus {
            id,
            metadata,
            state: state.into(),
            exit_code,
            started_at: 1,
            finished_at: 2,
            ..Default::default()
        }
    }

    fn steps(pod: &Pod, containers: Vec<ContainerStatus>, memory: &mut Memory, now: i64) -> Vec<Action> {
        let sandbox = sandbox(PodSandboxState::SandboxReady);
        next(pod, &Observed { sandbox, containers, stale: vec![] }, memory, now)
    }

    fn start(container: &str, attempt: u32) -> Action {
        Action::Start { container: container.into(), attempt }
    }

    #[test]
    fn a_sandbox_then_inits_in_order_then_containers() {
        let pod = pod(
            json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}, {"name": "b"}]}),
        );
        let memory = &mut Memory::default();
        assert_eq!(next(&pod, &Observed::default(), memory, 0), [Action::RunSandbox { attempt: 0 }]);
        assert_eq!(steps(&pod, vec![], memory, 0), [start("i", 0)]);
        let done = |name| one(name, 0, ContainerState::ContainerExited, 0);
        assert_eq!(steps(&pod, vec![one("i", 0, ContainerState::ContainerRunning, 0)], memory, 0), []);
        assert_eq!(steps(&pod, vec![done("i")], memory, 0), [start("j", 0)]);
        assert_eq!(steps(&pod, vec![done("i"), done("j")], memory, 0), [start("a", 0), start("b", 0)]);
    }

    #[test]
    fn a_sidecar_runs_beside_the_containers() {
        let pod = pod(
            json!({"initContainers": [{"name": "i", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}),
        );
        let running = one("i", 0, ContainerState::ContainerRunning, 0);
        assert_eq!(steps(&pod, vec![running], &mut Memory::default(), 0), [start("a", 0)]);
    }

    #[test]
    fn restarts_follow_the_policy_and_back_off() {
        let exited = |attempt, code| vec![one("a", attempt, ContainerState::ContainerExited, code)];
        for (policy, code, again) in [
            ("Always", 0, true),
            ("Always", 1, true),
            ("OnFailure", 0, false),
            ("OnFailure", 1, true),
            ("Never", 1, false),
        ] {
            let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
            let got = steps(&pod, exited(0, code), &mut Memory::default(), 3);
            assert_eq!(got, if again { vec![start("a", 1)] } else { vec![] }, "{policy} {code}");
        }
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let memory = &mut Memory::default();
        assert_eq!(steps(&pod, exited(0, 1), memory, 2), [start("a", 1)]);
        assert_eq!(steps(&pod, exited(1, 1), memory, 2), [Action::Wait(Duration::from_secs(10))]);
        assert_eq!(steps(&pod, exited(1, 1), memory, 2 + 10 * SECOND), [start("a", 2)]);
        assert_eq!(steps(&pod, exited(2, 1), memory, 2), [Action::Wait(Duration::from_secs(20))]);
    }

    #[test]
    fn a_dead_sandbox_is_replaced_and_an_unhealthy_container_stopped() {
        let pod = pod(json!({"containers": [{"name": "a"}]}));
        let dead = Observed { sandbox: sandbox(PodSandboxState::SandboxNotready), ..Default::default() };
        let got = next(&pod, &dead, &mut Memory::default(), 0);
        assert_eq!(got, [Action::RemoveSandbox { id: "s".into() }, Action::RunSandbox { attempt: 1 }]);
        let mut memory = Memory::default();
        memory.unhealthy.insert("a-0".into(), "HTTP 500".into());
        let got = steps(&pod, vec![one("a", 0, ContainerState::ContainerRunning, 0)], &mut memory, 0);
        assert_eq!(got, [Action::Stop { container: "a".into(), id: "a-0".into() }]);
    }
}
