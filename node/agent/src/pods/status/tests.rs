use serde_json::{Value, json};

use super::*;
use crate::pods::backoff::Backoff;
use crate::pods::state::{Container, Failed, Memory, Phase, PodState, Sandbox, Waiting};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}))
        .expect("a Pod")
}

fn container(phase: Phase, exit_code: i32, attempt: u32) -> Container {
    Container {
        id: format!("c{attempt}"),
        sandbox: "s".into(),
        name: "a".into(),
        attempt,
        phase,
        exit_code,
        started_at: 90_000_000_000,
        finished_at: 100_000_000_000,
        image_ref: "app@sha256:1".into(),
        ..Default::default()
    }
}

fn observe(pod: &Pod, containers: Vec<Container>, memory: &Memory) -> Value {
    let sandbox =
        Sandbox { id: "s".into(), ready: true, ips: vec!["127.64.0.2".into()], ..Default::default() };
    let state = PodState { runtime: "coracle".into(), sandboxes: vec![sandbox], containers };
    let now = Timestamp::from_second(105).expect("a time");
    let input = Input { pod, fate: Fate::Runs, state: &state, memory, now };
    serde_json::to_value(status(input, "127.0.1.1")).expect("JSON")
}

#[test]
fn a_pod_on_its_way_out_has_come_to_its_end() {
    let pod = pod(json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "app:v1"}]}));
    let phase = |fate, phase, code| {
        let sandbox = Sandbox { id: "s".into(), ..Default::default() };
        let state = PodState {
            runtime: "r".into(),
            sandboxes: vec![sandbox],
            containers: vec![container(phase, code, 0)],
        };
        let now = Timestamp::from_second(105).expect("a time");
        let memory = Memory::default();
        let input = Input { pod: &pod, fate, state: &state, memory: &memory, now };
        status(input, "127.0.1.1").phase.unwrap_or_default()
    };
    assert_eq!(phase(Fate::Leaves, Phase::Running, 0), "Running");
    assert_eq!(phase(Fate::Leaves, Phase::Exited, 0), "Succeeded");
    assert_eq!(phase(Fate::Leaves, Phase::Exited, 137), "Failed");
    assert_eq!(phase(Fate::Runs, Phase::Exited, 0), "Running");
}

#[test]
fn readiness_gates_and_disruption() {
    let mut pod = pod(json!({"containers": [{"name": "a", "image": "app:v1"}],
        "readinessGates": [{"conditionType": "a/x"}, {"conditionType": "a/y"}]}));
    let said = json!({"conditions": [{"type": "a/y", "status": "False"}]});
    pod.status = Some(serde_json::from_value(said).expect("a status"));
    let running = observe(&pod, vec![container(Phase::Running, 0, 0)], &Memory::default());
    let words = "corresponding condition of pod readiness gate \"a/x\" does not exist., \
        the status of pod readiness gate \"a/y\" is not \"True\", but False";
    assert_eq!(condition(&running, "Ready")["message"], words);
    assert_eq!(condition(&running, "ContainersReady")["status"], "True");
    let failed = Failed { reason: "Evicted".into(), message: "m".into(), disrupted: true, grace: None };
    let memory = Memory { failed: Some(failed), ..Default::default() };
    let evicted = observe(&pod, vec![container(Phase::Exited, 137, 0)], &memory);
    assert_eq!((&evicted["phase"], &evicted["reason"]), (&json!("Failed"), &json!("Evicted")));
    assert_eq!(condition(&evicted, "DisruptionTarget")["reason"], "TerminationByKubelet");
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let all = status["conditions"].as_array().expect("conditions");
    all.iter().find(|c| c["type"] == kind).expect("the condition")
}

#[test]
fn running_and_ready() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "app:v1"}]}));
    let status = observe(&pod, vec![container(Phase::Running, 0, 0)], &Memory::default());
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "127.64.0.2");
    assert_eq!(status["hostIP"], "127.0.1.1");
    assert_eq!(condition(&status, "Ready")["status"], "True");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "coracle://c0");
    assert_eq!(container["state"]["running"]["startedAt"], "1970-01-01T00:01:30Z");
    assert_eq!((&container["ready"], &container["started"]), (&json!(true), &json!(true)));
}

#[test]
fn crash_loop() {
    let pod = pod(json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "app:v1"}]}));
    let mut memory = Memory::default();
    memory.backoff.insert("a".into(), Backoff { seconds: 10 });
    let status = observe(&pod, vec![container(Phase::Exited, 134, 1)], &memory);
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=a pod=p_ns(u)"
    );
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 134);
    assert_eq!(container["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(container["restartCount"], 1);
    assert_eq!(status["phase"], "Running");
    let ready = condition(&status, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("ContainersNotReady")));
    assert_eq!(ready["message"], "containers with unready status: [a]");
}

#[test]
fn ends() {
    for (policy, code, phase) in [
        ("Never", 0, "Succeeded"),
        ("Never", 3, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 3, "Running"),
    ] {
        let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "app:v1"}]}));
        let status = observe(&pod, vec![container(Phase::Exited, code, 0)], &Memory::default());
        assert_eq!(status["phase"], phase, "{policy} {code}");
    }
}

#[test]
fn a_container_that_is_replaced_is_no_end() {
    for (policy, phase) in [("OnFailure", "Running"), ("Always", "Running"), ("Never", "Succeeded")] {
        let pod = pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "app:v1"}]}));
        let replaced = Container { replaced: true, ..container(Phase::Exited, 0, 0) };
        let status = observe(&pod, vec![replaced], &Memory::default());
        assert_eq!(status["phase"], phase, "{policy}");
    }
}

#[test]
fn a_crashed_sidecar_is_not_ready() {
    let pod =
        pod(json!({"restartPolicy": "Always", "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "app:v1"}]}));
    let sidecar =
        |phase, exit_code| Container { name: "s".into(), id: "s0".into(), ..container(phase, exit_code, 0) };
    for (phase, code, ready) in
        [(Phase::Running, 0, "True"), (Phase::Exited, 0, "False"), (Phase::Exited, 1, "False")]
    {
        let status =
            observe(&pod, vec![container(Phase::Running, 0, 0), sidecar(phase, code)], &Memory::default());
        let condition = condition(&status, "Ready");
        assert_eq!(condition["status"], ready, "{phase:?} {code}: {status}");
        assert_eq!(status["initContainerStatuses"][0]["ready"], ready == "True");
        if ready == "False" {
            assert_eq!(condition["message"], "containers with unready status: [s]");
        }
    }
}

#[test]
fn a_pod_on_its_nodes_network_has_its_address() {
    for (host_network, ips) in [(true, json!([{"ip": "127.0.1.1"}])), (false, Value::Null)] {
        let pod = pod(json!({"hostNetwork": host_network, "containers": [{"name": "a", "image": "app:v1"}]}));
        let sandbox = Sandbox { id: "s".into(), ready: true, ..Default::default() };
        let mut state = PodState {
            sandboxes: vec![sandbox],
            containers: vec![container(Phase::Running, 0, 0)],
            ..Default::default()
        };
        state.on_network_of(&pod, std::net::IpAddr::from([127, 0, 1, 1]));
        let (memory, now) = (Memory::default(), Timestamp::from_second(105).expect("a time"));
        let input = Input { pod: &pod, fate: Fate::Runs, state: &state, memory: &memory, now };
        let status = serde_json::to_value(status(input, "127.0.1.1")).expect("JSON");
        assert_eq!(status["podIPs"], ips);
        assert_eq!(status["podIP"], ips[0]["ip"]);
        assert_eq!(condition(&status, "PodReadyToStartContainers")["status"] == "True", host_network);
    }
}

#[test]
fn waiting_reasons() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "app:v1"}]}));
    let status = observe(&pod, vec![], &Memory::default());
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    let mut memory = Memory::default();
    let why = Waiting { reason: "ErrImagePull".into(), message: "gone".into(), ..Default::default() };
    memory.waiting.insert("a".into(), why);
    let status = observe(&pod, vec![], &memory);
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"],
        json!({"reason": "ErrImagePull", "message": "gone"})
    );
}

#[test]
fn init_containers_hold_up() {
    let pod =
        pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a", "image": "app:v1"}]}));
    let status = observe(&pod, vec![], &Memory::default());
    assert_eq!(condition(&status, "Initialized")["message"], "containers with incomplete status: [i]");
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(status["initContainerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
}

#[test]
fn readiness_outlives_the_agent() {
    let probe = json!({"tcpSocket": {"port": 1}});
    let mut pod = pod(json!({"containers": [{"name": "a", "image": "app:v1", "readinessProbe": probe}]}));
    let running = vec![container(Phase::Running, 0, 0)];
    assert_eq!(observe(&pod, running.clone(), &Memory::default())["containerStatuses"][0]["ready"], false);
    let old = json!({"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true,
        "restartCount": 0, "containerID": "coracle://c0"}]});
    pod.status = Some(serde_json::from_value(old).expect("a status"));
    assert_eq!(observe(&pod, running, &Memory::default())["containerStatuses"][0]["ready"], true);
}
