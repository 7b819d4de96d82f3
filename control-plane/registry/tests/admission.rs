//! What built-in admission plugins do, in the words of Kubernetes, against a server in this process.

use std::sync::Arc;

use axum::body::Body;
use coracle_apiserver::{ApiServer, UserInfo};
use coracle_registry::RegistryOptions;
use coracle_store::{Options, Store};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn server(options: RegistryOptions) -> ApiServer {
    let store = Store::in_memory(&Options::new("unused"));
    let builtin = coracle_registry::builtin(&options, &store).expect("options");
    let server = builtin.install(ApiServer::builder(Arc::new(store))).build();
    coracle_registry::bootstrap(&server, &options).await.expect("bootstrap");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let (code, said) = call(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
    assert!(code == 201 || code == 409, "{said}");
    server
}

async fn call(server: &ApiServer, method: &str, path: &str, body: Value) -> (u16, Value) {
    call_as(server, UserInfo::new("admin", &["system:masters"]), method, path, body).await
}

async fn call_as(server: &ApiServer, user: UserInfo, method: &str, path: &str, body: Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request =
        Request::builder().method(method).uri(path).header("content-type", kind).body(body).expect("request");
    let Ok(response) = server.service_as(user).oneshot(request).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().expect("spec") {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn words(said: &Value) -> &str {
    said["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn quotas_have_scopes() {
    let server = server(RegistryOptions::default()).await;
    let quota = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    for (name, spec) in [
        ("best", json!({"hard": {"pods": "1"}, "scopes": ["BestEffort"]})),
        ("ends", json!({"hard": {"pods": "1"}, "scopes": ["Terminating"]})),
        (
            "high",
            json!({"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["system-node-critical"]}]}}),
        ),
    ] {
        assert_eq!(call(&server, "POST", quotas, quota(name, spec)).await.0, 201);
    }
    assert_eq!(call(&server, "POST", PODS, pod("a", json!({}))).await.0, 201);
    let (code, said) = call(&server, "POST", PODS, pod("b", json!({}))).await;
    assert_eq!(
        (code, words(&said)),
        (
            403,
            "pods \"b\" is forbidden: exceeded quota: best, requested: pods=1, used: pods=1, limited: pods=1"
        )
    );
    let burst = json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1m"}}}]);
    assert_eq!(call(&server, "POST", PODS, pod("b", json!({"containers": burst}))).await.0, 201);
    let ends = json!({"containers": burst, "activeDeadlineSeconds": 9});
    assert_eq!(call(&server, "POST", PODS, pod("e", ends.clone())).await.0, 201);
    let (code, said) = call(&server, "POST", PODS, pod("f", ends)).await;
    assert!(code == 403 && words(&said).contains("exceeded quota: ends"), "{said}");
    let high = json!({"containers": burst, "priorityClassName": "system-node-critical"});
    let (code, said) = call(&server, "POST", PODS, pod("h", high)).await;
    assert!(code == 403 && words(&said).contains("exceeded quota: high"), "{said}");
}

#[tokio::test]
async fn limits_fill_in_and_bound() {
    let server = server(RegistryOptions::default()).await;
    let range = json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}, "min": {"cpu": "50m"}}]}});
    assert_eq!(call(&server, "POST", "/api/v1/namespaces/default/limitranges", range).await.0, 201);
    let (_, made) = call(&server, "POST", PODS, pod("a", json!({}))).await;
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let big = json!([{"name": "c", "image": "i", "resources": {"limits": {"cpu": "2"}}}]);
    let (code, said) = call(&server, "POST", PODS, pod("b", json!({"containers": big}))).await;
    assert_eq!(
        (code, words(&said)),
        (403, "pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2")
    );
}

#[tokio::test]
async fn classes_and_tolerations_become_part_of_pods() {
    let server = server(RegistryOptions::default()).await;
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "vm"}, "handler": "vm",
        "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists", "effect": "NoSchedule"}]}});
    assert_eq!(call(&server, "POST", "/apis/node.k8s.io/v1/runtimeclasses", class).await.0, 201);
    let (code, made) = call(&server, "POST", PODS, pod("a", json!({"runtimeClassName": "vm"}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        (&made["spec"]["overhead"], &made["spec"]["nodeSelector"]),
        (&json!({"cpu": "250m"}), &json!({"vm": "yes"}))
    );
    let keys: Vec<&str> = made["spec"]["tolerations"]
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|t| t["key"].as_str())
        .collect();
    assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "vm"]);
    assert_eq!(made["spec"]["tolerations"][0]["tolerationSeconds"], 300);
    let wrong = json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}});
    let (code, said) = call(&server, "POST", PODS, pod("b", wrong)).await;
    assert_eq!(
        (code, words(&said)),
        (
            403,
            "pods \"b\" is forbidden: conflict: runtimeClass.scheduling.nodeSelector and pod.spec.nodeSelector have conflicting values"
        )
    );
    let (code, said) = call(&server, "POST", PODS, pod("b", json!({"runtimeClassName": "none"}))).await;
    assert_eq!(
        (code, words(&said)),
        (403, "pods \"b\" is forbidden: pod rejected: RuntimeClass \"none\" not found")
    );
    let (code, said) = call(&server, "POST", PODS, pod("b", json!({"overhead": {"cpu": "1"}}))).await;
    assert_eq!(
        (code, words(&said)),
        (
            403,
            "pods \"b\" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
        )
    );
}

#[tokio::test]
async fn nodes_let_go_of_their_own_volumes_only() {
    let server = server(RegistryOptions::default()).await;
    let node = || UserInfo::new("system:node:n1", &["system:nodes"]);
    let made = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}});
    let (code, made) = call_as(&server, node(), "POST", "/api/v1/nodes", made).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(
        made["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
    let volume = |name: &str, host: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name, "finalizers": ["coracle.dev/local-data", "x.io/y"]},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/x"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}}})
    };
    let volumes = "/api/v1/persistentvolumes";
    for (name, host) in [("mine", "n1"), ("other", "n2")] {
        assert_eq!(call(&server, "POST", volumes, volume(name, host)).await.0, 201);
    }
    let patch = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
    let rest = json!(["x.io/y", "kubernetes.io/pv-protection"]);
    let path = |name: &str| format!("{volumes}/{name}");
    let (code, said) = call_as(&server, node(), "PATCH", &path("other"), patch(rest.clone())).await;
    assert_eq!(
        (code, words(&said)),
        (
            403,
            "persistentvolumes \"other\" is forbidden: node \"n1\" is not allowed to modify volume \"other\", which is not its own"
        )
    );
    for wrong in [
        patch(json!([])),
        json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}),
        json!({"metadata": {"labels": {"a": "b"}}}),
    ] {
        let (code, said) = call_as(&server, node(), "PATCH", &path("mine"), wrong).await;
        assert!(
            code == 403 && words(&said).contains("may only take the finalizer coracle.dev/local-data"),
            "{said}"
        );
    }
    let (code, said) = call_as(&server, node(), "PATCH", &path("mine"), patch(rest)).await;
    assert_eq!(code, 200, "{said}");
}

#[tokio::test]
async fn owners_need_permissions_where_that_is_enforced() {
    let options = RegistryOptions { enforce_owner_permissions: true, ..RegistryOptions::default() };
    let server = server(options).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "update", "patch", "get"]}]});
    let bind = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    assert_eq!(call(&server, "POST", &format!("{rbac}/roles"), role).await.0, 201);
    assert_eq!(call(&server, "POST", &format!("{rbac}/rolebindings"), bind).await.0, 201);
    let eve = || UserInfo::new("eve", &[]);
    let maps = "/api/v1/namespaces/default/configmaps";
    let owner = |block: bool| json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u", "blockOwnerDeletion": block}]);
    let map = |name: &str, owners: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}});
    assert_eq!(call_as(&server, eve(), "POST", maps, map("a", owner(false))).await.0, 201);
    let (code, said) = call_as(&server, eve(), "POST", maps, map("b", owner(true))).await;
    assert_eq!(code, 403);
    assert!(words(&said).starts_with("configmaps \"b\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: "), "{said}");
    let change = json!({"metadata": {"ownerReferences": null}});
    let (code, said) = call_as(&server, eve(), "PATCH", &format!("{maps}/a"), change.clone()).await;
    assert_eq!(code, 403);
    assert!(
        words(&said).starts_with(
            "configmaps \"a\" is forbidden: cannot set an ownerRef on a resource you can't delete: "
        ),
        "{said}"
    );
    assert_eq!(call(&server, "PATCH", &format!("{maps}/a"), change).await.0, 200);
    assert_eq!(call(&server, "POST", maps, map("b", owner(true))).await.0, 201);
}

#[tokio::test]
async fn classes_give_pods_their_priority() {
    let server = server(RegistryOptions::default()).await;
    let class = |name: &str, value: i64, default: bool| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            "globalDefault": default, "preemptionPolicy": "Never"})
    };
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let (_, none) = call(&server, "POST", PODS, pod("none", json!({}))).await;
    assert_eq!(
        (&none["spec"]["priority"], &none["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    assert_eq!(call(&server, "POST", classes, class("usual", 5, true)).await.0, 201);
    let (code, said) = call(&server, "POST", classes, class("other", 6, true)).await;
    assert!(
        code == 403
            && words(&said)
                .contains("PriorityClass usual is already marked as default. Only one default can exist"),
        "{said}"
    );
    let (code, said) = call(&server, "POST", classes, class("huge", 1_000_000_001, false)).await;
    assert!(
        code == 422
            && words(&said)
                .contains("value: Forbidden: maximum allowed value of a user defined priority is 1000000000"),
        "{said}"
    );
    let (_, usual) = call(&server, "POST", PODS, pod("usual", json!({}))).await;
    let spec = &usual["spec"];
    assert_eq!(
        (&spec["priorityClassName"], &spec["priority"], &spec["preemptionPolicy"]),
        (&json!("usual"), &json!(5), &json!("Never"))
    );
    let (_, high) =
        call(&server, "POST", PODS, pod("high", json!({"priorityClassName": "system-node-critical"}))).await;
    assert_eq!(high["spec"]["priority"], 2_000_001_000);
    let (code, said) = call(&server, "POST", PODS, pod("lost", json!({"priorityClassName": "lost"}))).await;
    assert_eq!(
        (code, words(&said)),
        (403, "pods \"lost\" is forbidden: no PriorityClass with name lost was found")
    );
    let (code, said) = call(&server, "POST", PODS, pod("own", json!({"priority": 7}))).await;
    assert!(
        code == 403
            && words(&said).contains("the integer value of priority (7) must not be provided in pod spec"),
        "{said}"
    );
}

#[tokio::test]
async fn claims_get_the_newest_default_class() {
    let server = server(RegistryOptions { default_storage_class: false, ..RegistryOptions::default() }).await;
    let claim = |name: &str, class: Value| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "1Mi"}}}})
    };
    let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
    let (code, made) = call(&server, "POST", claims, claim("before", Value::Null)).await;
    assert_eq!((code, &made["spec"]["storageClassName"]), (201, &Value::Null), "{made}");
    for name in ["b", "a", "plain"] {
        let default = (name != "plain").to_string();
        let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "x.io/y",
            "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}}});
        assert_eq!(call(&server, "POST", "/apis/storage.k8s.io/v1/storageclasses", class).await.0, 201);
    }
    // Both are of one second: then the name decides.
    let (_, made) = call(&server, "POST", claims, claim("c", Value::Null)).await;
    let chosen = made["spec"]["storageClassName"].as_str().unwrap_or_default();
    assert!(["a", "b"].contains(&chosen), "{made}");
    let (_, none) = call(&server, "POST", claims, claim("none", "".into())).await;
    assert_eq!(none["spec"]["storageClassName"], "");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let grown = json!({"spec": {"resources": {"requests": {"storage": "2Mi"}}}});
    let (code, said) = call(&server, "PATCH", &format!("{claims}/c"), grown).await;
    assert!(
        code == 422 && words(&said).contains("spec is immutable after creation except resources.requests"),
        "{said}"
    );
}
