//! What objects use of a ResourceQuota: how many of a kind, and what pods, claims and Services ask for. Pure; admission and
//! the quota controller share it, so that both count alike.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts by the names that a quota bounds: `pods`, `requests.cpu`, `count/jobs.batch`.
pub type Usage = BTreeMap<String, Quantity>;

/// Resources that are also counted under their own name, without `count/`.
const PLAIN: [&str; 5] = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas", "services"];

/// What one object uses. `group` is empty for the core group, `plural` the word in the path.
pub fn usage(group: &str, plural: &str, obj: &Value) -> Usage {
    let mut usage = Usage::new();
    let count = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    add(&mut usage, &count, one());
    if !group.is_empty() {
        return usage;
    }
    match plural {
        "pods" => pod(&mut usage, obj),
        "persistentvolumeclaims" => claim(&mut usage, obj),
        other if PLAIN.contains(&other) => {
            add(&mut usage, other, one());
            if other == "services" {
                service(&mut usage, obj);
            }
        }
        _ => {}
    }
    usage
}

/// Whether a quota counts an object: its scopes say which pods it is about.
pub fn covers(spec: &Value, group: &str, plural: &str, obj: &Value) -> bool {
    let plain =
        list(spec, "/scopes").iter().filter_map(Value::as_str).map(|scope| (scope, "Exists", &[][..]));
    let selected = list(spec, "/scopeSelector/matchExpressions")
        .iter()
        .map(|e| (text(e, "/scopeName"), text(e, "/operator"), list(e, "/values")));
    let is_pod = group.is_empty() && plural == "pods";
    plain.chain(selected).all(|(scope, operator, values)| is_pod && in_scope(obj, scope, operator, values))
}

/// Resources for which each container of a pod must say what it asks for, if a quota bounds them.
pub const REQUIRED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// The containers that do not say what they ask for of a resource in [`REQUIRED`].
pub fn silent_containers<'a>(pod: &'a Value, resource: &str) -> Vec<&'a str> {
    let (kind, name) = match resource.split_once('.') {
        Some((kind, name)) => (kind, name),
        None => ("requests", resource),
    };
    if pod.pointer(&format!("/spec/resources/{kind}/{name}")).is_some() {
        return Vec::new();
    }
    let pointer = format!("/resources/{kind}/{name}");
    let all = list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers"));
    let mut names: Vec<&str> =
        all.filter(|c| c.pointer(&pointer).is_none()).map(|c| text(c, "/name")).collect();
    names.sort_unstable();
    names
}

fn in_scope(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let terminating =
        pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|s| s >= 0);
    let inside = match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(pod),
        "NotBestEffort" => !best_effort(pod),
        "CrossNamespacePodAffinity" => reaches_out(pod),
        "PriorityClass" => {
            let class = text(pod, "/spec/priorityClassName");
            return match operator {
                "In" => values.iter().any(|v| v == class),
                "NotIn" => !values.iter().any(|v| v == class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            };
        }
        _ => false,
    };
    if operator == "DoesNotExist" { !inside } else { inside }
}

fn best_effort(pod: &Value) -> bool {
    let asks = |c: &Value| {
        let amounts = |kind: &str| c.pointer(&format!("/resources/{kind}")).and_then(Value::as_object);
        let named = |kind: &str| {
            amounts(kind).is_some_and(|m| {
                m.iter().any(|(k, v)| matches!(k.as_str(), "cpu" | "memory") && parse(v).sign() > 0)
            })
        };
        named("requests") || named("limits")
    };
    !list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers")).any(asks)
}

fn reaches_out(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let at = |mode: &str| {
            list(pod, &format!("/spec/affinity/{kind}/{mode}DuringSchedulingIgnoredDuringExecution"))
        };
        let out =
            |term: &Value| !list(term, "/namespaces").is_empty() || term.get("namespaceSelector").is_some();
        at("required").iter().any(out)
            || at("preferred").iter().any(|p| p.get("podAffinityTerm").is_some_and(out))
    })
}

fn pod(usage: &mut Usage, pod: &Value) {
    // A pod that ended holds nothing but its object.
    if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
        return;
    }
    add(usage, "pods", one());
    for (name, amount) in pod_resources(pod, "requests") {
        let standard =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if standard {
            add(usage, &name, amount);
        }
        add(usage, &format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_resources(pod, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            add(usage, &format!("limits.{name}"), amount);
        }
    }
}

/// What a pod asks for as a whole (`kind` is `requests` or `limits`): its containers and sidecars together, or the greediest
/// init container with the sidecars before it, whichever is more; and its overhead.
pub fn pod_resources(pod: &Value, kind: &str) -> Usage {
    let pointer = format!("/resources/{kind}");
    let amounts = |c: &Value| {
        let map = c.pointer(&pointer).and_then(Value::as_object);
        map.into_iter().flatten().map(|(k, v)| (k.clone(), parse(v))).collect::<Usage>()
    };
    let mut total = Usage::new();
    for c in list(pod, "/spec/containers") {
        sum(&mut total, &amounts(c));
    }
    let (mut sidecars, mut peak) = (Usage::new(), Usage::new());
    for c in list(pod, "/spec/initContainers") {
        let own = amounts(c);
        if text(c, "/restartPolicy") == "Always" {
            sum(&mut sidecars, &own);
            most(&mut peak, &sidecars);
        } else {
            let mut together = sidecars.clone();
            sum(&mut together, &own);
            most(&mut peak, &together);
        }
    }
    sum(&mut total, &sidecars);
    most(&mut total, &peak);
    if let Some(spec) = pod.get("spec") {
        total.extend(amounts(spec));
    }
    let overhead = pod.pointer("/spec/overhead").and_then(Value::as_object);
    for (name, amount) in overhead.into_iter().flatten() {
        // A limit that is not there is none, not that of the overhead.
        if kind == "requests" || total.contains_key(name) {
            add(&mut total, name, parse(amount));
        }
    }
    total
}

fn claim(usage: &mut Usage, claim: &Value) {
    let class = text(claim, "/spec/storageClassName");
    let size = claim.pointer("/spec/resources/requests/storage").map(parse);
    add(usage, "persistentvolumeclaims", one());
    if let Some(size) = size {
        add(usage, "requests.storage", size);
    }
    if !class.is_empty() {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        add(usage, &format!("{prefix}/persistentvolumeclaims"), one());
        if let Some(size) = size {
            add(usage, &format!("{prefix}/requests.storage"), size);
        }
    }
}

fn service(usage: &mut Usage, service: &Value) {
    let ports = list(service, "/spec/ports");
    let named = ports.iter().filter(|p| p.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0).count();
    let on_nodes = match text(service, "/spec/type") {
        "NodePort" => ports.len(),
        "LoadBalancer" => {
            add(usage, "services.loadbalancers", one());
            match service.pointer("/spec/allocateLoadBalancerNodePorts") {
                Some(Value::Bool(false)) => named,
                _ => ports.len(),
            }
        }
        _ => 0,
    };
    add(usage, "services.nodeports", Quantity::from_value(i64::try_from(on_nodes).unwrap_or(i64::MAX)));
}

fn one() -> Quantity {
    Quantity::from_value(1)
}

fn parse(value: &Value) -> Quantity {
    let parsed = match value {
        Value::String(s) => Quantity::parse(s).ok(),
        other => other.as_i64().map(Quantity::from_value),
    };
    parsed.unwrap_or_else(|| Quantity::from_value(0))
}

/// Adds an amount to what is there.
pub fn add(usage: &mut Usage, name: &str, amount: Quantity) {
    let sum = usage.get(name).map_or(amount, |was| was.add(&amount));
    usage.insert(name.to_owned(), sum);
}

/// Adds all amounts of another.
pub fn sum(usage: &mut Usage, more: &Usage) {
    more.iter().for_each(|(name, amount)| add(usage, name, *amount));
}

fn most(usage: &mut Usage, other: &Usage) {
    for (name, amount) in other {
        let most = usage.get(name).map_or(*amount, |was| (*was).max(*amount));
        usage.insert(name.clone(), most);
    }
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(usage: &Usage) -> Vec<String> {
        usage.iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[test]
    fn pods_ask_for_the_most_that_runs_at_once() {
        let pod = json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}}, {"name": "b", "resources": {"requests": {"cpu": "200m"}}}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}}, {"name": "i", "resources": {"requests": {"cpu": "1"}}}],
            "overhead": {"cpu": "10m"}}});
        assert_eq!(shown(&pod_resources(&pod, "requests")), ["cpu=1060m"]);
        assert_eq!(
            shown(&usage("", "pods", &pod)),
            ["count/pods=1", "cpu=1060m", "limits.cpu=1010m", "pods=1", "requests.cpu=1060m"]
        );
        assert_eq!(silent_containers(&pod, "limits.cpu"), ["b", "i", "s"]);
        let ended = json!({"spec": {"containers": []}, "status": {"phase": "Failed"}});
        assert_eq!(shown(&usage("", "pods", &ended)), ["count/pods=1"]);
    }

    #[test]
    fn counts_of_other_kinds() {
        let s = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        assert_eq!(
            shown(&usage("", "services", &s)),
            ["count/services=1", "services=1", "services.loadbalancers=1", "services.nodeports=2"]
        );
        assert_eq!(shown(&usage("batch", "jobs", &json!({}))), ["count/jobs.batch=1"]);
        let c = json!({"spec": {"storageClassName": "x", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(usage("", "persistentvolumeclaims", &c).len(), 5);
    }

    #[test]
    fn scopes() {
        let quota = json!({"scopes": ["BestEffort"]});
        let idle = json!({"spec": {"containers": [{"name": "a"}]}});
        let busy = json!({"spec": {"priorityClassName": "high", "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        assert!(covers(&quota, "", "pods", &idle) && !covers(&quota, "", "pods", &busy));
        assert!(!covers(&quota, "", "services", &json!({})));
        let high = json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}});
        assert!(covers(&high, "", "pods", &busy) && !covers(&high, "", "pods", &idle));
        assert!(covers(&json!({}), "apps", "deployments", &json!({})));
    }
}
