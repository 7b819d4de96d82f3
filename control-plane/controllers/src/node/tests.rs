//! Ranges, taints and evictions.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{silenced, stays, taints, unready};
use super::ranges::Ranges;
use crate::view::{Node, Pod};

fn node(ready: &str, taints: Value) -> Node {
    let value = json!({ "metadata": { "name": "n" }, "spec": { "taints": taints }, "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
    serde_json::from_value(value).unwrap()
}

#[test]
fn ranges() {
    let ranges = Ranges::new("127.64.0.0/11", 18).unwrap();
    let mut used = BTreeSet::new();
    let first = |used: &BTreeSet<u32>| ranges.free(used).map(|number| ranges.part(number));
    assert_eq!(first(&used).as_deref(), Some("127.64.0.0/18"));
    used.insert(ranges.number("127.64.0.0/18").unwrap());
    assert_eq!(first(&used).as_deref(), Some("127.64.64.0/18"));
    used.insert(7);
    while let Some(number) = ranges.free(&used) {
        assert_eq!(ranges.number(&ranges.part(number)), Some(number));
        used.insert(number);
    }
    assert_eq!(used.len(), 128);
    assert_eq!(ranges.number("127.95.192.0/18"), Some(127));
    for other in ["127.96.0.0/18", "127.63.0.0/18", "127.64.0.0/24", "x"] {
        assert_eq!(ranges.number(other), None, "{other}");
    }
    for wrong in ["", "127.64.0.0", "::/64", "10.0.0.0/20", "10.0.0.0/40"] {
        assert!(Ranges::new(wrong, 18).is_err(), "{wrong}");
    }
}

#[test]
fn taints_follow_ready() {
    let now = Timestamp::from_second(1000).unwrap();
    let keys = |n: &Node| {
        taints(n, &mut || true, now)
            .map(|t| t.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect::<Vec<_>>())
    };
    assert_eq!(keys(&node("True", json!([]))), None);
    let own = json!([{ "key": "gpu", "effect": "NoSchedule" }]);
    let unreachable = [
        "gpu:NoSchedule",
        "node.kubernetes.io/unreachable:NoSchedule",
        "node.kubernetes.io/unreachable:NoExecute",
    ];
    assert_eq!(keys(&node("Unknown", own)).unwrap(), unreachable);
    let held = taints(&node("Unknown", json!([])), &mut || false, now).unwrap();
    assert_eq!((held.len(), held[0].effect.as_str()), (1, "NoSchedule"), "its zone is too slow to evict now");
    let not_ready = json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }]);
    assert_eq!(keys(&node("True", not_ready)).unwrap(), [""; 0]);
    assert_eq!(silenced(&node("True", json!([])), now).len(), 1);
    assert!(silenced(&node("Unknown", json!([])), now).is_empty());
}

#[test]
fn evictions() {
    let taint = |added: i64| {
        let time = crate::events::api_time(Timestamp::from_second(added).unwrap());
        let n = node(
            "Unknown",
            json!([{ "key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": time }]),
        );
        n.spec.taints
    };
    let pod = |tolerations: Value| -> Pod {
        let status = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        serde_json::from_value(
            json!({ "metadata": { "name": "p" }, "spec": { "tolerations": tolerations }, "status": status }),
        )
        .unwrap()
    };
    let now = Timestamp::from_second(1100).unwrap();
    let five_minutes = json!([{ "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 }]);
    assert_eq!(stays(&pod(json!([])), &taint(1000), now), Some(Duration::ZERO));
    assert_eq!(stays(&pod(json!([{ "operator": "Exists" }])), &taint(1000), now), None);
    assert_eq!(stays(&pod(five_minutes.clone()), &taint(1000), now), Some(Duration::from_secs(200)));
    assert_eq!(stays(&pod(five_minutes), &taint(700), now), Some(Duration::ZERO));
    assert!(unready(&pod(json!([])), now).is_some());
}
