//! What kinds do over several calls, against a server in this process: Services and their addresses, pods and their end.

use std::collections::HashSet;
use std::sync::Arc;

use axum::body::Body;
use coracle_apiserver::{ApiServer, UserInfo};
use coracle_registry::RegistryOptions;
use coracle_store::{Options, Store};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const RANGE_FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn store() -> Store {
    Store::in_memory(&Options::new("unused"))
}

async fn server(store: &Store) -> ApiServer {
    with(store, RegistryOptions::default()).await
}

async fn with(store: &Store, options: RegistryOptions) -> ApiServer {
    let builtin = coracle_registry::builtin(&options, store).expect("options");
    let server = builtin.install(ApiServer::builder(Arc::new(store.clone()))).build();
    coracle_registry::bootstrap(&server, &options).await.expect("bootstrap");
    coracle_registry::bootstrap(&server, &options).await.expect("bootstrap is repeatable");
    server
}

async fn call(server: &ApiServer, method: &str, path: &str, body: Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request =
        Request::builder().method(method).uri(path).header("content-type", kind).body(body).expect("request");
    let service = server.service_as(UserInfo::new("admin", &["system:masters"]));
    let Ok(response) = service.oneshot(request).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn web() -> Value {
    json!({"ports": [{"port": 80}]})
}

#[tokio::test]
async fn bootstrap_makes_what_every_cluster_has() {
    let server = server(&store()).await;
    let (_, list) = call(&server, "GET", "/api/v1/namespaces", Value::Null).await;
    let names: Vec<&str> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|n| n["metadata"]["name"].as_str())
        .collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    let (_, kubernetes) = call(&server, "GET", &format!("{SERVICES}/kubernetes"), Value::Null).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "127.96.0.1");
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let (code, slice) = call(&server, "GET", slice, Value::Null).await;
    assert_eq!((code, &slice["endpoints"][0]["addresses"]), (200, &json!(["127.0.0.1"])));
    for name in names {
        let (code, status) =
            call(&server, "DELETE", &format!("/api/v1/namespaces/{name}"), Value::Null).await;
        assert_eq!((code, status["reason"].as_str()), (403, Some("Forbidden")), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_unique_under_load_and_after_a_restart() {
    let store = store();
    let first = server(&store).await;
    let tasks: Vec<_> = (0..64)
        .map(|i| {
            let server = first.clone();
            tokio::spawn(async move {
                let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
                call(&server, "POST", SERVICES, service(&format!("s{i}"), spec)).await
            })
        })
        .collect();
    let (mut ips, mut ports) = (HashSet::from(["127.96.0.1".to_string()]), HashSet::new());
    for task in tasks {
        let (code, made) = task.await.expect("task");
        assert_eq!(code, 201, "{made}");
        assert!(ips.insert(made["spec"]["clusterIP"].as_str().expect("address").into()));
        assert!(ports.insert(made["spec"]["ports"][0]["nodePort"].as_i64().expect("port")));
    }
    // Another server over the same store knows what is taken.
    let second = server(&store).await;
    let ip = ips.iter().next().expect("one");
    let (code, status) =
        call(&second, "POST", SERVICES, service("thief", json!({"clusterIP": ip, "ports": [{"port": 80}]})))
            .await;
    assert_eq!(code, 422);
    let words = format!(
        "spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: provided IP is already allocated"
    );
    assert!(status["message"].as_str().expect("message").contains(&words), "{status}");
    let port = ports.iter().next().expect("one");
    let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
    let (code, status) = call(&second, "POST", SERVICES, service("thief", spec)).await;
    assert_eq!(code, 422);
    assert!(
        status["message"].as_str().expect("message").contains("provided port is already allocated"),
        "{status}"
    );
}

#[tokio::test]
async fn addresses_are_given_back() {
    let server = server(&store()).await;
    let wanted = || json!({"clusterIP": "127.96.3.3", "ports": [{"port": 80}]});
    let post = |name: &'static str, spec: Value| call(&server, "POST", SERVICES, service(name, spec));
    // A create that fails holds nothing.
    assert_eq!(post("bad", json!({"clusterIP": "127.96.3.3"})).await.0, 422);
    assert_eq!(
        call(&server, "POST", &format!("{SERVICES}?dryRun=All"), service("dry", wanted())).await.0,
        201
    );
    assert_eq!(post("a", wanted()).await.0, 201);
    assert_eq!(post("b", wanted()).await.0, 422);
    assert_eq!(call(&server, "DELETE", &format!("{SERVICES}/a"), Value::Null).await.0, 200);
    assert_eq!(post("b", wanted()).await.0, 201);
}

#[tokio::test]
async fn services_change_their_type() {
    let server = server(&store()).await;
    let path = format!("{SERVICES}/s");
    let (_, made) = call(&server, "POST", SERVICES, service("s", web())).await;
    let ip = made["spec"]["clusterIP"].clone();
    // A client that leaves the address out keeps it.
    let (code, same) = call(&server, "PUT", &path, service("s", web())).await;
    assert_eq!((code, &same["spec"]["clusterIP"]), (200, &ip));
    let (code, open) = call(&server, "PATCH", &path, json!({"spec": {"type": "NodePort"}})).await;
    assert_eq!((code, &open["spec"]["clusterIP"]), (200, &ip), "{open}");
    let port = open["spec"]["ports"][0]["nodePort"].as_i64().expect("node port");
    assert!((30000..=32767).contains(&port));
    let (_, kept) =
        call(&server, "PUT", &path, service("s", json!({"type": "NodePort", "ports": [{"port": 80}]}))).await;
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], port);
    let (code, closed) = call(&server, "PATCH", &path, json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!((code, closed["spec"]["ports"][0].get("nodePort")), (200, None), "{closed}");
    assert_eq!(closed["spec"].get("externalTrafficPolicy"), None);
    let name = json!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
    let (code, outside) = call(&server, "PATCH", &path, name).await;
    assert_eq!((code, outside["spec"].get("clusterIP")), (200, None), "{outside}");
    let (code, back) =
        call(&server, "PATCH", &path, json!({"spec": {"type": "ClusterIP", "externalName": null}})).await;
    assert_eq!(code, 200, "{back}");
    assert!(back["spec"]["clusterIP"].is_string());
    let (code, status) = call(
        &server,
        "PATCH",
        &path,
        json!({"spec": {"clusterIP": "127.96.9.9", "clusterIPs": ["127.96.9.9"]}}),
    )
    .await;
    assert_eq!(code, 422);
    assert!(status["message"].as_str().expect("message").contains("may not change once set"), "{status}");
}

#[tokio::test]
async fn the_end_of_a_pod() {
    let server = server(&store()).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    call(&server, "POST", "/api/v1/namespaces/default/serviceaccounts", account).await;
    let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let bind = |name: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}});
    // Nobody runs it: it goes at once.
    assert_eq!(call(&server, "POST", PODS, pod("a")).await.0, 201);
    assert_eq!(call(&server, "DELETE", &format!("{PODS}/a"), Value::Null).await.0, 200);
    assert_eq!(call(&server, "GET", &format!("{PODS}/a"), Value::Null).await.0, 404);
    // A node runs it: it gets its time, and goes when the node says so.
    call(&server, "POST", PODS, pod("b")).await;
    assert_eq!(call(&server, "POST", &format!("{PODS}/b/binding"), bind("b")).await.0, 201);
    let (_, bound) = call(&server, "GET", &format!("{PODS}/b"), Value::Null).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let (code, dying) = call(&server, "DELETE", &format!("{PODS}/b"), Value::Null).await;
    assert_eq!((code, &dying["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(30)));
    let (_, table) = call(&server, "GET", &format!("{PODS}/b"), Value::Null).await;
    assert!(table["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(call(&server, "DELETE", &format!("{PODS}/b?gracePeriodSeconds=0"), Value::Null).await.0, 200);
    assert_eq!(call(&server, "GET", &format!("{PODS}/b"), Value::Null).await.0, 404);
    // Evicted: the same, politely.
    call(&server, "POST", PODS, pod("c")).await;
    call(&server, "POST", &format!("{PODS}/c/binding"), bind("c")).await;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "c"}});
    assert_eq!(call(&server, "POST", &format!("{PODS}/c/eviction"), eviction.clone()).await.0, 201);
    let (_, evicted) = call(&server, "GET", &format!("{PODS}/c"), Value::Null).await;
    assert_eq!(evicted["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(call(&server, "POST", &format!("{PODS}/c/eviction"), eviction).await.0, 201);
}

#[tokio::test]
async fn two_groups_serve_the_same_events() {
    let server = server(&store()).await;
    let grouped = "/apis/events.k8s.io/v1/namespaces/default/events";
    let core = "/api/v1/namespaces/default/events";
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "A", "reason": "R",
        "type": "Normal", "note": "text", "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}});
    let (code, made) = call(&server, "POST", grouped, event).await;
    assert_eq!((code, &made["note"]), (201, &json!("text")), "{made}");
    let (code, read) = call(&server, "GET", &format!("{core}/e"), Value::Null).await;
    assert_eq!((code, &read["message"], &read["apiVersion"]), (200, &json!("text"), &json!("v1")), "{read}");
    assert_eq!(read["involvedObject"]["name"], "p");
    let (_, found) =
        call(&server, "GET", &format!("{core}?fieldSelector=involvedObject.name%3Dp"), Value::Null).await;
    assert_eq!(found["items"].as_array().map(Vec::len), Some(1));
    let (_, found) =
        call(&server, "GET", &format!("{grouped}?fieldSelector=regarding.name%3Dp"), Value::Null).await;
    assert_eq!(
        (found["items"][0]["note"].as_str(), found["kind"].as_str()),
        (Some("text"), Some("EventList")),
        "{found}"
    );
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}});
    let (code, patched) = call(&server, "PATCH", &format!("{grouped}/e"), series).await;
    assert_eq!((code, &patched["series"]["count"]), (200, &json!(2)), "{patched}");
    let (code, patched) = call(&server, "PATCH", &format!("{core}/e"), json!({"count": 3})).await;
    assert_eq!((code, &patched["count"]), (200, &json!(3)), "{patched}");
    assert_eq!(call(&server, "DELETE", &format!("{core}/e"), Value::Null).await.0, 200);
    assert_eq!(call(&server, "GET", &format!("{grouped}/e"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn spec_and_status_have_writers_of_their_own() {
    let server = server(&store()).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let (code, made) = call(&server, "POST", "/api/v1/nodes", node).await;
    assert_eq!((code, &made["spec"]["taints"][0]["key"]), (201, &json!("node.kubernetes.io/not-ready")));
    let status = json!({"spec": {"unschedulable": true}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.1.1"}]}});
    let (code, after) = call(&server, "PATCH", "/api/v1/nodes/n1/status", status).await;
    assert_eq!((code, after["spec"].get("unschedulable")), (200, None));
    assert_eq!(after["status"]["addresses"][0]["address"], "127.0.1.1");
    let spec = json!({"spec": {"podCIDR": "127.64.0.0/18"}, "status": {"addresses": []}});
    let (code, after) = call(&server, "PATCH", "/api/v1/nodes/n1", spec).await;
    assert_eq!((code, &after["spec"]["podCIDRs"]), (200, &json!(["127.64.0.0/18"])));
    assert_eq!(after["status"]["addresses"][0]["address"], "127.0.1.1");
    let (code, status) = call(
        &server,
        "PATCH",
        "/api/v1/nodes/n1",
        json!({"spec": {"podCIDR": "127.65.0.0/18", "podCIDRs": ["127.65.0.0/18"]}}),
    )
    .await;
    assert_eq!(code, 422);
    assert!(
        status["message"].as_str().expect("message").contains("node updates may not change podCIDR"),
        "{status}"
    );
}

#[tokio::test]
async fn a_lease_may_be_made_by_an_update() {
    let server = server(&store()).await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n1"},
        "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"}});
    let (code, made) = call(&server, "PUT", path, lease.clone()).await;
    assert_eq!((code, &made["spec"]["holderIdentity"]), (201, &json!("n1")), "{made}");
    // Kubernetes asks for the version that is replaced.
    let (code, status) = call(&server, "PUT", path, lease).await;
    assert_eq!(
        (code, status["details"]["causes"][0]["field"].as_str()),
        (422, Some("metadata.resourceVersion")),
        "{status}"
    );
}

#[tokio::test]
async fn owners_in_another_version_are_asked_in_theirs() {
    let server = server(&store()).await;
    let at =
        |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers/h");
    let apply = async |version: &str, manager: &str, spec: Value| {
        let body = json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": spec});
        let request = Request::builder()
            .method("PATCH")
            .uri(format!("{}?fieldManager={manager}", at(version)))
            .header("content-type", "application/apply-patch+yaml")
            .body(Body::from(body.to_string()))
            .expect("request");
        let Ok(response) =
            server.service_as(UserInfo::new("admin", &["system:masters"])).oneshot(request).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        (code, serde_json::from_slice::<Value>(&bytes).unwrap_or(Value::Null))
    };
    let scaled = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
    let cpu = |percent: i64| json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}]);
    let full = json!({"scaleTargetRef": scaled, "maxReplicas": 5, "metrics": cpu(50)});
    assert_eq!(apply("v2", "new", full).await.0, 201);
    // The same, in the words of old, is owned by both; another number is in conflict with the field of the new version.
    let old = |percent: i64| json!({"scaleTargetRef": scaled, "maxReplicas": 5, "targetCPUUtilizationPercentage": percent});
    let (code, shared) = apply("v1", "old", old(50)).await;
    assert_eq!(code, 200, "{shared}");
    let (code, refused) = apply("v1", "old", old(80)).await;
    assert_eq!(
        (code, refused["message"].as_str()),
        (409, Some("Apply failed with 1 conflict: conflict with \"new\": .spec.metrics")),
        "{refused}"
    );
    // The old one no longer sets it; the new one still does.
    let (code, less) = apply("v1", "old", json!({"scaleTargetRef": scaled, "maxReplicas": 5})).await;
    assert_eq!((code, &less["spec"]["targetCPUUtilizationPercentage"]), (200, &json!(50)), "{less}");
    let (code, changed) =
        call(&server, "PATCH", &at("v1"), json!({"spec": {"targetCPUUtilizationPercentage": 60}})).await;
    assert_eq!(code, 200, "{changed}");
    let (_, read) = call(&server, "GET", &at("v2"), Value::Null).await;
    let managers = read["metadata"]["managedFields"].as_array().expect("managers");
    let new = managers.iter().find(|m| m["manager"] == "new").expect("the first owner");
    assert_eq!(new["fieldsV1"]["f:spec"].get("f:metrics"), None, "{new}");
    assert_eq!(read["spec"]["metrics"], cpu(60));
}

#[tokio::test]
async fn further_ranges_have_addresses_when_the_first_has_none() {
    let options = RegistryOptions {
        service_cidr: coracle_registry::Cidr::parse("127.96.0.0/28").expect("range"),
        ..RegistryOptions::default()
    };
    let server = with(&store(), options).await;
    let make = async |name: &str, spec: Value| call(&server, "POST", SERVICES, service(name, spec)).await;
    let mut made = 0;
    while make(&format!("s{made}"), web()).await.0 == 201 {
        made += 1;
        assert!(made < 16, "a range of sixteen addresses gives out more");
    }
    let (code, full) = make("full", web()).await;
    assert!(code >= 400 && full["message"].as_str().is_some_and(|m| m.contains("range is full")), "{full}");
    let own = json!({"ports": [{"port": 80}], "clusterIP": "127.97.0.5"});
    assert_eq!(make("own", own.clone()).await.0, 422);
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": ["127.97.0.0/28"]}});
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    assert_eq!(call(&server, "POST", ranges, range).await.0, 201);
    let (code, found) = make("own", own).await;
    assert_eq!((code, &found["spec"]["clusterIP"]), (201, &json!("127.97.0.5")), "{found}");
    let (code, found) = make("full", web()).await;
    assert_eq!(code, 201, "{found}");
    assert!(found["spec"]["clusterIP"].as_str().is_some_and(|ip| ip.starts_with("127.97.0.")), "{found}");
    let (code, shown) =
        call(&server, "GET", "/apis/networking.k8s.io/v1/ipaddresses/127.97.0.5", Value::Null).await;
    assert_eq!((code, &shown["spec"]["parentRef"]["name"]), (200, &json!("own")));
    assert_eq!(call(&server, "DELETE", &format!("{ranges}/more"), Value::Null).await.0, 200);
    let (code, left) = call(&server, "GET", &format!("{ranges}/more"), Value::Null).await;
    assert_eq!(
        (code, &left["metadata"]["finalizers"]),
        (200, &json!([RANGE_FINALIZER])),
        "no controller ran"
    );
    let late = json!({"ports": [{"port": 80}], "clusterIP": "127.97.0.6"});
    assert_eq!(make("late", late).await.0, 422);
}

#[tokio::test]
async fn a_cluster_whose_first_range_goes_starts_again_and_gets_it_back() {
    let store = store();
    let started = server(&store).await;
    let ranges = "/apis/networking.k8s.io/v1/servicecidrs";
    let (range, own) = (format!("{ranges}/kubernetes"), format!("{SERVICES}/kubernetes"));
    assert_eq!(call(&started, "DELETE", &range, Value::Null).await.0, 200);
    assert_eq!(call(&started, "DELETE", &own, Value::Null).await.0, 200);
    // Without an address for `kubernetes` there is a server all the same.
    let again = server(&store).await;
    assert_eq!(call(&again, "GET", &own, Value::Null).await.0, 404);
    let (code, full) = call(&again, "POST", SERVICES, service("web", web())).await;
    assert_eq!(code, 500, "a range that goes gives out nothing: {full}");

    let free = json!({"metadata": {"finalizers": null}});
    assert_eq!(call(&again, "PATCH", &range, free).await.0, 200);
    assert_eq!(call(&again, "GET", &range, Value::Null).await.0, 404);
    let (code, full) = call(&again, "POST", SERVICES, service("web", web())).await;
    assert_eq!(code, 500, "nor does one that is gone: {full}");
    let options = RegistryOptions::default();
    let period = std::time::Duration::from_millis(1);
    let kept = coracle_registry::bootstrap::keep_services(&again, &options, period, async {
        while call(&again, "GET", &own, Value::Null).await.0 != 200 {
            tokio::task::yield_now().await;
        }
    });
    tokio::time::timeout(std::time::Duration::from_secs(30), kept).await.expect("the Service is made again");
    assert_eq!(call(&again, "GET", &range, Value::Null).await.0, 200);
    assert_eq!(call(&again, "POST", SERVICES, service("web", web())).await.0, 201);
}
