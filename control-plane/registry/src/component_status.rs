//! ComponentStatus: whether the store, the scheduler and the controllers of the cluster live. Computed when it is asked for.

use std::sync::Arc;

use coracle_apiserver::{Column, ResourceDef, Strategy};
use coracle_store::Store;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::table;
use crate::value::{items, number, text};

/// What runs where its Lease is.
const ELECTED: [(&str, &str); 2] =
    [("controller-manager", "kube-controller-manager"), ("scheduler", "kube-scheduler")];
const DEFAULT_SECONDS: i64 = 15;

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("Status", "Status of the component conditions"),
    table::string("Message", "Message of the component conditions"),
    table::string("Error", "Error of the component conditions"),
];

/// The resource, of the cluster whose objects are in `store`.
pub fn resource(store: &Store) -> ResourceDef {
    let strategy = ComponentStatus { store: store.clone() };
    ResourceDef::new("", "v1", "ComponentStatus", "componentstatuses", Arc::new(strategy))
        .cluster_scoped()
        .short_names(&["cs"])
        .verbs(&["get", "list"])
}

struct ComponentStatus {
    store: Store,
}

impl ComponentStatus {
    /// What is wrong with an elected component.
    fn wrong(&self, lease: &str, now: Timestamp) -> Option<String> {
        let key = format!("/registry/coordination.k8s.io/leases/kube-system/{lease}");
        let Some(kv) = self.store.get(key.as_bytes()) else {
            return Some(format!("nobody holds the Lease {lease}"));
        };
        let lease_of: Value = serde_json::from_slice(&kv.to_json()).unwrap_or_default();
        let renewed = coracle_api::time::parse(text(&lease_of, "/spec/renewTime"));
        let seconds = match number(&lease_of, "/spec/leaseDurationSeconds") {
            0 => DEFAULT_SECONDS,
            some => some,
        };
        let age = renewed.map(|at| now.as_second().saturating_sub(at.as_second()));
        match age {
            Some(age) if age <= seconds => None,
            Some(age) => Some(format!("the Lease {lease} was renewed {age} s ago")),
            None => Some(format!("the Lease {lease} was never renewed")),
        }
    }
}

fn component(name: &str, wrong: Option<String>) -> Value {
    let condition = match wrong {
        None => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Some(why) => json!({"type": "Healthy", "status": "False", "message": why}),
    };
    json!({"metadata": {"name": name}, "conditions": [condition]})
}

impl Strategy for ComponentStatus {
    fn computed(&self, _namespace: Option<&str>) -> Option<Vec<Value>> {
        let now = Timestamp::now();
        let (leader, _) = self.store.leader();
        let mut all: Vec<Value> =
            ELECTED.iter().map(|(name, lease)| component(name, self.wrong(lease, now))).collect();
        all.insert(1, component("etcd-0", leader.is_none().then(|| "the store has no leader".into())));
        Some(all)
    }

    fn deprecation(&self) -> Option<&str> {
        Some("v1 ComponentStatus is deprecated in v1.19+")
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        let healthy = items(obj, "/conditions").iter().find(|c| text(c, "/type") == "Healthy");
        let status = match healthy.map(|c| text(c, "/status")) {
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
            None => "Unknown",
        };
        let of = |field: &str| healthy.map(|c| text(c, field)).unwrap_or_default();
        vec![table::name(obj), status.into(), of("/message").into(), of("/error").into()]
    }
}
