//! What to do when a wasm host answers: our records on one side, what the host holds on the other. Pure.
//!
//! The host is right about what runs; the records are right about what should exist. A host that was started anew holds
//! nothing: its sandboxes are made again (same id, same address), its containers have exited.

use std::collections::{BTreeMap, BTreeSet};

use coracle_wasm::protocol::{Listing, State};

use crate::record::{ContainerRecord, SandboxRecord, lost};

/// The exit code of a container that was killed with its host: as of a process that got SIGKILL.
const KILLED: i32 = 137;
/// The exit code of a container that was never started and is gone: nothing is known.
const UNKNOWN: i32 = 255;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The host lost it: make it again.
    CreateSandbox(String),
    /// It was stopped here, but the host has not heard.
    StopSandbox(String),
    /// Nobody asked for it, or its record is gone.
    RemoveSandbox(String),
    RemoveContainer(String),
    /// This is the container's state now.
    Observe(String, State),
}

/// The steps that bring host and records together, in order.
pub fn plan(sandboxes: &[SandboxRecord], containers: &[ContainerRecord], host: &Listing) -> Vec<Action> {
    let mut actions = Vec::new();
    let known: BTreeMap<&str, bool> = sandboxes.iter().map(|s| (s.id.as_str(), s.ready)).collect();
    let held: BTreeMap<&str, bool> = host.sandboxes.iter().map(|s| (s.spec.id.as_str(), s.ready)).collect();
    for id in held.keys().filter(|id| !known.contains_key(*id)) {
        actions.push(Action::RemoveSandbox((*id).to_owned()));
    }
    for (id, ready) in &known {
        match (ready, held.get(id)) {
            (true, None) => actions.push(Action::CreateSandbox((*id).to_owned())),
            // A sandbox cannot become ready again: a new one of the same id takes its place.
            (true, Some(false)) => {
                actions.push(Action::RemoveSandbox((*id).to_owned()));
                actions.push(Action::CreateSandbox((*id).to_owned()));
            }
            (false, Some(true)) => actions.push(Action::StopSandbox((*id).to_owned())),
            _ => {}
        }
    }

    let ours: BTreeSet<&str> = containers.iter().map(|c| c.id.as_str()).collect();
    let running: BTreeMap<&str, &State> =
        host.containers.iter().map(|c| (c.spec.id.as_str(), &c.state)).collect();
    for status in &host.containers {
        let (id, pod) = (status.spec.id.as_str(), status.spec.sandbox_id.as_str());
        if !ours.contains(id) && known.contains_key(pod) {
            actions.push(Action::RemoveContainer(id.to_owned()));
        }
    }
    for record in containers {
        // The containers of a sandbox that is made again went with it.
        let gone = known.get(record.sandbox_id.as_str()) == Some(&true)
            && held.get(record.sandbox_id.as_str()) == Some(&false);
        let there = running.get(record.id.as_str()).copied().filter(|_| !gone);
        let now = match (&record.state, there) {
            (State::Exited { .. }, Some(State::Running { .. })) => {
                actions.push(Action::RemoveContainer(record.id.clone()));
                continue;
            }
            (State::Exited { .. }, _) => continue,
            (State::Running { started_at_ns }, None | Some(State::Created)) => {
                lost(*started_at_ns, KILLED, "the wasm host process that ran it ended")
            }
            (State::Created, None) => lost(0, UNKNOWN, "the wasm host process ended before it was started"),
            (_, Some(state)) => state.clone(),
        };
        if now != record.state {
            actions.push(Action::Observe(record.id.clone(), now));
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_wasm::protocol::{ContainerSpec, ContainerStatus, Kind, SandboxSpec, SandboxStatus};

    fn sandbox(id: &str, ready: bool) -> SandboxRecord {
        SandboxRecord {
            id: id.into(),
            config: Default::default(),
            runtime_handler: String::new(),
            ready,
            created_at_ns: 1,
            ip: [127, 72, 0, 2].into(),
            linux: false,
            host_network: false,
            host: 0,
        }
    }

    fn container(id: &str, pod: &str, state: State) -> ContainerRecord {
        ContainerRecord {
            id: id.into(),
            sandbox_id: pod.into(),
            config: Default::default(),
            image_ref: String::new(),
            image_id: String::new(),
            log_path: Default::default(),
            created_at_ns: 1,
            state,
            linux: false,
            stop_signal: String::new(),
        }
    }

    fn listing(sandboxes: &[(&str, bool)], containers: &[(&str, &str, State)]) -> Listing {
        let dns = Default::default();
        let sandbox = |(id, ready): &(&str, bool)| SandboxStatus {
            spec: SandboxSpec {
                id: (*id).into(),
                name: String::new(),
                namespace: String::new(),
                uid: String::new(),
                hostname: String::new(),
                pod_ip: [127, 72, 0, 2].into(),
                netns: None,
                dns: Clone::clone(&dns),
                annotations: Default::default(),
            },
            ready: *ready,
            created_at_ns: 1,
        };
        let container = |(id, pod, state): &(&str, &str, State)| ContainerStatus {
            spec: ContainerSpec {
                id: (*id).into(),
                sandbox_id: (*pod).into(),
                name: String::new(),
                attempt: 0,
                artifact: Default::default(),
                args: Vec::new(),
                env: Vec::new(),
                working_dir: String::new(),
                mounts: Vec::new(),
                http_ports: Vec::new(),
                log_path: Default::default(),
                memory_limit_bytes: None,
                cpu_millis: None,
                fresh_instance: false,
                stdin: false,
                stdin_once: false,
                capabilities: Default::default(),
                links: Vec::new(),
                linked: false,
            },
            kind: Kind::Command,
            state: state.clone(),
            created_at_ns: 1,
        };
        Listing {
            sandboxes: sandboxes.iter().map(sandbox).collect(),
            containers: containers.iter().map(container).collect(),
        }
    }

    const RUNNING: State = State::Running { started_at_ns: 5 };

    #[test]
    fn an_adopted_host_needs_nothing() {
        let sandboxes = [sandbox("a", true)];
        let containers = [container("c", "a", RUNNING)];
        assert_eq!(plan(&sandboxes, &containers, &listing(&[("a", true)], &[("c", "a", RUNNING)])), []);
    }

    #[test]
    fn a_new_host_gets_the_sandboxes_and_their_containers_have_exited() {
        let sandboxes = [sandbox("a", true), sandbox("b", false)];
        let containers = [container("c", "a", RUNNING), container("d", "a", State::Created)];
        let actions = plan(&sandboxes, &containers, &Listing::default());
        assert_eq!(actions.len(), 3, "{actions:?}");
        assert_eq!(actions[0], Action::CreateSandbox("a".into()));
        for (action, id, code, started) in [(&actions[1], "c", 137, 5), (&actions[2], "d", 255, 0)] {
            match action {
                Action::Observe(found, State::Exited { exit_code, started_at_ns, reason, .. }) => {
                    assert_eq!(
                        (found.as_str(), *exit_code, *started_at_ns, reason.as_str()),
                        (id, code, started, "Error")
                    );
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_nobody_remembers_is_removed() {
        let host = listing(&[("a", true), ("x", true)], &[("o", "a", RUNNING), ("y", "x", RUNNING)]);
        let actions = plan(&[sandbox("a", true)], &[], &host);
        assert_eq!(actions, [Action::RemoveSandbox("x".into()), Action::RemoveContainer("o".into())]);
    }

    #[test]
    fn what_happened_while_the_service_was_away_is_learned() {
        let exited = lost(5, 3, "");
        let sandboxes = [sandbox("a", true), sandbox("b", false)];
        let containers = [
            container("c", "a", RUNNING),
            container("d", "a", State::Created),
            container("e", "b", exited.clone()),
        ];
        let host = listing(
            &[("a", true), ("b", true)],
            &[("c", "a", exited.clone()), ("d", "a", RUNNING), ("e", "b", RUNNING)],
        );
        assert_eq!(
            plan(&sandboxes, &containers, &host),
            [
                Action::StopSandbox("b".into()),
                Action::Observe("c".into(), exited),
                Action::Observe("d".into(), RUNNING),
                Action::RemoveContainer("e".into()),
            ]
        );
    }
}
