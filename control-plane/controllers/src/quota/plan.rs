//! What pods, claims and Services use. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::quantity::Quantity;
use serde_json::Value;

use crate::view::{PersistentVolumeClaim, Pod, ResourceQuota, Resources, Service};

/// What a namespace has.
#[derive(Default)]
pub struct Held {
    pub pods: Vec<Arc<Pod>>,
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    pub services: Vec<Arc<Service>>,
    /// Numbers of objects of other kinds, by `<resource>` or `<resource>.<group>`.
    pub counts: BTreeMap<String, i64>,
}

/// The usage of every resource that the quota limits and that is known here.
pub fn used(quota: &ResourceQuota, held: &Held) -> BTreeMap<String, String> {
    let pods: Vec<&Arc<Pod>> = held.pods.iter().filter(|p| !p.is_finished() && in_scope(quota, p)).collect();
    let mut used = BTreeMap::new();
    for name in quota.spec.hard.keys() {
        if let Some(sum) = usage(name, &pods, held) {
            used.insert(name.clone(), sum.to_string());
        }
    }
    used
}

/// The object kind that a name counts; None for names that are sums.
pub fn counted(name: &str) -> Option<&str> {
    let plain = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
    name.strip_prefix("count/").or_else(|| plain.contains(&name).then_some(name))
}

fn usage(name: &str, pods: &[&Arc<Pod>], held: &Held) -> Option<Quantity> {
    let count = |number: usize| Some(Quantity::from_value(i64::try_from(number).unwrap_or(i64::MAX)));
    let kind = |type_: &str| held.services.iter().filter(|s| s.spec.type_.as_deref() == Some(type_)).count();
    match name {
        "pods" | "count/pods" => count(pods.len()),
        "services" | "count/services" => count(held.services.len()),
        "services.loadbalancers" => count(kind("LoadBalancer")),
        "services.nodeports" => {
            let exposed = held
                .services
                .iter()
                .filter(|s| matches!(s.spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")));
            count(exposed.map(|s| s.spec.ports.len()).sum())
        }
        "persistentvolumeclaims" | "count/persistentvolumeclaims" => count(held.claims.len()),
        "requests.storage" => Some(sum(held.claims.iter().map(|c| storage(c)))),
        "cpu" | "memory" | "ephemeral-storage" => Some(sum(pods.iter().map(|p| of_pod(p, name, requests)))),
        _ => {
            if let Some(kind) = counted(name) {
                return held.counts.get(kind).map(|n| Quantity::from_value(*n));
            }
            if let Some((class, rest)) = name.split_once(".storageclass.storage.k8s.io/") {
                let of =
                    || held.claims.iter().filter(|c| c.spec.storage_class_name.as_deref() == Some(class));
                return match rest {
                    "requests.storage" => Some(sum(of().map(|c| storage(c)))),
                    "persistentvolumeclaims" => count(of().count()),
                    _ => None,
                };
            }
            if let Some(resource) = name.strip_prefix("limits.") {
                return Some(sum(pods.iter().map(|p| of_pod(p, resource, limits))));
            }
            let resource = name.strip_prefix("requests.")?;
            Some(sum(pods.iter().map(|p| of_pod(p, resource, requests))))
        }
    }
}

fn zero() -> Quantity {
    Quantity::from_value(0)
}

fn sum(all: impl Iterator<Item = Quantity>) -> Quantity {
    // What cannot be had as zero of its own format would change how the sum is written.
    all.fold(None, |sum: Option<Quantity>, one| match sum {
        None => Some(one),
        Some(sum) => Some(if sum.sign() == 0 { one } else { sum.add(&one) }),
    })
    .unwrap_or_else(zero)
}

type Of = fn(&Resources) -> Option<&BTreeMap<String, String>>;

fn requests(of: &Resources) -> Option<&BTreeMap<String, String>> {
    of.requests.as_ref()
}

fn limits(of: &Resources) -> Option<&BTreeMap<String, String>> {
    of.limits.as_ref()
}

fn read(of: Option<&BTreeMap<String, String>>, name: &str) -> Quantity {
    of.and_then(|all| all.get(name)).and_then(|text| Quantity::parse(text).ok()).unwrap_or_else(zero)
}

// Containers and sidecars together, or the largest step of starting up where that is more.
fn of_pod(pod: &Pod, name: &str, of: Of) -> Quantity {
    let amount = |c: &crate::view::Container| read(of(&c.resources), name);
    let (mut sidecars, mut largest) = (zero(), zero());
    for init in &pod.spec.init_containers {
        let here = sum([sidecars, amount(init)].into_iter());
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = here;
        }
        if here.sub(&largest).sign() > 0 {
            largest = here;
        }
    }
    let total = sum(std::iter::once(sidecars).chain(pod.spec.containers.iter().map(amount)));
    if largest.sub(&total).sign() > 0 { largest } else { total }
}

fn storage(claim: &PersistentVolumeClaim) -> Quantity {
    read(claim.spec.resources.requests.as_ref(), "storage")
}

fn best_effort(pod: &Pod) -> bool {
    let asks = |of: Option<&BTreeMap<String, String>>| {
        of.is_some_and(|all| ["cpu", "memory"].iter().any(|name| read(Some(all), name).sign() > 0))
    };
    let mut all = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    !all.any(|c| asks(c.resources.requests.as_ref()) || asks(c.resources.limits.as_ref()))
}

// Whether a quota's scopes hold for a pod; each must.
fn in_scope(quota: &ResourceQuota, pod: &Pod) -> bool {
    let plain = quota.spec.scopes.iter().all(|scope| holds(pod, scope, "Exists", &[]));
    let selector = quota.spec.scope_selector.as_ref().and_then(|s| s.get("matchExpressions"));
    let mut expressions = selector.and_then(Value::as_array).into_iter().flatten();
    plain
        && expressions.all(|one| {
            let text = |field: &str| one.get(field).and_then(Value::as_str).unwrap_or_default();
            let values = one.get("values").and_then(Value::as_array).cloned().unwrap_or_default();
            holds(pod, text("scopeName"), text("operator"), &values)
        })
}

fn holds(pod: &Pod, scope: &str, operator: &str, values: &[Value]) -> bool {
    let deadline = pod.spec.active_deadline_seconds.is_some();
    match scope {
        "Terminating" => deadline,
        "NotTerminating" => !deadline,
        "BestEffort" => best_effort(pod),
        "NotBestEffort" => !best_effort(pod),
        "PriorityClass" => {
            let class = pod.spec.priority_class_name.as_deref().unwrap_or_default();
            let listed = values.iter().any(|v| v.as_str() == Some(class));
            match operator {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sums_and_scopes() {
        let pod = |requests: Value, phase: &str| -> Arc<Pod> {
            let containers = json!([{ "name": "a", "resources": { "requests": requests, "limits": { "memory": "1Gi" } } }]);
            Arc::new(serde_json::from_value(json!({ "metadata": {}, "spec": { "containers": containers }, "status": { "phase": phase } })).unwrap())
        };
        let held = Held {
            pods: vec![
                pod(json!({ "cpu": "250m", "memory": "64Mi" }), "Running"),
                pod(json!({ "cpu": "1", "memory": "64Mi", "nvidia.com/gpu": "1" }), "Pending"),
                pod(json!({ "cpu": "8" }), "Succeeded"),
            ],
            counts: [("configmaps".to_string(), 3), ("jobs.batch".to_string(), 2)].into(),
            ..Held::default()
        };
        let quota = |spec: Value| -> ResourceQuota {
            serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap()
        };
        let hard = json!({
            "pods": "9", "requests.cpu": "9", "memory": "9Gi", "limits.memory": "9Gi", "requests.nvidia.com/gpu": "4",
            "configmaps": "9", "count/jobs.batch": "9", "services.nodeports": "1",
        });
        let used = used(&quota(json!({ "hard": hard })), &held);
        let of = |name: &str| used.get(name).map(String::as_str);
        assert_eq!((of("pods"), of("requests.cpu"), of("memory")), (Some("2"), Some("1250m"), Some("128Mi")));
        assert_eq!((of("limits.memory"), of("requests.nvidia.com/gpu")), (Some("2Gi"), Some("1")));
        assert_eq!(
            (of("configmaps"), of("count/jobs.batch"), of("services.nodeports")),
            (Some("3"), Some("2"), Some("0"))
        );
        let idle = quota(json!({ "hard": { "pods": "1" }, "scopes": ["BestEffort"] }));
        assert_eq!(super::used(&idle, &held).get("pods").map(String::as_str), Some("0"));
    }
}
