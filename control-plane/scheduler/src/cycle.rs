//! One pod against all nodes; pure.

use std::collections::BTreeMap;

use crate::plugins::{FILTERS, Reasons, SCORES};
use crate::view::{NodeView, PodView, Resources, add, subtract};

/// A node and what is taken of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    pub node: NodeView,
    pub used: Resources,
    /// Host ports that are taken, and by how many pods.
    pub host_ports: BTreeMap<String, usize>,
}

/// Every node, by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    rooms: BTreeMap<String, Room>,
}

impl Snapshot {
    /// A node came or changed. True if it may now take pods that it could not take before.
    pub fn set_node(&mut self, node: NodeView) -> bool {
        let room = self.rooms.entry(node.name.clone()).or_default();
        let changed = room.node != node;
        room.node = node;
        changed
    }

    /// A node is gone; what pods take of it stays known until they go, in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(room) = self.rooms.get_mut(name) {
            room.node = NodeView::default();
        }
        self.tidy(name);
    }

    /// Drops what is left of a node that is gone and has no pods.
    fn tidy(&mut self, name: &str) {
        let empty = |room: &Room| room.node.name.is_empty() && room.used.values().all(|used| *used == 0);
        if self.rooms.get(name).is_some_and(empty) {
            self.rooms.remove(name);
        }
    }

    /// The nodes there are.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes().map(|room| room.node.name.clone()).collect()
    }

    /// A pod takes its room.
    pub fn take(&mut self, node: &str, pod: &PodView) {
        let room = self.rooms.entry(node.to_owned()).or_default();
        add(&mut room.used, &pod.requests);
        for port in &pod.host_ports {
            *room.host_ports.entry(port.clone()).or_default() += 1;
        }
    }

    /// A pod gives its room back.
    pub fn give_back(&mut self, node: &str, pod: &PodView) {
        let Some(room) = self.rooms.get_mut(node) else { return };
        subtract(&mut room.used, &pod.requests);
        for port in &pod.host_ports {
            if let Some(count) = room.host_ports.get_mut(port) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    room.host_ports.remove(port);
                }
            }
        }
        self.tidy(node);
    }

    fn nodes(&self) -> impl Iterator<Item = &Room> {
        self.rooms.values().filter(|room| !room.node.name.is_empty())
    }
}

/// The best node for a pod.
///
/// # Errors
/// Why none will do, in Kubernetes' words: `0/3 nodes are available: 2 Insufficient cpu, 1 node(s) were unschedulable.`
pub fn choose(pod: &PodView, snapshot: &Snapshot) -> Result<String, String> {
    let mut best: Option<(i64, &str)> = None;
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = 0;
    for room in snapshot.nodes() {
        count += 1;
        let reasons = refuse(pod, room);
        if reasons.is_empty() {
            let score = SCORES.iter().map(|score| score(pod, room)).sum();
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, &room.node.name));
            }
        }
        for reason in reasons {
            *refused.entry(reason).or_default() += 1;
        }
    }
    if let Some((_, name)) = best {
        return Ok(name.to_owned());
    }
    if count == 0 {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let mut words: Vec<String> =
        refused.into_iter().map(|(reason, number)| format!("{number} {reason}")).collect();
    words.sort();
    Err(format!("0/{count} nodes are available: {}.", words.join(", ")))
}

fn refuse(pod: &PodView, room: &Room) -> Reasons {
    FILTERS.iter().map(|filter| filter(pod, room)).find(|reasons| !reasons.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    fn node(name: &str, extra: Value) -> NodeView {
        let mut value = json!({
            "metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": {},
            "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "2"}},
        });
        for (key, part) in extra.as_object().into_iter().flatten() {
            value["spec"][key] = part.clone();
        }
        NodeView::of(&serde_json::from_value::<Node>(value).unwrap())
    }

    fn pod(spec: Value) -> PodView {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "a"}]);
        }
        PodView::of(&serde_json::from_value::<Pod>(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())
    }

    fn snapshot(nodes: Vec<NodeView>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for node in nodes {
            snapshot.set_node(node);
        }
        snapshot
    }

    fn cpu(amount: &str) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": amount}}}]})
    }

    #[test]
    fn reasons_are_in_the_words_that_users_search_for() {
        let tainted = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
        let all = snapshot(vec![
            node("a", json!({})),
            node("b", json!({"unschedulable": true})),
            node("c", tainted),
        ]);
        assert_eq!(
            choose(&pod(cpu("3")), &all).unwrap_err(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable."
        );
        assert_eq!(choose(&pod(cpu("1")), &all).unwrap(), "a");
        let picky = pod(json!({"nodeSelector": {"disk": "tape"}}));
        assert!(
            choose(&picky, &all).unwrap_err().contains("1 node(s) didn't match Pod's node affinity/selector")
        );
        assert_eq!(choose(&picky, &Snapshot::default()).unwrap_err(), "no nodes available to schedule pods");
    }

    #[test]
    fn pods_spread_and_fill_up() {
        let mut all = snapshot(vec![node("a", json!({})), node("b", json!({}))]);
        let one = pod(cpu("500m"));
        let mut taken = Vec::new();
        for _ in 0..4 {
            let name = choose(&one, &all).unwrap();
            all.take(&name, &one);
            taken.push(name);
        }
        assert_eq!(taken, ["a", "b", "a", "b"]);
        assert_eq!(choose(&one, &all).unwrap_err(), "0/2 nodes are available: 2 Too many pods.");
        all.give_back("b", &one);
        assert_eq!(choose(&one, &all).unwrap(), "b");
    }

    #[test]
    fn a_node_that_is_gone_is_forgotten_with_its_last_pod() {
        let mut all = snapshot(vec![node("a", json!({}))]);
        let one = pod(cpu("1"));
        all.take("a", &one);
        all.remove_node("a");
        assert!(choose(&one, &all).is_err());
        all.set_node(node("a", json!({})));
        assert!(choose(&pod(cpu("1500m")), &all).is_err(), "its pod still takes room");
        all.remove_node("a");
        all.give_back("a", &one);
        assert!(all.rooms.is_empty());
    }

    #[test]
    fn replicas_without_requests_spread_over_large_nodes() {
        let large = |name: &str| {
            let mut node = node(name, json!({}));
            node.allocatable.insert("pods".into(), 1000);
            node
        };
        let mut all = snapshot(vec![large("a"), large("b")]);
        let one = pod(json!({}));
        let mut taken = Vec::new();
        for _ in 0..4 {
            let name = choose(&one, &all).unwrap();
            all.take(&name, &one);
            taken.push(name);
        }
        assert_eq!(taken, ["a", "b", "a", "b"]);
    }

    #[test]
    fn what_is_not_decided_yet_is_not_ignored() {
        let all = snapshot(vec![node("a", json!({}))]);
        let term = json!([{"topologyKey": "kubernetes.io/hostname"}]);
        let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": term});
        for (spec, word) in [
            (json!({"affinity": {"podAntiAffinity": required}}), "pod anti-affinity"),
            (json!({"affinity": {"podAffinity": required}}), "pod affinity"),
            (
                json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "x", "whenUnsatisfiable": "DoNotSchedule"}]}),
                "topology spread",
            ),
        ] {
            assert!(choose(&pod(spec), &all).unwrap_err().contains(word), "{word}");
        }
    }

    #[test]
    fn tolerations_and_affinity() {
        let tainted = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
        let all = snapshot(vec![node("c", tainted)]);
        for (toleration, fits) in [
            (json!({"key": "gpu", "operator": "Exists"}), true),
            (json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"}), true),
            (json!({"key": "gpu", "value": "no"}), false),
            (json!({"operator": "Exists"}), true),
        ] {
            assert_eq!(
                choose(&pod(json!({"tolerations": [toleration]})), &all).is_ok(),
                fits,
                "{toleration}"
            );
        }
        let all = snapshot(vec![node("a", json!({}))]);
        for (operator, values, fits) in [
            ("In", json!(["ssd"]), true),
            ("NotIn", json!(["ssd"]), false),
            ("Exists", json!([]), true),
            ("DoesNotExist", json!([]), false),
        ] {
            let term = json!({"matchExpressions": [{"key": "disk", "operator": operator, "values": values}]});
            let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
            assert_eq!(choose(&pod(json!({"affinity": affinity})), &all).is_ok(), fits, "{operator}");
        }
    }
}
