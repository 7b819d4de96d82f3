use serde_json::{Value, json};

use super::*;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a test's object")
}

fn service(name: &str, labels: Value) -> k8s_openapi::api::core::v1::Service {
    object(json!({
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "spec": {"ports": [{"name": "http", "port": 80}]}
    }))
}

fn slice(service: &str, address: &str, ready: bool) -> k8s_openapi::api::discovery::v1::EndpointSlice {
    object(json!({
        "metadata": {"namespace": "shop", "name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": ready}}]
    }))
}

fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": {"number": 80}}}})
}

fn ingress(host: &str, paths: &[Value]) -> Ingress {
    object(json!({
        "metadata": {"namespace": "shop", "name": format!("of-{host}")},
        "spec": {"rules": [{"host": host, "http": {"paths": paths}}]}
    }))
}

fn found(table: &Table, host: &str, path: &str) -> Option<String> {
    table.find(host, path, 0).map(|target| target.backend.key.service.clone())
}

#[test]
fn the_longest_path_of_the_most_particular_host_wins() {
    let ingresses = [
        ingress(
            "shop.example",
            &[path("/", "Prefix", "web"), path("/api", "Prefix", "api"), path("/api", "Exact", "root")],
        ),
        ingress("*.example", &[path("/", "Prefix", "other")]),
        ingress("", &[path("/health", "Exact", "health")]),
    ];
    let table = Table::new(ingresses.iter(), [].iter(), [].iter(), &Services::default());
    let cases = [
        ("shop.example", "/", Some("web")),
        ("SHOP.example", "/apis", Some("web")),
        ("shop.example", "/api", Some("root")),
        ("shop.example", "/api/v1", Some("api")),
        ("a.example", "/api", Some("other")),
        ("a.b.example", "/", None),
        ("elsewhere", "/health", Some("health")),
        ("elsewhere", "/healthy", None),
    ];
    for (host, path, wanted) in cases {
        assert_eq!(found(&table, host, path).as_deref(), wanted, "{host}{path}");
    }
}

#[test]
fn only_ready_endpoints_count() {
    let services = [service("web", json!({}))];
    let slices = [slice("web", "127.64.0.2", true), slice("web", "127.64.0.3", false)];
    let services = Services::new(services.iter(), slices.iter());
    let ingress = ingress("shop.example", &[path("/", "Prefix", "web")]);
    let table = Table::new([ingress].iter(), [].iter(), [].iter(), &services);
    let target = table.find("shop.example", "/", 0).expect("a target");
    assert_eq!(target.backend.endpoints, ["127.64.0.2:8080".parse().expect("an address")]);
    assert_eq!(target.backend.revision, None);
}

#[test]
fn a_rewrite_replaces_the_path_or_its_prefix() {
    let rewrite = |target: &str, declared: &str, asked: &str| {
        let mut ingress = ingress("", &[path(declared, "ImplementationSpecific", "web")]);
        let annotation = ("nginx.ingress.kubernetes.io/rewrite-target".to_owned(), target.to_owned());
        ingress.metadata.annotations = Some([annotation].into());
        let table = Table::new([ingress].iter(), [].iter(), [].iter(), &Services::default());
        table.find("any", asked, 0).expect("a target").path
    };
    assert_eq!(rewrite("/", "/testpath", "/testpath").as_deref(), Some("/"));
    assert_eq!(rewrite("/", "/testpath", "/testpath/deep").as_deref(), Some("/"));
    assert_eq!(rewrite("/$2", "/app(/|$)(.*)", "/app/deep/er").as_deref(), Some("/deep/er"));
}

#[test]
fn ingresses_of_another_controller_are_left_alone() {
    let class = |name: &str, controller: &str, default: bool| -> IngressClass {
        object(json!({
            "metadata": {"name": name, "annotations": {"ingressclass.kubernetes.io/is-default-class": default.to_string()}},
            "spec": {"controller": controller}
        }))
    };
    let ours = class("internal", "coracle.dev/ingress", false);
    let theirs = class("traefik", "traefik.io/ingress-controller", true);
    let named = |name: Option<&str>| -> Ingress {
        object(json!({"metadata": {"namespace": "shop", "name": "a"}, "spec": {"ingressClassName": name}}))
    };
    assert!(ingress::is_ours(&named(Some("nginx")), &[]));
    assert!(ingress::is_ours(&named(Some("internal")), &[&ours]));
    assert!(!ingress::is_ours(&named(Some("internal")), &[]));
    assert!(!ingress::is_ours(&named(Some("traefik")), &[&theirs]));
    assert!(ingress::is_ours(&named(None), &[&ours]));
    assert!(!ingress::is_ours(&named(None), &[&theirs]));
}

#[test]
fn shares_of_a_route_are_kept() {
    let route: KnativeIngress = object(json!({
        "metadata": {"namespace": "shop", "name": "hello"},
        "spec": {"rules": [{"hosts": ["hello.shop.example.com"], "http": {"paths": [{"splits": [
            {"serviceNamespace": "shop", "serviceName": "hello-00001", "servicePort": 80, "percent": 90},
            {"serviceNamespace": "shop", "serviceName": "hello-00002", "servicePort": 80, "percent": 10},
            {"serviceNamespace": "shop", "serviceName": "hello-00003", "servicePort": 80, "percent": 0}
        ]}]}}]}
    }));
    let revision = service("hello-00001", json!({"serving.knative.dev/revision": "hello-00001"}));
    let services = [revision];
    let services = Services::new(services.iter(), [].iter());
    let table = Table::new([].iter(), [].iter(), [route].iter(), &services);
    let mut counts = BTreeMap::<String, u32>::new();
    for draw in 0..1000 {
        let target = table.find("hello.shop.example.com", "/any", draw).expect("a target");
        *counts.entry(target.backend.key.service.clone()).or_default() += 1;
    }
    assert_eq!(counts, [("hello-00001".to_owned(), 900), ("hello-00002".to_owned(), 100)].into());
    let held = table.find("hello.shop.example.com", "/", 0).expect("a target").backend;
    assert_eq!((held.revision.as_deref(), held.endpoints.len()), (Some("hello-00001"), 0));
}
