//! Roles and bindings that this project adds to Kubernetes' own.

use serde_json::{Value, json};

use crate::authn::image_token;
use crate::authz::escalation::GROUP;

fn role(name: &str, rules: Value) -> Value {
    json!({"kind": "ClusterRole", "name": name, "rules": rules})
}

fn binding(name: &str, role: &str, groups: &[&str]) -> Value {
    let subjects: Vec<Value> =
        groups.iter().map(|g| json!({"kind": "Group", "name": g, "apiGroup": GROUP})).collect();
    json!({"kind": "ClusterRoleBinding", "name": name, "subjects": subjects,
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}})
}

/// A role of a controller that Kubernetes does not have, bound to its service account.
fn controller(name: &str, rules: Value) -> [Value; 2] {
    let full = format!("system:controller:{name}");
    let bound = json!({"kind": "ClusterRoleBinding", "name": full,
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}],
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": full}});
    [role(&full, rules), bound]
}

/// What Kubernetes leaves to the tool that sets a cluster up, in the form of the table's lines.
pub fn own() -> Vec<Value> {
    const CSR: &str = "certificates.k8s.io";
    const SCHEDULING: &str = "scheduling.k8s.io";
    let groups = json!(["podgroups", "workloads"]);
    let read = json!(["get", "list", "watch"]);
    let mut own = vec![
        // kube-public is there to be read by all, `cluster-info` above all.
        json!({"kind": "Role", "namespace": "kube-public", "name": "coracle:public-reader",
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": read}]}),
        json!({"kind": "RoleBinding", "namespace": "kube-public", "name": "coracle:public-reader",
            "subjects": [
                {"kind": "Group", "name": "system:authenticated", "apiGroup": GROUP},
                {"kind": "Group", "name": "system:unauthenticated", "apiGroup": GROUP},
            ],
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "coracle:public-reader"}}),
        // Joining: ask for a certificate, have it approved, and have it renewed.
        binding("coracle:node-bootstrap", "system:node-bootstrapper", &["system:bootstrappers"]),
        binding(
            "coracle:node-autoapprove-bootstrap",
            &format!("system:{CSR}:certificatesigningrequests:nodeclient"),
            &["system:bootstrappers"],
        ),
        binding(
            "coracle:node-autoapprove-renewal",
            &format!("system:{CSR}:certificatesigningrequests:selfnodeclient"),
            &["system:nodes"],
        ),
        json!({"kind": "ClusterRoleBinding", "name": "coracle:node-serving-approver",
            "subjects": [{"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"}],
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": format!("system:{CSR}:kubelet-serving-approver")}}),
        // The part of a node that routes to Services and enforces policies sees them all, and the pods behind them.
        role(
            "coracle:node-network",
            json!([
                {"apiGroups": [""], "resources": ["services", "endpoints", "namespaces", "nodes", "pods"], "verbs": read},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
                {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies", "ingresses", "ingressclasses"], "verbs": read},
                {"apiGroups": ["networking.internal.knative.dev"], "resources": ["ingresses"], "verbs": read},
            ]),
        ),
        binding("coracle:node-network", "coracle:node-network", &["system:nodes"]),
        // Groups of pods, which Kubernetes' roles do not know.
        role(
            "coracle:pod-groups",
            json!([
                {"apiGroups": [SCHEDULING], "resources": ["podgroups"], "verbs": read},
                {"apiGroups": [SCHEDULING], "resources": ["podgroups/status"], "verbs": ["patch"]},
            ]),
        ),
        json!({"kind": "ClusterRoleBinding", "name": "coracle:pod-groups",
            "subjects": [{"kind": "User", "name": "system:kube-scheduler", "apiGroup": GROUP}],
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "coracle:pod-groups"}}),
        json!({"kind": "ClusterRole", "name": "coracle:aggregate-pod-groups-to-view", "aggregateTo": "view",
            "rules": [{"apiGroups": [SCHEDULING], "resources": groups, "verbs": read}]}),
        json!({"kind": "ClusterRole", "name": "coracle:aggregate-pod-groups-to-edit", "aggregateTo": "edit",
            "rules": [{"apiGroups": [SCHEDULING], "resources": groups, "verbs": ["create", "delete", "deletecollection", "patch", "update"]}]}),
        // CronJobs that call a handler do so through the proxy of Services.
        role(
            "coracle:invoker",
            json!([{"apiGroups": [""], "resources": ["services/proxy"], "verbs": ["create"]}]),
        ),
        json!({"kind": "ClusterRoleBinding", "name": "coracle:invoker",
            "subjects": [{"kind": "ServiceAccount", "name": "cronjob-controller", "namespace": "kube-system"}],
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "coracle:invoker"}}),
        // A server that joins shows a secret of its own.
        role("coracle:join", json!([{"nonResourceURLs": ["/coracle/join"], "verbs": ["post"]}])),
        binding("coracle:join", "coracle:join", &["system:authenticated", "system:unauthenticated"]),
        // The files of the web page, which hold nothing of the cluster.
        role("coracle:ui", json!([{"nonResourceURLs": ["/ui", "/ui/*"], "verbs": ["get", "head"]}])),
        binding("coracle:ui", "coracle:ui", &["system:authenticated", "system:unauthenticated"]),
        // The built-in registry of images.
        role(
            "coracle:image-puller",
            json!([{"nonResourceURLs": ["/v2", "/v2/*"], "verbs": ["get", "head"]}]),
        ),
        role("coracle:image-pusher", json!([{"nonResourceURLs": ["/v2", "/v2/*"], "verbs": ["*"]}])),
        binding("coracle:image-puller", "coracle:image-puller", &["system:nodes", image_token::GROUP]),
        role("coracle:image-token", json!([{"nonResourceURLs": [image_token::PATH], "verbs": ["get"]}])),
        binding("coracle:image-token", "coracle:image-token", &["system:nodes"]),
    ];
    own.extend(controllers());
    own
}

/// Controllers of ours, each with what it needs. Adding one is a line here.
fn controllers() -> Vec<Value> {
    let mut all = Vec::new();
    let mut add = |name: &str, rules: Value| all.extend(controller(name, rules));
    let write = json!(["get", "list", "watch", "create", "update", "patch", "delete"]);
    let read = json!(["get", "list", "watch"]);
    add(
        "roll-on-change-controller",
        json!([
            {"apiGroups": [""], "resources": ["configmaps", "secrets"], "verbs": read},
            {"apiGroups": ["apps"], "resources": ["deployments", "statefulsets", "daemonsets"], "verbs": ["patch"]},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
        ]),
    );
    add(
        "metrics-server",
        json!([
            {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": read},
            {"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]},
        ]),
    );
    add(
        "serverless-controller",
        json!([
            {"apiGroups": ["serving.knative.dev", "networking.internal.knative.dev"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["get", "list", "watch", "create", "update", "patch"]},
            {"apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": write},
            {"apiGroups": [""], "resources": ["services"], "verbs": write},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": write},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"], "verbs": read},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["update", "patch"]},
            {"apiGroups": [""], "resources": ["nodes", "pods", "namespaces"], "verbs": read},
            // What the gateways measure.
            {"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
        ]),
    );
    all
}
