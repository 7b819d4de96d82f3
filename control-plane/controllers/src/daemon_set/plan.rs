//! From a DaemonSet, the nodes and its pods to what must be done. Pure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use serde_json::{Value, json};

use super::rolling;
use crate::history::REVISION_HASH;
use crate::placement::{selects, tolerates};
use crate::pod_control::{Victim, pod_of, victim};
use crate::view::{DaemonSet, DaemonSetStatus, Meta, Node, Pod, PodSpec};

/// Everything that a plan depends on.
pub struct State<'a> {
    pub set: &'a DaemonSet,
    pub nodes: &'a [Arc<Node>],
    /// The pods that it owns.
    pub pods: &'a [Arc<Pod>],
    /// The hash of the present revision.
    pub hash: &'a str,
    /// Whether the cache has seen all that was done before.
    pub settled: bool,
    /// Nodes whose failed pod stays for now.
    pub waiting: &'a HashSet<String>,
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub created: Vec<String>,
    pub deleted: Vec<Victim>,
    /// Pods that failed, among the deleted: the node and the pod.
    pub failed: Vec<(String, String)>,
    pub status: DaemonSetStatus,
}

/// The pods of a node, the newest last.
pub type OnNode<'a> = BTreeMap<String, Vec<&'a Arc<Pod>>>;

/// The plan.
pub fn plan(state: &State<'_>) -> Plan {
    let mut on_node: OnNode<'_> = BTreeMap::new();
    for pod in state.pods {
        if let Some(node) = target(pod) {
            on_node.entry(node).or_default().push(pod);
        }
    }
    for pods in on_node.values_mut() {
        pods.sort_by_key(|p| (p.created(), p.name().to_string()));
    }
    let template = PodTemplate::of(state.set);
    let mut nodes: Vec<(&Arc<Node>, Fit)> = state.nodes.iter().map(|n| (n, template.fits(n))).collect();
    nodes.sort_by_key(|(n, _)| n.name().to_string());
    let mut plan = Plan { status: status(state, &nodes, &on_node), ..Plan::default() };
    if !state.settled || state.set.is_terminating() {
        return plan;
    }
    for (node, fit) in &nodes {
        let pods = on_node.get(node.name()).map(Vec::as_slice).unwrap_or_default();
        place(state, node.name(), *fit, pods, &mut plan);
    }
    // Pods that were meant for a node that is gone before they were bound.
    for (node, pods) in &on_node {
        if !nodes.iter().any(|(n, _)| n.name() == node) {
            let unbound = pods.iter().filter(|p| p.node().is_none() && !p.is_terminating());
            plan.deleted.extend(unbound.map(|p| victim(p)));
        }
    }
    if state.set.spec.update_strategy.type_ != "OnDelete" {
        let wanted: Vec<&str> = nodes.iter().filter(|(_, f)| f.run).map(|(n, _)| n.name()).collect();
        rolling::update(state, &wanted, &on_node, &mut plan);
    }
    plan
}

fn place(state: &State<'_>, node: &str, fit: Fit, pods: &[&Arc<Pod>], plan: &mut Plan) {
    let alive: Vec<&&Arc<Pod>> = pods.iter().filter(|p| !p.is_terminating()).collect();
    if !fit.stay {
        return plan.deleted.extend(alive.iter().map(|p| victim(p)));
    }
    let (ended, running): (Vec<&&Arc<Pod>>, Vec<&&Arc<Pod>>) =
        alive.into_iter().partition(|p| p.is_finished());
    for pod in &ended {
        if pod.phase() == "Failed" {
            if state.waiting.contains(node) {
                continue;
            }
            plan.failed.push((node.to_string(), pod.name().to_string()));
        }
        plan.deleted.push(victim(pod));
    }
    let surges = rolling::surge(state.set, 1) > 0;
    // A pod that ends holds its place, so that two never run at once, unless the update surges.
    if running.is_empty() {
        let leaving = pods.iter().any(|p| p.is_terminating());
        if fit.run && ended.is_empty() && (!leaving || surges) {
            plan.created.push(node.to_string());
        }
        return;
    }
    // One is kept of each revision while an update surges, of all otherwise: the oldest that runs.
    let mut kept_old = false;
    let mut kept_new = false;
    let mut order: Vec<_> = running.iter().collect();
    order.sort_by_key(|p| (p.node().is_none(), p.created(), p.name().to_string()));
    for pod in order {
        let new = is_new(state, pod);
        let kept = match (surges, new) {
            (true, true) => &mut kept_new,
            _ => &mut kept_old,
        };
        if std::mem::replace(kept, true) {
            plan.deleted.push(victim(pod));
        }
    }
}

/// Whether a pod has the present template.
pub fn is_new(state: &State<'_>, pod: &Pod) -> bool {
    pod.label(REVISION_HASH) == Some(state.hash)
}

/// Whether a pod has been ready long enough.
pub fn is_available(state: &State<'_>, pod: &Pod) -> bool {
    !pod.is_terminating() && pod.is_available(state.set.spec.min_ready_seconds, state.now)
}

/// The node that a pod is on or is meant for.
pub fn target(pod: &Pod) -> Option<String> {
    if let Some(node) = pod.node() {
        return Some(node.to_string());
    }
    let affinity = pod.spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let field = terms.first()?.match_fields.as_ref()?.iter().find(|f| f.key == "metadata.name")?;
    field.values.as_ref()?.first().cloned()
}

/// Whether a pod may come to a node, and whether one that is there may stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    pub run: bool,
    pub stay: bool,
}

/// What placement reads of the template.
struct PodTemplate {
    spec: PodSpec,
    tolerations: Vec<Toleration>,
}

impl PodTemplate {
    fn of(set: &DaemonSet) -> Self {
        let spec = set.spec.template.get("spec").cloned().unwrap_or_default();
        let spec: PodSpec = serde_json::from_value(spec).unwrap_or_default();
        let mut tolerations = spec.tolerations.clone();
        tolerations.extend(serde_json::from_value(json!(added(&spec))).unwrap_or_else(|_| Vec::new()));
        Self { spec, tolerations }
    }

    fn fits(&self, node: &Node) -> Fit {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let named = self.spec.node_name.as_deref().is_none_or(|n| n.is_empty() || n == node.name());
        let selector = self.spec.node_selector.clone().unwrap_or_default();
        if !named || !selects(&selector, self.spec.affinity.as_deref(), &labels, node.name()) {
            return Fit { run: false, stay: false };
        }
        let mut taints = node.spec.taints.clone();
        if node.spec.unschedulable {
            let key = "node.kubernetes.io/unschedulable".to_string();
            taints.push(Taint { key, effect: "NoSchedule".into(), ..Taint::default() });
        }
        let tolerated = |t: &Taint| self.tolerations.iter().any(|one| tolerates(one, t));
        let stay = taints.iter().filter(|t| t.effect == "NoExecute").all(tolerated);
        let run = stay && taints.iter().filter(|t| t.effect == "NoSchedule").all(tolerated);
        Fit { run, stay }
    }
}

/// The tolerations that every pod of a DaemonSet has besides its own.
fn added(spec: &PodSpec) -> Vec<Value> {
    let one = |key: &str, effect: &str| json!({ "key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": effect });
    let mut all = vec![
        one("not-ready", "NoExecute"),
        one("unreachable", "NoExecute"),
        one("disk-pressure", "NoSchedule"),
        one("memory-pressure", "NoSchedule"),
        one("pid-pressure", "NoSchedule"),
        one("unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        all.push(one("network-unavailable", "NoSchedule"));
    }
    all
}

/// The pod for a node.
pub fn pod(set: &DaemonSet, hash: &str, node: &str) -> Value {
    let mut pod = pod_of(set, &set.spec.template, json!({ "generateName": format!("{}-", set.name()) }));
    pod["metadata"]["labels"][REVISION_HASH] = hash.into();
    let spec = serde_json::from_value(pod["spec"].clone()).unwrap_or_default();
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for toleration in added(&spec) {
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
    // The scheduler binds it, to this node and no other; what the template asks of nodes was asked above.
    let name = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({ "nodeSelectorTerms": [{ "matchFields": [name] }] });
    pod
}

fn status(state: &State<'_>, nodes: &[(&Arc<Node>, Fit)], on_node: &OnNode<'_>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: state.set.metadata.generation.unwrap_or(0),
        collision_count: state.set.status.collision_count,
        ..DaemonSetStatus::default()
    };
    for (node, fit) in nodes {
        let pods = on_node.get(node.name()).map(Vec::as_slice).unwrap_or_default();
        let alive: Vec<&&Arc<Pod>> = pods.iter().filter(|p| p.is_active()).collect();
        if !fit.run {
            status.number_misscheduled += i64::from(!alive.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        let Some(newest) = alive.iter().max_by_key(|p| (is_new(state, p), is_available(state, p))) else {
            continue;
        };
        status.current_number_scheduled += 1;
        status.number_ready += i64::from(alive.iter().any(|p| p.is_ready()));
        status.number_available += i64::from(alive.iter().any(|p| is_available(state, p)));
        status.updated_number_scheduled += i64::from(is_new(state, newest));
    }
    status.number_unavailable = status.desired_number_scheduled - status.number_available;
    status
}
