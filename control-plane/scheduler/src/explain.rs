//! Why each node was or would be chosen for a pod, or not: `coracle explain-schedule`.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Configuration;
use crate::cycle::Cycle;
use crate::plugins::gang_scheduling::{self, Gate};
use crate::profile::Profile;
use crate::snapshot::{Room, Snapshot};
use crate::view::{NodeView, Pod, PodView};
use crate::world::World;

/// What is said of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It would do: the scores by plugin, weighted, as percentages of the best; and their sum.
    Fits { scores: Vec<(&'static str, i64)>, sum: i64 },
    /// It would not: the plugin that refused, and why.
    Refused { plugin: &'static str, reasons: Vec<String> },
}

/// A pod against every node.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub pod: String,
    /// The node that it is on.
    pub bound: Option<String>,
    /// Why it can be on no node at all, or is not tried.
    pub barred: Option<String>,
    /// Every node, the best first, then those that refuse.
    pub nodes: Vec<(String, Verdict)>,
}

/// One point of a score is this much: the best score of a plugin with weight one has a hundred points.
const POINT: i64 = crate::plugins::BEST / 100;

/// Says for each node what the plugins say. The pod's own room, if it has one, does not count;
/// `group` is how many pods its group has.
pub fn explain(
    pod: &PodView,
    profile: &Profile,
    snapshot: &Snapshot,
    world: &World,
    group: usize,
) -> Explanation {
    let bound = Some(pod.node.clone()).filter(|node| !node.is_empty());
    let mut this = Explanation { pod: pod.key(), bound, barred: None, nodes: Vec::new() };
    if pod.gated {
        this.barred = Some("it has scheduling gates, which must be removed first".to_owned());
    } else if this.bound.is_none() && profile.has_permit("GangScheduling") {
        this.barred = gang(pod, snapshot, world, group);
    }
    let cycle = match Cycle::of(pod, profile, snapshot, world) {
        Ok(cycle) => cycle,
        Err(why) => {
            this.barred = Some(why);
            return this;
        }
    };
    let mut fits: Vec<&Room> = Vec::new();
    let mut refused = Vec::new();
    for room in snapshot.nodes() {
        match cycle.refuse(&snapshot.seen_by(pod, room)) {
            None => fits.push(room),
            Some(refusal) => {
                let verdict = Verdict::Refused { plugin: refusal.plugin.name, reasons: refusal.reasons };
                refused.push((room.node.name.clone(), verdict));
            }
        }
    }
    let weighed = cycle.weigh(&fits);
    for (place, room) in fits.iter().enumerate() {
        let of =
            |(name, all): &(&'static str, Vec<i64>)| (*name, all.get(place).copied().unwrap_or(0) / POINT);
        let scores: Vec<(&'static str, i64)> = weighed.iter().map(of).collect();
        let sum = scores.iter().map(|(_, score)| score).sum();
        this.nodes.push((room.node.name.clone(), Verdict::Fits { scores, sum }));
    }
    let sum = |verdict: &Verdict| match verdict {
        Verdict::Fits { sum, .. } => *sum,
        Verdict::Refused { .. } => i64::MIN,
    };
    this.nodes.sort_by_key(|(name, verdict)| (std::cmp::Reverse(sum(verdict)), name.clone()));
    this.nodes.extend(refused);
    this
}

/// What a pod's group makes it wait for.
fn gang(pod: &PodView, snapshot: &Snapshot, world: &World, pods: usize) -> Option<String> {
    match gang_scheduling::gate(pod, world, pods) {
        Gate::Alone => None,
        Gate::Closed(why) => Some(why),
        Gate::Together(least) => {
            let placed = snapshot.nodes().flat_map(|room| room.pods.values());
            let placed = placed.filter(|one| one.group == pod.group).count();
            let pods = format!("of its {pods} pods {placed} have a node");
            (placed < least).then(|| {
                format!("PodGroup {:?} needs {least} pods with a node at the same time; {pods}", pod.group)
            })
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.bound, &self.barred) {
            (Some(node), _) => writeln!(f, "{} is on {node}. If it were placed now:", self.pod)?,
            (None, Some(why)) => writeln!(f, "{} waits: {why}", self.pod)?,
            (None, None) => writeln!(f, "{} waits for a node.", self.pod)?,
        }
        for (name, verdict) in &self.nodes {
            match verdict {
                Verdict::Fits { scores, sum } => {
                    let words = scores.iter().filter(|(_, score)| *score != 0);
                    let words = words.map(|(plugin, score)| format!("{plugin} {score}")).collect::<Vec<_>>();
                    writeln!(f, "  {name}: fits, {sum} points ({})", words.join(", "))?;
                }
                Verdict::Refused { plugin, reasons } => {
                    writeln!(f, "  {name}: {} ({plugin})", reasons.join(", "))?;
                }
            }
        }
        Ok(())
    }
}

/// Reads the cluster and explains a pod of it.
///
/// # Errors
/// When the API refuses, or the pod's scheduler is none of the profiles.
pub async fn of(
    client: &Client,
    configuration: &Configuration,
    namespace: &str,
    name: &str,
) -> Result<Explanation> {
    let what = || format!("read pod {namespace}/{name}");
    let pod =
        Api::<Pod>::namespaced_with(client.clone(), namespace, &()).get(name).await.with_context(what)?;
    let pod = PodView::of(&pod);
    let profile = configuration.profiles.iter().find(|profile| profile.name == pod.scheduler);
    let profile =
        profile.with_context(|| format!("pod {} is for the scheduler {:?}", pod.key(), pod.scheduler))?;
    let mut snapshot = Snapshot::default();
    for node in Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("list nodes")? {
        snapshot.set_node(NodeView::of(&node));
    }
    let mut group = 0;
    for other in Api::<Pod>::all(client.clone()).list(&ListParams::default()).await.context("list pods")? {
        let other = PodView::of(&other);
        group += usize::from(!other.ended && !pod.group.is_empty() && other.group == pod.group);
        if !other.ended && !other.node.is_empty() && other.uid != pod.uid {
            let node = other.node.clone();
            snapshot.take(&node, &Arc::new(other));
        } else if !other.nominated.is_empty() && other.node.is_empty() {
            let node = other.nominated.clone();
            snapshot.nominate(&node, &Arc::new(other));
        }
    }
    let (world, stop) = (World::default(), CancellationToken::new());
    let (changes, _ignored) = mpsc::unbounded_channel();
    world.start(client, changes, &stop).await;
    let explanation = explain(&pod, profile, &snapshot, &world, group);
    stop.cancel();
    Ok(explanation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn each_node_has_a_verdict() {
        let node = |name: &str, spec: Value| {
            let value = json!({
                "metadata": { "name": name }, "spec": spec,
                "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" } },
            });
            NodeView::of(&serde_json::from_value(value).unwrap())
        };
        let mut snapshot = Snapshot::default();
        snapshot.set_node(node("a", json!({})));
        snapshot.set_node(node("b", json!({})));
        snapshot.set_node(node("c", json!({ "taints": [{ "key": "gpu", "effect": "NoSchedule" }] })));
        let requests = json!({ "requests": { "cpu": "1" } });
        let pod = json!({ "metadata": { "name": "p", "namespace": "n" }, "spec": { "containers": [{ "name": "c", "resources": requests }] } });
        let pod = PodView::of(&serde_json::from_value(pod).unwrap());
        snapshot.take("a", &Arc::new(PodView { name: "other".into(), ..pod.clone() }));
        let said = explain(&pod, &Profile::default(), &snapshot, &World::default(), 0);
        let names: Vec<_> = said.nodes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "a", "c"], "{said}");
        let text = said.to_string();
        assert!(text.starts_with("n/p waits for a node.\n  b: fits, "), "{text}");
        assert!(text.contains("c: node(s) had untolerated taint {gpu: } (TaintToleration)"), "{text}");
    }
}
