//! The columns of pods: readiness, what the pod is up to, restarts.

use coracle_api::time;
use coracle_apiserver::Column;
use jiff::Timestamp;
use serde_json::Value;

use crate::table::{self, or_none};
use crate::value::{at, flag, items, number, present, text};

/// The columns.
pub static COLUMNS: [Column; 9] = [
    table::NAME,
    table::string("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    table::string("Status", "The aggregate status of the containers in this pod."),
    table::string(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    table::AGE,
    table::wide(
        "IP",
        "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.",
    ),
    table::wide(
        "Node",
        "NodeName indicates in which node this pod is scheduled. If empty, this pod is a candidate for scheduling by the scheduler defined in schedulerName. Once this field is set, the kubelet for this node becomes responsible for the lifecycle of this pod. This field should not be used to express a desire for the pod to be scheduled on a specific node. https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#nodename",
    ),
    table::wide(
        "Nominated Node",
        "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be scheduled right away as preemption victims receive their graceful termination periods. This field does not guarantee that the pod will be scheduled on this node. Scheduler may decide to place the pod elsewhere if other nodes become available sooner. Scheduler may also decide to give the resources on this node to a higher priority pod that is created after preemption. As a result, this field may be different than PodSpec.nodeName when the pod is scheduled.",
    ),
    table::wide(
        "Readiness Gates",
        "If specified, all readiness gates will be evaluated for pod readiness. A pod is ready when all its containers are ready AND all conditions specified in the readiness gates have status equal to \"True\" More info: https://git.k8s.io/enhancements/keps/sig-network/580-pod-readiness-gates",
    ),
];

/// The cells.
pub fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, table::duration(now.as_second() - at.as_second()))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = match items(pod, "/status/podIPs").first() {
        Some(first) => text(first, "/ip"),
        None => text(pod, "/status/podIP"),
    };
    vec![
        table::name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        table::age(pod, now),
        or_none(ip),
        or_none(text(pod, "/spec/nodeName")),
        or_none(text(pod, "/status/nominatedNodeName")),
        gates(pod),
    ]
}

fn gates(pod: &Value) -> Value {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let passed = gates.iter().filter(|g| condition(pod, text(g, "/conditionType"))).count();
    format!("{passed}/{}", gates.len()).into()
}

/// Whether a condition is there and true.
fn condition(pod: &Value, r#type: &str) -> bool {
    items(pod, "/status/conditions")
        .iter()
        .any(|c| text(c, "/type") == r#type && text(c, "/status") == "True")
}

/// What `kubectl get pods` says in a few words.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

/// Restarts of some containers, and when the last was.
#[derive(Default, Clone, Copy)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += number(status, "/restartCount");
        let finished = time::parse(text(status, "/lastState/terminated/finishedAt"));
        self.last = self.last.max(finished);
    }
}

/// `ExitCode:1`, `Signal:9` or the reason of a terminated container.
fn ended(status: &Value) -> String {
    let state = at(status, "/state/terminated");
    match (text(state, "/reason"), number(state, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(state, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_string(),
    }
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let phase = text(pod, "/status/phase");
        let mut s = Summary {
            ready: 0,
            total: items(pod, "/spec/containers").len(),
            reason: match text(pod, "/status/reason") {
                "" => phase.to_string(),
                reason => reason.to_string(),
            },
            restarts: 0,
            last_restart: None,
        };
        let gated =
            |c: &&Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
        if items(pod, "/status/conditions").iter().any(|c| gated(&c)) {
            s.reason = "SchedulingGated".into();
        }
        let (initializing, mut restarts, sidecars) = s.init_containers(pod);
        if !initializing || condition(pod, "Initialized") {
            restarts = sidecars;
            s.containers(pod, &mut restarts);
        }
        (s.restarts, s.last_restart) = (restarts.count, restarts.last);
        if present(pod, "/metadata/deletionTimestamp") {
            if text(pod, "/status/reason") == "NodeLost" {
                s.reason = "Unknown".into();
            } else if !matches!(phase, "Failed" | "Succeeded") {
                s.reason = "Terminating".into();
            }
        }
        s
    }

    /// Looks at init containers up to the first that is not done. Answers whether there is one, the restarts of all seen,
    /// and the restarts of those that keep running.
    fn init_containers(&mut self, pod: &Value) -> (bool, Restarts, Restarts) {
        let specs = items(pod, "/spec/initContainers");
        let keeps = |name: &str| {
            specs.iter().any(|c| text(c, "/name") == name && text(c, "/restartPolicy") == "Always")
        };
        self.total += specs.iter().filter(|c| text(c, "/restartPolicy") == "Always").count();
        let (mut all, mut sidecars) = (Restarts::default(), Restarts::default());
        for (i, status) in items(pod, "/status/initContainerStatuses").iter().enumerate() {
            all.add(status);
            let sidecar = keeps(text(status, "/name"));
            if sidecar {
                sidecars.add(status);
            }
            let terminated = present(status, "/state/terminated");
            let waiting = text(status, "/state/waiting/reason");
            if terminated && number(status, "/state/terminated/exitCode") == 0 {
                continue;
            }
            if sidecar && flag(status, "/started") {
                self.ready += usize::from(flag(status, "/ready"));
                continue;
            }
            self.reason = if terminated {
                format!("Init:{}", ended(status))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", specs.len())
            };
            return (true, all, sidecars);
        }
        (false, all, sidecars)
    }

    fn containers(&mut self, pod: &Value, restarts: &mut Restarts) {
        let mut running = false;
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_string();
            } else if present(status, "/state/terminated") {
                self.reason = ended(status);
            } else if flag(status, "/ready") && present(status, "/state/running") {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if condition(pod, "Ready") { "Running" } else { "NotReady" }.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cells(pod: Value) -> (String, String, String) {
        let row = row(&pod, "2026-01-01T00:05:00Z".parse().unwrap());
        let cell = |i: usize| row.get(i).and_then(Value::as_str).unwrap_or_default().to_string();
        (cell(1), cell(2), cell(3))
    }

    fn expect(pod: Value, ready: &str, status: &str, restarts: &str) {
        assert_eq!(cells(pod.clone()), (ready.into(), status.into(), restarts.into()), "{pod}");
    }

    #[test]
    fn the_words_of_kubectl() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        expect(json!({"spec": spec, "status": {"phase": "Pending"}}), "0/2", "Pending", "0");
        let running = json!({"ready": true, "restartCount": 2, "state": {"running": {}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:02:00Z"}}});
        let crash = json!({"restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let done =
            json!({"restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let exit = json!({"restartCount": 0, "state": {"terminated": {"exitCode": 3}}});
        let with = |a: &Value, b: &Value| json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [a, b]}});
        expect(with(&running, &running), "2/2", "Running", "4 (3m ago)");
        expect(with(&running, &crash), "1/2", "CrashLoopBackOff", "3 (3m ago)");
        expect(with(&running, &done), "1/2", "NotReady", "2 (3m ago)");
        expect(with(&exit, &exit), "0/2", "ExitCode:3", "0");
        let mut leaving = with(&running, &running);
        leaving["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        expect(leaving, "2/2", "Terminating", "4 (3m ago)");
    }

    #[test]
    fn init_containers() {
        let spec = json!({"containers": [{"name": "a"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        let with = |statuses: Value| json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": statuses}});
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        expect(with(json!([{"name": "i", "state": {"running": {}}}])), "0/2", "Init:0/2", "0");
        expect(
            with(json!([{"name": "i", "state": {"terminated": {"exitCode": 2}}}])),
            "0/2",
            "Init:ExitCode:2",
            "0",
        );
        expect(
            with(json!([{"name": "i", "state": {"waiting": {"reason": "ErrImagePull"}}}])),
            "0/2",
            "Init:ErrImagePull",
            "0",
        );
        expect(
            with(json!([done, {"name": "s", "started": true, "ready": true, "state": {"running": {}}}])),
            "1/2",
            "Pending",
            "0",
        );
    }
}
