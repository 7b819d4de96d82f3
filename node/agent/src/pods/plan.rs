//! Pure: what to do next for one pod, from its spec, the state of the runtime, the agent's memory and the clock.
//!
//! A plan is short: the worker carries it out, looks again and asks again, until nothing is left to do.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::backoff::Backoff;
use super::state::{
    Container, Doom, Fate, Memory, Phase, PodState, ephemeral_containers, find_container, grace_left,
    grace_seconds, init_containers, is_sidecar, main_containers, may_restart, starts_again,
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
    /// Stop containers.
    Stop(Vec<Ending>),
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
    /// Give back the volumes and devices of a pod that has ended. Its logs and last words stay.
    GiveBack,
    /// Remove what the pod has on this node's disk.
    RemoveFiles,
    /// Write the last status and remove the pod from the API.
    Delete,
    /// Nothing is left: the worker ends.
    Finish,
}

/// A container that is to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Why: the words of an Event.
    pub why: String,
    /// Seconds between asking and killing, its `preStop` hook included.
    pub grace: i64,
    /// It is asked when all of lower turns have ended: main containers are 0, sidecars go in the reverse order of their start.
    pub turn: usize,
    /// It is to be started anew, whatever its exit code will be.
    pub replaces: bool,
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
            start_if_due(input, spec, &mut plan);
        }
        for spec in ephemeral_containers(input.pod) {
            start_if_due(input, &spec, &mut plan);
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
    let grace = grace_seconds(input.pod, input.fate);
    let stops: Vec<_> = running.map(|c| ending(c, why.to_owned(), grace, 0)).collect();
    if !stops.is_empty() {
        plan.actions.push(Action::Stop(stops));
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
    if told_ended(input)
        || input.memory.refused.is_some()
        || input.memory.failed.is_some()
        || deadline(input).is_some_and(|at| at <= input.now)
    {
        return true;
    }
    let exited = |name: &str| input.state.newest(name).filter(|c| c.phase == Phase::Exited);
    let over = |spec: &Spec| {
        exited(&spec.name).is_some_and(|c| !starts_again(input.pod, spec, c))
            && !input.memory.waiting.contains_key(&spec.name)
    };
    let failed = |spec: &&Spec| exited(&spec.name).is_some_and(|c| c.exit_code != 0) && over(spec);
    if init_containers(input.pod).iter().filter(|s| !is_sidecar(s)).any(|spec| failed(&spec)) {
        return true;
    }
    let containers = main_containers(input.pod);
    !containers.is_empty() && containers.iter().all(over)
}

/// When the pod has been active for as long as it may.
pub fn deadline(input: Input<'_>) -> Option<Timestamp> {
    let seconds = input.pod.spec.as_ref()?.active_deadline_seconds?;
    let start = input.pod.status.as_ref()?.start_time.as_ref()?.0;
    start.saturating_add(SignedDuration::from_secs(seconds)).ok()
}

/// An ended pod keeps its dead containers, for their logs, and nothing else.
fn clean_up(input: Input<'_>) -> Plan {
    let mut plan = Plan::default();
    stop_running(input, &mut plan);
    if plan.actions.is_empty() {
        let ready = input.state.sandboxes.iter().filter(|s| s.ready);
        plan.actions.extend(ready.map(|s| Action::StopSandbox { id: s.id.clone() }));
    }
    // That it ended is said first: a driver may take its time. A pod that was refused stays Pending, and had nothing.
    if plan.actions.is_empty() && told_ended(input) && !input.memory.given_back {
        match &input.memory.mount_error {
            Some(error) if error.retry_at > input.now => plan.wake_at(error.retry_at),
            _ => plan.actions.push(Action::GiveBack),
        }
    }
    plan
}

/// Whether the API knows that the pod has ended.
fn told_ended(input: Input<'_>) -> bool {
    let phase = input.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn ending(container: &Container, why: String, grace: i64, turn: usize) -> Ending {
    Ending { id: container.id.clone(), name: container.name.clone(), why, grace, turn, replaces: false }
}

/// Main containers first, then the sidecars, the last one first. What is left of the grace is for all of them.
fn stop_running(input: Input<'_>, plan: &mut Plan) {
    let sidecars: Vec<&Spec> = init_containers(input.pod).iter().filter(|s| is_sidecar(s)).rev().collect();
    let grace = grace_left(input.pod, input.fate, input.memory, input.now);
    let running = input.state.containers.iter().filter(|c| c.phase == Phase::Running);
    let mut endings: Vec<Ending> = running
        .map(|c| {
            let turn = sidecars.iter().position(|s| s.name == c.name).map_or(0, |at| at + 1);
            ending(c, format!("Stopping container {}", c.name), grace, turn)
        })
        .collect();
    endings.sort_by_key(|e| e.turn);
    if !endings.is_empty() {
        plan.actions.push(Action::Stop(endings));
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
        let Some(doom) = input.memory.probed.get(&container.id).and_then(|p| p.doomed) else { continue };
        let name = &container.name;
        let spec = find_container(input.pod, name);
        let (word, probe) = match doom {
            Doom::Liveness => ("liveness", spec.as_ref().and_then(|s| s.liveness_probe.as_ref())),
            Doom::Startup => ("startup", spec.as_ref().and_then(|s| s.startup_probe.as_ref())),
        };
        let again = spec.as_ref().is_some_and(|s| may_restart(input.pod, s));
        let why =
            format!("Container {name} failed {word} probe{}", if again { ", will be restarted" } else { "" });
        let own = probe.and_then(|p| p.termination_grace_period_seconds).map(|seconds| seconds.max(1));
        let grace = own.unwrap_or_else(|| grace_seconds(input.pod, input.fate));
        stops.push(Ending { replaces: true, ..ending(container, why, grace, 0) });
    }
    if stops.is_empty() { Vec::new() } else { vec![Action::Stop(stops)] }
}

/// Whether a container counts as started: its startup probe passed, or it has none.
pub fn started(spec: &Spec, container: &Container, memory: &Memory) -> bool {
    let passed = || memory.probed.get(&container.id).and_then(|p| p.started) == Some(true);
    container.phase == Phase::Running && (spec.startup_probe.is_none() || passed())
}

/// Whether main containers have begun in the sandbox that counts.
fn mains_began(input: Input<'_>) -> bool {
    main_containers(input.pod).iter().any(|s| input.state.current(&s.name).is_some())
}

fn succeeded(input: Input<'_>, spec: &Spec) -> bool {
    input.state.current(&spec.name).is_some_and(|c| c.phase == Phase::Exited && c.exit_code == 0)
}

/// Init containers that are done, and do not run again in the sandbox that counts.
pub fn done(input: Input<'_>) -> BTreeSet<&str> {
    if input.state.sandbox().is_none_or(|sandbox| !sandbox.ready) {
        return BTreeSet::new();
    }
    let all = init_containers(input.pod).iter().filter(|spec| !is_sidecar(spec));
    all.filter(|spec| mains_began(input) || succeeded(input, spec)).map(|spec| spec.name.as_str()).collect()
}

/// Goes through the init containers in order; true when the main containers may run.
fn init(input: Input<'_>, plan: &mut Plan) -> bool {
    let mains_began = mains_began(input);
    for spec in init_containers(input.pod) {
        let current = input.state.current(&spec.name);
        if is_sidecar(spec) {
            start_if_due(input, spec, plan);
            let up = current.is_some_and(|c| started(spec, c, input.memory));
            if !up && !mains_began {
                return false;
            }
        } else if !mains_began && !succeeded(input, spec) {
            start_if_due(input, spec, plan);
            return false;
        }
    }
    true
}

fn start_if_due(input: Input<'_>, spec: &Spec, plan: &mut Plan) {
    let name = &spec.name;
    let before = input.memory.backoff.get(name).copied();
    let mut backoff = before;
    if let Some(current) = input.state.current(name) {
        match current.phase {
            Phase::Running => return,
            Phase::Exited => {
                if !starts_again(input.pod, spec, current) {
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
    } else if !init_containers(input.pod).iter().any(|one| one.name == *name)
        && input
            .state
            .newest(name)
            .is_some_and(|c| c.phase == Phase::Exited && !starts_again(input.pod, spec, c))
    {
        // It came to its end in a sandbox before. (Init containers prepare the new one too.)
        return;
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
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
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
