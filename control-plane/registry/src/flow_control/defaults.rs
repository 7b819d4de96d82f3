//! The levels and schemas of a new cluster: those of Kubernetes 1.36.

use serde_json::{Value, json};

/// Levels that queue: name, shares, percent that is lent, queues, hand, length of a queue.
const LEVELS: [(&str, u32, u32, u32, u32, u32); 6] = [
    ("system", 30, 33, 64, 6, 50),
    ("node-high", 40, 25, 64, 6, 50),
    ("leader-election", 10, 0, 16, 4, 50),
    ("workload-high", 40, 50, 128, 6, 50),
    ("workload-low", 100, 90, 128, 6, 50),
    ("global-default", 20, 50, 128, 6, 50),
];

/// Who is meant by a schema.
enum Who {
    User(&'static str),
    Group(&'static str),
    /// All service accounts of a namespace.
    Accounts(&'static str),
}

/// What is meant by a schema.
enum What {
    Everything,
    Health,
    Leases,
    Nodes,
}

/// Name, precedence, level, what tells flows apart, who, what.
type Schema = (&'static str, u32, &'static str, &'static str, &'static [Who], What);

const EVERYONE: &[Who] = &[Who::Group("system:unauthenticated"), Who::Group("system:authenticated")];
const COMPONENTS: &[Who] = &[
    Who::User("system:kube-controller-manager"),
    Who::User("system:kube-scheduler"),
    Who::Accounts("kube-system"),
];

const SCHEMAS: [Schema; 11] = [
    ("exempt", 1, "exempt", "", &[Who::Group("system:masters")], What::Everything),
    ("probes", 2, "exempt", "", EVERYONE, What::Health),
    ("system-leader-election", 100, "leader-election", "ByUser", COMPONENTS, What::Leases),
    ("system-node-high", 400, "node-high", "ByUser", &[Who::Group("system:nodes")], What::Nodes),
    ("system-nodes", 500, "system", "ByUser", &[Who::Group("system:nodes")], What::Everything),
    (
        "kube-controller-manager",
        800,
        "workload-high",
        "ByNamespace",
        &[Who::User("system:kube-controller-manager")],
        What::Everything,
    ),
    (
        "kube-scheduler",
        800,
        "workload-high",
        "ByNamespace",
        &[Who::User("system:kube-scheduler")],
        What::Everything,
    ),
    (
        "kube-system-service-accounts",
        900,
        "workload-high",
        "ByNamespace",
        &[Who::Accounts("kube-system")],
        What::Everything,
    ),
    (
        "service-accounts",
        9000,
        "workload-low",
        "ByUser",
        &[Who::Group("system:serviceaccounts")],
        What::Everything,
    ),
    ("global-default", 9900, "global-default", "ByUser", EVERYONE, What::Everything),
    ("catch-all", 10_000, "catch-all", "ByUser", EVERYONE, What::Everything),
];

/// All of them with the paths of their collections, levels first.
pub fn objects() -> Vec<(&'static str, Value)> {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind, "spec": spec,
            "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
        })
    };
    let levels = ["exempt", "catch-all"].into_iter().chain(LEVELS.iter().map(|l| l.0));
    let levels = levels.filter_map(|name| {
        let object = object("PriorityLevelConfiguration", name, level(name)?);
        Some(("/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations", object))
    });
    let schemas = SCHEMAS.iter().map(|s| {
        ("/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas", object("FlowSchema", s.0, schema_spec(s)))
    });
    levels.chain(schemas).collect()
}

/// The spec of a level that every cluster has.
pub fn level(name: &str) -> Option<Value> {
    match name {
        "exempt" => {
            Some(json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}))
        }
        "catch-all" => Some(json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"},
        }})),
        other => {
            let (_, shares, lent, queues, hand, length) = LEVELS.iter().find(|l| l.0 == other)?;
            Some(json!({"type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": lent,
                "limitResponse": {"type": "Queue", "queuing": {
                    "queues": queues, "handSize": hand, "queueLengthLimit": length,
                }},
            }}))
        }
    }
}

/// The spec of a schema that every cluster has.
pub fn schema(name: &str) -> Option<Value> {
    SCHEMAS.iter().find(|s| s.0 == name).map(schema_spec)
}

fn schema_spec((_, precedence, level, distinguisher, who, what): &Schema) -> Value {
    let mut rule = rules(what);
    rule["subjects"] = who.iter().map(subject).collect();
    let mut spec = json!({
        "matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": level}, "rules": [rule],
    });
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    spec
}

fn subject(who: &Who) -> Value {
    match who {
        Who::User(name) => json!({"kind": "User", "user": {"name": name}}),
        Who::Group(name) => json!({"kind": "Group", "group": {"name": name}}),
        Who::Accounts(namespace) => {
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": "*"}})
        }
    }
}

fn rules(what: &What) -> Value {
    let leases = |verbs: Value| json!({"apiGroups": ["coordination.k8s.io"], "namespaces": ["*"], "resources": ["leases"], "verbs": verbs});
    match what {
        What::Everything => json!({
            "nonResourceRules": [{"nonResourceURLs": ["*"], "verbs": ["*"]}],
            "resourceRules": [{
                "apiGroups": ["*"], "clusterScope": true, "namespaces": ["*"], "resources": ["*"], "verbs": ["*"],
            }],
        }),
        What::Health => json!({
            "nonResourceRules": [{"nonResourceURLs": ["/healthz", "/readyz", "/livez"], "verbs": ["get"]}],
        }),
        What::Leases => json!({"resourceRules": [leases(json!(["get", "create", "update"]))]}),
        What::Nodes => json!({"resourceRules": [
            {"apiGroups": [""], "clusterScope": true, "namespaces": ["*"], "resources": ["nodes", "nodes/status"], "verbs": ["*"]},
            leases(json!(["*"])),
        ]}),
    }
}
