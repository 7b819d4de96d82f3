//! What nodes and containers use: the rates between two readings.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::reading::{Reading, Sample};

/// A rate is over at least this long, in milliseconds.
const SHORTEST_WINDOW: i64 = 200;

/// The last readings of all nodes. Clones share them.
#[derive(Clone, Default)]
pub struct Usage {
    nodes: Arc<RwLock<HashMap<String, Node>>>,
}

#[derive(Default)]
struct Node {
    last: Reading,
    at: i64,
    /// What is served.
    used: Option<Rate>,
    pods: HashMap<(String, String), Pod>,
}

#[derive(Clone, Copy)]
struct Rate {
    /// Thousand-millionths of a core.
    nanocores: u64,
    bytes: u64,
    at: i64,
    /// Milliseconds.
    window: i64,
}

type Pod = BTreeMap<String, Rate>;

impl Usage {
    /// A new reading of a node, taken at `now` (milliseconds since the Unix epoch).
    pub fn add(&self, node: &str, reading: Reading, now: i64) {
        let mut nodes = self.nodes.write();
        let node = nodes.entry(node.to_owned()).or_default();
        if node.at != 0 && now - node.at < SHORTEST_WINDOW {
            return;
        }
        let known = node.at != 0;
        let before = |sample: Option<&Sample>| sample.map(|s| (*s, node.at));
        let used = known.then(|| rate(before(Some(&node.last.node)), &reading.node, now)).flatten();
        let mut pods: HashMap<(String, String), Pod> = HashMap::new();
        for ((namespace, pod, container), sample) in &reading.containers {
            let key = (namespace.clone(), pod.clone(), container.clone());
            if let Some(rate) = rate(before(node.last.containers.get(&key)), sample, now) {
                pods.entry((namespace.clone(), pod.clone())).or_default().insert(container.clone(), rate);
            }
        }
        node.used = used;
        node.pods = pods;
        node.last = reading;
        node.at = now;
    }

    /// Forgets the nodes that are not in this list.
    pub fn keep(&self, names: &[String]) {
        self.nodes.write().retain(|name, _| names.contains(name));
    }

    /// The usage of a node, as the API has it; `meta` is its metadata.
    pub fn node(&self, name: &str, meta: Value) -> Option<Value> {
        let nodes = self.nodes.read();
        let rate = nodes.get(name)?.used?;
        Some(json!({
            "apiVersion": "metrics.k8s.io/v1beta1", "kind": "NodeMetrics", "metadata": meta,
            "timestamp": time(rate.at), "window": window(rate.window), "usage": amounts(&rate),
        }))
    }

    /// Names of the pods with a usage: namespace and name.
    pub fn pods(&self, namespace: Option<&str>) -> Vec<(String, String)> {
        let nodes = self.nodes.read();
        let all = nodes.values().flat_map(|node| node.pods.keys());
        let mut all: Vec<_> = all.filter(|(ns, _)| namespace.is_none_or(|n| n == ns)).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// The usage of a pod, as the API has it.
    pub fn pod(&self, namespace: &str, name: &str, meta: Value) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        let nodes = self.nodes.read();
        let pod = nodes.values().find_map(|node| node.pods.get(&key))?;
        let latest = pod.values().max_by_key(|rate| rate.at)?;
        let containers: Vec<Value> =
            pod.iter().map(|(name, rate)| json!({ "name": name, "usage": amounts(rate) })).collect();
        Some(json!({
            "apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetrics", "metadata": meta,
            "timestamp": time(latest.at), "window": window(latest.window), "containers": containers,
        }))
    }
}

// A counter that went back was started anew: no rate until the next reading.
fn rate(before: Option<(Sample, i64)>, now: &Sample, read: i64) -> Option<Rate> {
    let (before, before_read) = before?;
    let from = before.at.unwrap_or(before_read);
    let at = now.at.unwrap_or(read);
    let window = at - from;
    if now.cpu_seconds < before.cpu_seconds || window < SHORTEST_WINDOW {
        return None;
    }
    let nanocores = (now.cpu_seconds - before.cpu_seconds) * 1e12 / window as f64;
    Some(Rate { nanocores: nanocores as u64, bytes: now.memory_bytes as u64, at, window })
}

fn amounts(rate: &Rate) -> Value {
    json!({ "cpu": format!("{}n", rate.nanocores), "memory": format!("{}Ki", rate.bytes / 1024) })
}

fn time(at: i64) -> String {
    let at = Timestamp::from_millisecond(at).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn window(milliseconds: i64) -> String {
    format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(cpu: f64) -> Reading {
        let sample = Sample { cpu_seconds: cpu, memory_bytes: 2048.0, at: None };
        let key = ("n".to_owned(), "p".to_owned(), "c".to_owned());
        Reading { node: sample, containers: [(key, sample)].into() }
    }

    #[test]
    fn two_readings_make_a_rate() {
        let usage = Usage::default();
        usage.add("a", reading(10.0), 1_000_000);
        assert!(usage.node("a", json!({})).is_none() && usage.pods(None).is_empty());
        usage.add("a", reading(15.0), 1_010_000);
        let node = usage.node("a", json!({})).unwrap();
        assert_eq!(node["usage"], json!({ "cpu": "500000000n", "memory": "2Ki" }));
        assert_eq!(
            (node["window"].as_str(), node["timestamp"].as_str()),
            (Some("10.000s"), Some("1970-01-01T00:16:50Z"))
        );
        assert_eq!(usage.pods(Some("n")).len(), 1);
        assert!(usage.pods(Some("other")).is_empty());
        let pod = usage.pod("n", "p", json!({})).unwrap();
        assert_eq!(pod["containers"][0]["usage"]["cpu"], "500000000n");
        usage.add("a", reading(1.0), 1_020_000);
        assert!(usage.pods(None).is_empty(), "a container that was started anew has no rate yet");
        usage.keep(&[]);
        assert!(usage.node("a", json!({})).is_none());
    }
}
