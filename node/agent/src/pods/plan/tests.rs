use serde_json::json;

use super::*;
use crate::pods::state::{Probed, Sandbox, Waiting};

fn pod(policy: &str, init: &[&str], mains: &[&str]) -> Pod {
    let containers =
        |names: &[&str]| names.iter().map(|n| json!({"name": n, "image": "app:v1"})).collect::<Vec<_>>();
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {"restartPolicy": policy, "initContainers": containers(init), "containers": containers(mains),
                 "terminationGracePeriodSeconds": 7},
    }))
    .expect("a Pod")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn state(containers: &[(&str, u32, Phase, i32)]) -> PodState {
    let mut state = PodState {
        runtime: "coracle".into(),
        sandboxes: vec![Sandbox { id: "s".into(), ready: true, ..Default::default() }],
        containers: containers
            .iter()
            .map(|(name, attempt, phase, exit_code)| Container {
                id: format!("{name}{attempt}"),
                sandbox: "s".into(),
                name: (*name).into(),
                attempt: *attempt,
                phase: *phase,
                exit_code: *exit_code,
                started_at: 90_000_000_000,
                finished_at: 100_000_000_000,
                ..Default::default()
            })
            .collect(),
    };
    state.sort();
    state
}

fn mounted() -> Memory {
    Memory { mounted: true, ..Default::default() }
}

fn decide(pod: &Pod, fate: Fate, state: &PodState, memory: &Memory, now: i64) -> Plan {
    plan(Input { pod, fate, state, memory, now: at(now) })
}

fn end(id: &str, name: &str, why: &str, grace: i64, turn: usize) -> Ending {
    let replaces = why.ends_with("will be restarted");
    Ending { id: id.into(), name: name.into(), why: why.into(), grace, turn, replaces }
}

fn start(name: &str, attempt: u32, backoff: Option<i64>) -> Action {
    Action::Start { name: name.into(), attempt, backoff: backoff.map(|seconds| Backoff { seconds }) }
}

#[test]
fn a_new_pod_mounts_then_gets_a_sandbox_then_starts() {
    let pod = pod("Always", &[], &["a", "b"]);
    let none = PodState::default();
    assert_eq!(decide(&pod, Fate::Runs, &none, &Memory::default(), 0).actions, [Action::Mount]);
    assert_eq!(decide(&pod, Fate::Runs, &none, &mounted(), 0).actions, [Action::RunSandbox { attempt: 0 }]);
    let plan = decide(&pod, Fate::Runs, &state(&[]), &mounted(), 0);
    assert_eq!(plan.actions, [start("a", 0, None), start("b", 0, None)]);
}

#[test]
fn init_containers_run_in_order() {
    let pod = pod("Always", &["i", "j"], &["a"]);
    type Row<'a> = (&'a [(&'a str, u32, Phase, i32)], &'a [Action]);
    let table: &[Row<'_>] = &[
        (&[], &[start("i", 0, None)]),
        (&[("i", 0, Phase::Running, 0)], &[]),
        (&[("i", 0, Phase::Exited, 0)], &[start("j", 0, None)]),
        (&[("i", 0, Phase::Exited, 1)], &[start("i", 1, Some(10))]),
        (&[("i", 0, Phase::Exited, 0), ("j", 0, Phase::Exited, 0)], &[start("a", 0, None)]),
        (&[("a", 0, Phase::Running, 0)], &[]),
    ];
    for (containers, actions) in table {
        assert_eq!(
            &decide(&pod, Fate::Runs, &state(containers), &mounted(), 200).actions,
            actions,
            "{containers:?}"
        );
    }
}

#[test]
fn init_containers_are_done_once_a_sandbox() {
    let pod = pod("Always", &["i", "j"], &["a"]);
    let done = |state: &PodState| -> String {
        let memory = mounted();
        let input = Input { pod: &pod, fate: Fate::Runs, state, memory: &memory, now: at(0) };
        super::done(input).into_iter().collect()
    };
    assert_eq!(done(&state(&[("i", 0, Phase::Exited, 0), ("j", 0, Phase::Exited, 1)])), "i");
    // The runtime may have forgotten them.
    let mut began = state(&[("a", 0, Phase::Exited, 1)]);
    assert_eq!(done(&began), "ij");
    began.sandboxes.iter_mut().for_each(|sandbox| sandbox.ready = false);
    assert_eq!(done(&began), "");
}

#[test]
fn restart_policies() {
    let table = [
        ("Always", 0, vec![start("a", 1, Some(10))]),
        ("Always", 1, vec![start("a", 1, Some(10))]),
        ("OnFailure", 1, vec![start("a", 1, Some(10))]),
        ("OnFailure", 0, vec![Action::StopSandbox { id: "s".into() }]),
        ("Never", 1, vec![Action::StopSandbox { id: "s".into() }]),
    ];
    for (policy, code, actions) in table {
        let state = state(&[("a", 0, Phase::Exited, code)]);
        let plan = decide(&pod(policy, &[], &["a"]), Fate::Runs, &state, &mounted(), 100);
        assert_eq!(plan.actions, actions, "{policy} {code}");
    }
}

#[test]
fn what_was_ended_to_start_anew_does_whatever_its_exit_code() {
    let ended = |code| {
        let mut state = state(&[("a", 0, Phase::Exited, code)]);
        state.containers[0].replaced = true;
        state
    };
    let over = vec![Action::StopSandbox { id: "s".into() }];
    for (policy, code, actions) in [
        ("OnFailure", 0, vec![start("a", 1, Some(10))]),
        ("Always", 0, vec![start("a", 1, Some(10))]),
        ("Never", 0, over.clone()),
        ("Never", 137, over),
    ] {
        let plan = decide(&pod(policy, &[], &["a"]), Fate::Runs, &ended(code), &mounted(), 100);
        assert_eq!(plan.actions, actions, "{policy} {code}");
    }
}

#[test]
fn what_is_over_does_not_run_again_in_a_new_sandbox() {
    let mut before = state(&[("a", 0, Phase::Exited, 0), ("b", 0, Phase::Exited, 137)]);
    before.sandboxes.insert(0, Sandbox { id: "t".into(), ready: true, attempt: 1, ..Default::default() });
    let plan =
        |policy: &str| decide(&pod(policy, &[], &["a", "b"]), Fate::Runs, &before, &mounted(), 200).actions;
    assert_eq!(plan("OnFailure"), [start("b", 1, None)]);
    assert_eq!(plan("Always"), [start("a", 1, None), start("b", 1, None)]);
    // Init containers run again: what they made for the containers may be gone.
    let mut before = state(&[("i", 0, Phase::Exited, 0), ("a", 0, Phase::Exited, 137)]);
    before.sandboxes.insert(0, Sandbox { id: "t".into(), ready: true, attempt: 1, ..Default::default() });
    let again = decide(&pod("OnFailure", &["i"], &["a"]), Fate::Runs, &before, &mounted(), 200);
    assert_eq!(again.actions, [start("i", 1, None)]);
}

#[test]
fn the_second_crash_waits() {
    let pod = pod("Always", &[], &["a"]);
    let state = state(&[("a", 1, Phase::Exited, 1), ("a", 0, Phase::Exited, 1)]);
    let mut memory = mounted();
    memory.backoff.insert("a".into(), Backoff { seconds: 10 });
    let early = decide(&pod, Fate::Runs, &state, &memory, 105);
    assert_eq!(early.wake, Some(at(110)));
    let message = "back-off 10s restarting failed container=a pod=p_ns(u)".to_owned();
    assert_eq!(early.actions, [Action::BackOff { name: "a".into(), message }]);
    assert_eq!(decide(&pod, Fate::Runs, &state, &memory, 110).actions, [start("a", 2, Some(20))]);
}

#[test]
fn a_failed_pull_waits_for_its_time() {
    let pod = pod("Always", &[], &["a"]);
    let mut memory = mounted();
    memory.waiting.insert("a".into(), Waiting { retry_at: at(30), ..Default::default() });
    let plan = decide(&pod, Fate::Runs, &state(&[]), &memory, 20);
    assert_eq!((plan.actions, plan.wake), (vec![], Some(at(30))));
    assert_eq!(decide(&pod, Fate::Runs, &state(&[]), &memory, 30).actions, [start("a", 0, None)]);
}

#[test]
fn leaving_stops_then_tears_down_then_deletes() {
    let pod = pod("Always", &[], &["a"]);
    let running = state(&[("a", 0, Phase::Running, 0)]);
    let stop = |grace| Action::Stop(vec![end("a0", "a", "Stopping container a", grace, 0)]);
    assert_eq!(decide(&pod, Fate::Leaves, &running, &mounted(), 0).actions, [stop(7)]);
    // What is left of the grace counts, and a pod that is gone has none.
    let memory = Memory { ending_since: Some(at(100)), ..mounted() };
    assert_eq!(decide(&pod, Fate::Leaves, &running, &memory, 104).actions, [stop(3)]);
    assert_eq!(decide(&pod, Fate::Gone, &running, &memory, 104).actions, [stop(1)]);
    let mut dead = state(&[("a", 0, Phase::Exited, 143)]);
    assert_eq!(
        decide(&pod, Fate::Leaves, &dead, &mounted(), 0).actions,
        [Action::StopSandbox { id: "s".into() }]
    );
    dead.sandboxes[0].ready = false;
    let last = [Action::RemoveSandbox { id: "s".into() }, Action::RemoveFiles, Action::Finish];
    assert_eq!(decide(&pod, Fate::Gone, &dead, &mounted(), 0).actions, last);
    assert_eq!(decide(&pod, Fate::Leaves, &dead, &mounted(), 0).actions[0], Action::Delete);
}

#[test]
fn a_dead_sandbox_is_replaced() {
    let pod = pod("Always", &[], &["a"]);
    let mut state = state(&[("a", 0, Phase::Exited, 137)]);
    state.sandboxes[0].ready = false;
    let plan = decide(&pod, Fate::Runs, &state, &mounted(), 0);
    assert_eq!(plan.actions, [Action::StopSandbox { id: "s".into() }, Action::RunSandbox { attempt: 1 }]);
}

#[test]
fn attempts_go_on_when_the_runtime_forgot() {
    let mut pod = pod("Always", &[], &["a"]);
    let old = json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true,
        "restartCount": 3, "containerID": "coracle://x"}]});
    pod.status = Some(serde_json::from_value(old).expect("a status"));
    assert_eq!(decide(&pod, Fate::Runs, &state(&[]), &mounted(), 0).actions, [start("a", 4, None)]);
}

#[test]
fn a_doomed_container_is_stopped() {
    let pod = pod("Always", &[], &["a"]);
    let mut memory = mounted();
    memory.probed.entry("a0".into()).or_default().doomed = Some(Doom::Liveness);
    let plan = decide(&pod, Fate::Runs, &state(&[("a", 0, Phase::Running, 0)]), &memory, 0);
    let why = "Container a failed liveness probe, will be restarted".to_owned();
    assert_eq!(plan.actions, [Action::Stop(vec![end("a0", "a", &why, 7, 0)])]);
    let mut hasty = pod.clone();
    let probe = json!({"httpGet": {"port": 1}, "terminationGracePeriodSeconds": 2});
    hasty.spec.as_mut().expect("a spec").containers[0].liveness_probe = serde_json::from_value(probe).ok();
    let plan = decide(&hasty, Fate::Runs, &state(&[("a", 0, Phase::Running, 0)]), &memory, 0);
    assert_eq!(plan.actions, [Action::Stop(vec![end("a0", "a", &why, 2, 0)])]);
}

#[test]
fn sidecars_end_after_the_others_in_reverse() {
    let mut pod = pod("Always", &["i", "s", "t"], &["a"]);
    for sidecar in &mut pod.spec.as_mut().expect("a spec").init_containers.as_mut().expect("some")[1..] {
        sidecar.restart_policy = Some("Always".into());
    }
    let running =
        state(&[("s", 0, Phase::Running, 0), ("t", 0, Phase::Running, 0), ("a", 0, Phase::Running, 0)]);
    let why = |name| format!("Stopping container {name}");
    let expected = [("a0", "a", 0), ("t0", "t", 1), ("s0", "s", 2)];
    let expected = expected.map(|(id, name, turn)| end(id, name, &why(name), 7, turn)).to_vec();
    assert_eq!(decide(&pod, Fate::Leaves, &running, &mounted(), 0).actions, [Action::Stop(expected)]);
}

#[test]
fn containers_have_policies_of_their_own() {
    let own = |of: &str, policy: &str, rule: serde_json::Value| {
        let mut pod = pod(of, &[], &["a"]);
        let spec = &mut pod.spec.as_mut().expect("a spec").containers[0];
        spec.restart_policy = Some(policy.into());
        spec.restart_policy_rules = serde_json::from_value(rule).expect("rules");
        pod
    };
    let rule =
        |operator: &str| json!([{"action": "Restart", "exitCodes": {"operator": operator, "values": [42]}}]);
    let none = json!([]);
    let over = vec![Action::StopSandbox { id: "s".into() }];
    let again = vec![start("a", 1, Some(10))];
    for (of, policy, rule, code, actions) in [
        ("Always", "Never", &none, 1, &over),
        ("Never", "Always", &none, 0, &again),
        ("Never", "OnFailure", &none, 1, &again),
        ("Never", "OnFailure", &none, 0, &over),
        ("Never", "Never", &rule("In"), 42, &again),
        ("Never", "Never", &rule("In"), 43, &over),
        ("Never", "Never", &rule("NotIn"), 43, &again),
    ] {
        let state = state(&[("a", 0, Phase::Exited, code)]);
        let pod = own(of, policy, rule.clone());
        let plan = decide(&pod, Fate::Runs, &state, &mounted(), 100);
        assert_eq!(&plan.actions, actions, "{of} {policy} {rule} {code}");
    }
}

#[test]
fn a_probe_has_a_grace_of_its_own() {
    let mut pod = pod("Always", &[], &["a"]);
    let spec = pod.spec.as_mut().expect("a spec");
    spec.termination_grace_period_seconds = Some(600);
    let probe = json!({"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 3});
    spec.containers[0].liveness_probe = serde_json::from_value(probe).expect("a probe");
    spec.containers[0].startup_probe =
        serde_json::from_value(json!({"exec": {"command": ["x"]}})).expect("a probe");
    let running = state(&[("a", 0, Phase::Running, 0)]);
    let id = running.containers[0].id.clone();
    for (doom, grace, word) in [(Doom::Liveness, 3, "liveness"), (Doom::Startup, 600, "startup")] {
        let mut memory = mounted();
        memory.probed.insert(id.clone(), Probed { doomed: Some(doom), ..Default::default() });
        let plan = decide(&pod, Fate::Runs, &running, &memory, 0);
        let [Action::Stop(endings)] = plan.actions.as_slice() else { panic!("{plan:?}") };
        assert_eq!((endings[0].grace, endings.len()), (grace, 1));
        assert_eq!(endings[0].why, format!("Container a failed {word} probe, will be restarted"));
    }
    // Deleted meanwhile, the pod's own grace holds.
    let plan = decide(&pod, Fate::Leaves, &running, &mounted(), 0);
    let [Action::Stop(endings)] = plan.actions.as_slice() else { panic!("{plan:?}") };
    assert_eq!(endings[0].grace, 600);
}

#[test]
fn only_two_dead_containers_are_kept() {
    let pod = pod("Always", &[], &["a"]);
    let state = state(&[("a", 2, Phase::Running, 0), ("a", 1, Phase::Exited, 1), ("a", 0, Phase::Exited, 1)]);
    let plan = decide(&pod, Fate::Runs, &state, &mounted(), 0);
    assert_eq!(plan.actions, [Action::RemoveContainer { id: "a0".into() }]);
}

#[test]
fn a_deadline_ends_a_pod() {
    let mut pod = pod("Always", &[], &["a"]);
    pod.spec.as_mut().expect("a spec").active_deadline_seconds = Some(60);
    let start_time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100));
    pod.status =
        Some(k8s_openapi::api::core::v1::PodStatus { start_time: Some(start_time), ..Default::default() });
    let running = state(&[("a", 0, Phase::Running, 0)]);
    let early = decide(&pod, Fate::Runs, &running, &mounted(), 159);
    assert_eq!((early.actions.len(), early.wake), (0, Some(at(160))));
    let late = decide(&pod, Fate::Runs, &running, &mounted(), 160);
    assert!(matches!(late.actions.as_slice(), [Action::Stop(_)]), "{late:?}");
}

#[test]
fn a_linux_image_wants_another_sandbox() {
    let pod = pod("Always", &[], &["a"]);
    let mut memory = mounted();
    memory.needs_linux = true;
    let plan = decide(&pod, Fate::Runs, &state(&[]), &memory, 0);
    let expected = [Action::StopSandbox { id: "s".into() }, Action::RunSandbox { attempt: 1 }];
    assert_eq!(plan.actions, expected);
    let mut made = state(&[]);
    made.sandboxes[0].linux = true;
    assert_eq!(decide(&pod, Fate::Runs, &made, &memory, 0).actions, [start("a", 0, None)]);
}

#[test]
fn an_ephemeral_container_runs_once() {
    let mut pod = pod("Always", &[], &["a"]);
    let added = serde_json::from_value(json!([{"name": "debug", "image": "tools:v1"}])).expect("containers");
    pod.spec.as_mut().expect("a spec").ephemeral_containers = added;
    let running = state(&[("a", 0, Phase::Running, 0)]);
    assert_eq!(decide(&pod, Fate::Runs, &running, &mounted(), 0).actions, [start("debug", 0, None)]);
    let ended = state(&[("a", 0, Phase::Running, 0), ("debug", 0, Phase::Exited, 1)]);
    assert_eq!(decide(&pod, Fate::Runs, &ended, &mounted(), 1000).actions, []);
}

#[test]
fn a_pod_that_has_ended_gives_back_what_it_has_when_that_is_known() {
    let mut over = pod("Never", &[], &["a"]);
    let mut state = state(&[("a", 0, Phase::Exited, 0)]);
    let stop = [Action::StopSandbox { id: "s".into() }];
    assert_eq!(decide(&over, Fate::Runs, &state, &mounted(), 0).actions, stop);
    state.sandboxes[0].ready = false;
    // The status is written first: nobody is to wait for a driver.
    assert_eq!(decide(&over, Fate::Runs, &state, &mounted(), 0), Plan::default());
    over.status = serde_json::from_value(json!({"phase": "Succeeded"})).expect("a status");
    // An agent that knows nothing of it gives back again.
    for memory in [mounted(), Memory::default()] {
        assert_eq!(decide(&over, Fate::Runs, &state, &memory, 0).actions, [Action::GiveBack]);
    }
    let fails =
        Memory { mount_error: Some(Waiting { retry_at: at(9), ..Default::default() }), ..Default::default() };
    assert_eq!(decide(&over, Fate::Runs, &state, &fails, 8), Plan { actions: vec![], wake: Some(at(9)) });
    assert_eq!(decide(&over, Fate::Runs, &state, &fails, 9).actions, [Action::GiveBack]);
    let given = Memory { given_back: true, ..Default::default() };
    assert_eq!(decide(&over, Fate::Runs, &state, &given, 0), Plan::default());
    state.sandboxes[0].ready = true;
    assert_eq!(decide(&over, Fate::Runs, &state, &mounted(), 0).actions, stop, "what runs ends first");
}
