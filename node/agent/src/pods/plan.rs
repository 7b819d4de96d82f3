//! Pure: what to do next for one pod, from its spec, the state of the runtime, the agent's memory and the clock.
//!
//! A plan is short: the worker carries it out, looks again and asks again, until nothing is left to do.

use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::backoff::Backoff;
use super::state::{
    Container, Doom, Fate, Memory, Phase, PodState, ephemeral_containers, grace_seconds, init_containers,
    is_sidecar, main_containers, restart_policy,
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the volumes and fill them.
    Mount,
    /// Make a sandbox.
    RunSandbox {
        /// 0 for the first of the pod.
        attempt: u32,
    },
    /// Pull the image if need be, create and start.
    Start {
        /// The container's name.
        name: String,
        /// 0 for the first.
        attempt: u32,
        /// The back-off that the next crash of this container meets.
        backoff: Option<Backoff>,
    },
    /// Stop containers, all at once.
    Stop {
        /// Id, name and why (an Event's words; empty: none).
        containers: Vec<(String, String, String)>,
        /// Seconds between asking and killing.
        grace: i64,
    },
    /// Say that a container waits for its back-off.
    BackOff {
        /// The container's name.
        name: String,
        /// The words of its status.
        message: String,
    },
    /// Forget a dead container and its log.
    RemoveContainer {
        /// Its id.
        id: String,
    },
    /// End a sandbox, with whatever runs in it.
    StopSandbox {
        /// Its id.
        id: String,
    },
    /// Forget a sandbox.
    RemoveSandbox {
        /// Its id.
        id: String,
    },
    /// Remove what the pod has on this node's disk.
    RemoveFiles,
    /// Write the last status and remove the pod from the API.
    Delete,
    /// Nothing is left: the worker ends.
    Finish,
}

/// What to do, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// `None`: only when something changes.
    pub wake: Option<Timestamp>,
}

/// What a plan is made from.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// Whether it is wanted.
    pub fate: Fate,
    /// What the runtime says.
    pub state: &'a PodState,
    /// What the agent remembers.
    pub memory: &'a Memory,
    /// The clock.
    pub now: Timestamp,
}

impl Plan {
    fn act(action: Action) -> Plan {
        Plan { actions: vec![action], wake: None }
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

/// Decides.
pub fn plan(input: Input<'_>) -> Plan {
    if input.fate != Fate::Runs {
        return leave(input);
    }
    if ended(input) {
        return clean_up(input);
    }
    let mut plan = Plan::default();
    if let Some(at) = deadline(input) {
        plan.wake_at(at);
    }
    if !input.memory.mounted {
        if let Some(error) = &input.memory.mount_error
            && error.retry_at > input.now
        {
            plan.wake_at(error.retry_at);
            return plan;
        }
        return Plan::act(Action::Mount);
    }
    match input.state.sandbox() {
        Some(sandbox) if sandbox.ready && (sandbox.linux || !input.memory.needs_linux) => {}
        newest => {
            let attempt = newest.map_or(0, |s| s.attempt.saturating_add(1));
            return new_sandbox(input, attempt);
        }
    }
    plan.actions.extend(doomed(input));
    if init(input, &mut plan) {
        for spec in main_containers(input.pod) {
            start_if_due(input, spec, restart_policy(input.pod), &mut plan);
        }
        // Each runs once.
        for spec in ephemeral_containers(input.pod) {
            start_if_due(input, &spec, "Never", &mut plan);
        }
    }
    plan.actions.extend(prune(input));
    plan
}

fn new_sandbox(input: Input<'_>, attempt: u32) -> Plan {
    let mut plan = Plan::default();
    if let Some(error) = &input.memory.sandbox_error
        && error.retry_at > input.now
    {
        plan.wake_at(error.retry_at);
        return plan;
    }
    let why = "Pod sandbox changed, it will be killed and re-created.";
    let running = input.state.containers.iter().filter(|c| c.phase == Phase::Running);
    let stops: Vec<_> = running.map(|c| (c.id.clone(), c.name.clone(), why.to_owned())).collect();
    if !stops.is_empty() {
        plan.actions.push(Action::Stop { containers: stops, grace: grace_seconds(input.pod, input.fate) });
    }
    // The newest dead sandbox stays for its logs; older ones go.
    let older = input.state.sandboxes.iter().skip(1);
    plan.actions.extend(older.map(|s| Action::RemoveSandbox { id: s.id.clone() }));
    if let Some(dead) = input.state.sandbox() {
        plan.actions.push(Action::StopSandbox { id: dead.id.clone() });
    }
    plan.actions.push(Action::RunSandbox { attempt });
    plan
}

/// Whether the pod has come to its end: it will not run again.
pub fn ended(input: Input<'_>) -> bool {
    let phase = input.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed"))
        || input.memory.refused.is_some()
        || input.memory.failed.is_some()
        || deadline(input).is_some_and(|at| at <= input.now)
    {
        return true;
    }
    let policy = restart_policy(input.pod);
    if policy == "Always" {
        return false;
    }
    let exited = |name: &str| input.state.newest(name).filter(|c| c.phase == Phase::Exited);
    if policy == "Never" {
        let mut inits = init_containers(input.pod).iter().filter(|s| !is_sidecar(s));
        if inits.any(|spec| exited(&spec.name).is_some_and(|c| c.exit_code != 0)) {
            return true;
        }
    }
    let containers = main_containers(input.pod);
    let over = |spec: &Spec| {
        exited(&spec.name).is_some_and(|c| !restarts(policy, c))
            && !input.memory.waiting.contains_key(&spec.name)
    };
    !containers.is_empty() && containers.iter().all(over)
}

/// When the pod has been active for as long as it may.
pub fn deadline(input: Input<'_>) -> Option<Timestamp> {
    let seconds = input.pod.spec.as_ref()?.active_deadline_seconds?;
    let start = input.pod.status.as_ref()?.start_time.as_ref()?.0;
    start.saturating_add(SignedDuration::from_secs(seconds)).ok()
}

/// Whether a container that ended starts again.
pub fn restarts(policy: &str, ended: &Container) -> bool {
    match policy {
        "Always" => true,
        "OnFailure" => ended.exit_code != 0,
        _ => false,
    }
}

/// An ended pod keeps its dead containers, for their logs, and nothing else.
fn clean_up(input: Input<'_>) -> Plan {
    let mut plan = Plan::default();
    stop_running(input, &mut plan);
    if plan.actions.is_empty() {
        let ready = input.state.sandboxes.iter().filter(|s| s.ready);
        plan.actions.extend(ready.map(|s| Action::StopSandbox { id: s.id.clone() }));
    }
    plan
}

/// Main containers first; sidecars when those are gone.
fn stop_running(input: Input<'_>, plan: &mut Plan) {
    let inits = init_containers(input.pod);
    let sidecar = |c: &&Container| inits.iter().any(|s| s.name == c.name && is_sidecar(s));
    let running: Vec<&Container> =
        input.state.containers.iter().filter(|c| c.phase == Phase::Running).collect();
    let mains: Vec<&Container> = running.iter().copied().filter(|c| !sidecar(c)).collect();
    let chosen = if mains.is_empty() { running } else { mains };
    if !chosen.is_empty() {
        let stop = |c: &Container| (c.id.clone(), c.name.clone(), format!("Stopping container {}", c.name));
        let containers = chosen.into_iter().map(stop).collect();
        plan.actions.push(Action::Stop { containers, grace: grace_seconds(input.pod, input.fate) });
    }
}

fn leave(input: Input<'_>) -> Plan {
    let mut plan = Plan::default();
    stop_running(input, &mut plan);
    if !plan.actions.is_empty() {
        return plan;
    }
    let ready = input.state.sandboxes.iter().filter(|s| s.ready);
    plan.actions.extend(ready.map(|s| Action::StopSandbox { id: s.id.clone() }));
    if !plan.actions.is_empty() {
        return plan;
    }
    if input.fate == Fate::Leaves {
        plan.actions.push(Action::Delete);
    }
    plan.actions.extend(input.state.sandboxes.iter().map(|s| Action::RemoveSandbox { id: s.id.clone() }));
    plan.actions.push(Action::RemoveFiles);
    plan.actions.push(Action::Finish);
    plan
}

/// Containers that a probe gave up on.
fn doomed(input: Input<'_>) -> Vec<Action> {
    let mut stops = Vec::new();
    for container in input.state.containers.iter().filter(|c| c.phase == Phase::Running) {
        let probe = match input.memory.probed.get(&container.id).and_then(|p| p.doomed) {
            Some(Doom::Liveness) => "liveness",
            Some(Doom::Startup) => "startup",
            None => continue,
        };
        let name = &container.name;
        let fate = if restart_policy(input.pod) == "Never" { "" } else { ", will be restarted" };
        let why = format!("Container {name} failed {probe} probe{fate}");
        stops.push((container.id.clone(), name.clone(), why));
    }
    if stops.is_empty() {
        return Vec::new();
    }
    vec![Action::Stop { containers: stops, grace: grace_seconds(input.pod, input.fate) }]
}

/// Whether a container counts as started: its startup probe passed, or it has none.
pub fn started(spec: &Spec, container: &Container, memory: &Memory) -> bool {
    let passed = || memory.probed.get(&container.id).and_then(|p| p.started) == Some(true);
    container.phase == Phase::Running && (spec.startup_probe.is_none() || passed())
}

/// Goes through the init containers in order; true when the main containers may run.
fn init(input: Input<'_>, plan: &mut Plan) -> bool {
    let mains_began = main_containers(input.pod).iter().any(|s| input.state.current(&s.name).is_some());
    let policy = if restart_policy(input.pod) == "Never" { "Never" } else { "OnFailure" };
    for spec in init_containers(input.pod) {
        let current = input.state.current(&spec.name);
        if is_sidecar(spec) {
            start_if_due(input, spec, "Always", plan);
            let up = current.is_some_and(|c| started(spec, c, input.memory));
            if !up && !mains_began {
                return false;
            }
        } else if !mains_began {
            let done = current.is_some_and(|c| c.phase == Phase::Exited && c.exit_code == 0);
            if !done {
                start_if_due(input, spec, policy, plan);
                return false;
            }
        }
    }
    true
}

fn start_if_due(input: Input<'_>, spec: &Spec, policy: &str, plan: &mut Plan) {
    let name = &spec.name;
    let before = input.memory.backoff.get(name).copied();
    let mut backoff = before;
    if let Some(current) = input.state.current(name) {
        match current.phase {
            Phase::Running => return,
            Phase::Exited => {
                if !restarts(policy, current) {
                    return;
                }
                let held = Backoff::after(before, current);
                if let Some(held) = held
                    && held.until(current) > input.now
                {
                    plan.wake_at(held.until(current));
                    let message = backoff_message(input.pod, name, held);
                    plan.actions.push(Action::BackOff { name: name.clone(), message });
                    return;
                }
                backoff = Some(Backoff::next(held));
            }
            Phase::Created | Phase::Unknown => {}
        }
    }
    if let Some(waiting) = input.memory.waiting.get(name)
        && waiting.retry_at > input.now
    {
        plan.wake_at(waiting.retry_at);
        return;
    }
    plan.actions.push(Action::Start { name: name.clone(), attempt: next_attempt(input, name), backoff });
}

/// The words of a crash back-off in the status.
pub fn backoff_message(pod: &Pod, container: &str, backoff: Backoff) -> String {
    format!(
        "back-off {} restarting failed container={container} pod={}_{}({})",
        backoff.words(),
        pod.metadata.name.as_deref().unwrap_or_default(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.uid.as_deref().unwrap_or_default(),
    )
}

/// One more than the newest known: to the runtime, or to the status when the runtime forgot.
fn next_attempt(input: Input<'_>, name: &str) -> u32 {
    if let Some(newest) = input.state.newest(name) {
        // A container that never started is made anew under its own number.
        let never_ran = newest.phase == Phase::Created;
        return if never_ran { newest.attempt } else { newest.attempt.saturating_add(1) };
    }
    let known = super::status::containers::old_status(input, name).filter(|s| s.container_id.is_some());
    known.map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0).saturating_add(1))
}

/// Dead containers but the last two of a name (the newest, and the one that `logs --previous` shows).
fn prune(input: Input<'_>) -> Vec<Action> {
    let mut seen: std::collections::BTreeMap<&str, u32> = std::collections::BTreeMap::new();
    let mut actions = Vec::new();
    for container in &input.state.containers {
        let count = seen.entry(container.name.as_str()).or_default();
        *count += 1;
        if *count > 2 && container.phase != Phase::Running {
            actions.push(Action::RemoveContainer { id: container.id.clone() });
        }
    }
    actions
}

#[cfg(test)]
mod tests;
