//! How fast nodes of a zone may lose their pods: when much of a zone is silent, the fault may be the network's. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::view::{Meta, Node, condition};

/// From this part of silent nodes on a zone is disrupted.
const UNHEALTHY: f64 = 0.55;
/// A disrupted zone of more nodes goes on slowly, one of fewer not at all.
const LARGE: usize = 50;

/// How fast nodes are cleared of their pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many nodes a second.
    PerSecond(f64),
    Stopped,
}

const NORMAL: Pace = Pace::PerSecond(0.1);
const SLOW: Pace = Pace::PerSecond(0.01);

/// Region and zone of a node.
pub fn zone_of(node: &Node) -> String {
    let label = |key: &str| node.label(key).unwrap_or_default();
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// The pace of each zone.
pub fn paces(nodes: &[Arc<Node>]) -> BTreeMap<String, Pace> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in nodes {
        let ready = condition(&node.status.conditions, "Ready").is_some_and(|c| c.status == "True");
        let (good, bad) = counts.entry(zone_of(node)).or_default();
        *if ready { good } else { bad } += 1;
    }
    // When no zone has a node left, the fault is most likely this side's.
    let all_lost = counts.values().all(|(good, bad)| *good == 0 && *bad > 0);
    let pace = |(good, bad): (usize, usize)| match (good, bad) {
        _ if all_lost => Pace::Stopped,
        (0, _) => NORMAL,
        (good, bad) if bad > 2 && bad as f64 / (good + bad) as f64 >= UNHEALTHY => {
            if good + bad > LARGE {
                SLOW
            } else {
                Pace::Stopped
            }
        }
        _ => NORMAL,
    };
    counts.into_iter().map(|(zone, counts)| (zone, pace(counts))).collect()
}

/// Gives each zone its turns.
#[derive(Debug, Default)]
pub struct Turns {
    last: BTreeMap<String, Instant>,
}

impl Turns {
    /// Whether a node of a zone may be cleared now, which takes the turn.
    pub fn take(&mut self, zone: &str, pace: Pace, now: Instant) -> bool {
        let Pace::PerSecond(rate) = pace else { return false };
        let pause = Duration::from_secs_f64(1.0 / rate.max(0.000_1));
        if self.last.get(zone).is_some_and(|last| now.duration_since(*last) < pause) {
            return false;
        }
        self.last.insert(zone.to_string(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn zone(name: &str, good: usize, bad: usize) -> Vec<Arc<Node>> {
        let node = |i: usize| {
            let ready = if i < good { "True" } else { "Unknown" };
            let value = json!({
                "metadata": { "name": format!("{name}-{i}"), "labels": { "topology.kubernetes.io/zone": name } },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            });
            Arc::new(serde_json::from_value(value).unwrap())
        };
        (0..good + bad).map(node).collect()
    }

    #[test]
    fn a_zone_that_is_mostly_silent_slows_down() {
        let pace = |all: Vec<Vec<Arc<Node>>>, zone: &str| paces(&all.concat())[&format!(":{zone}")];
        assert_eq!(pace(vec![zone("a", 3, 1)], "a"), NORMAL);
        assert_eq!(pace(vec![zone("a", 1, 2)], "a"), NORMAL, "two nodes are too few to tell");
        assert_eq!(pace(vec![zone("a", 2, 3)], "a"), Pace::Stopped);
        assert_eq!(pace(vec![zone("a", 20, 40)], "a"), SLOW);
        assert_eq!(pace(vec![zone("a", 0, 5), zone("b", 5, 0)], "a"), NORMAL, "a whole zone is lost");
        assert_eq!(pace(vec![zone("a", 0, 5), zone("b", 0, 2)], "a"), Pace::Stopped, "all are silent");
    }

    #[test]
    fn each_zone_has_its_turns() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert!(turns.take("a", NORMAL, now) && turns.take("b", NORMAL, now));
        assert!(!turns.take("a", NORMAL, now + Duration::from_secs(9)));
        assert!(turns.take("a", NORMAL, now + Duration::from_secs(10)));
        assert!(!turns.take("c", Pace::Stopped, now));
    }
}
