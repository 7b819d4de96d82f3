use serde_json::json;

use super::*;

fn settings() -> Settings {
    Settings { node_ip: "127.0.1.1".into(), cluster_domain: "cluster.local".into() }
}

fn service(value: serde_json::Value) -> Service {
    serde_json::from_value(value).expect("a Service")
}

fn slice(service: &str, endpoints: serde_json::Value) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"namespace": "a", "name": format!("{service}-x"), "labels": {SERVICE_NAME_LABEL: service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .expect("an EndpointSlice")
}

fn web(kind: &str) -> Service {
    service(json!({
        "metadata": {"namespace": "a", "name": "web"},
        "spec": {"type": kind, "clusterIP": "127.96.0.9", "clusterIPs": ["127.96.0.9"],
                 "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]},
    }))
}

#[test]
fn only_ready_endpoints_serve() {
    let slices = [slice(
        "web",
        json!([
            {"addresses": ["127.64.0.3"], "conditions": {"ready": true}},
            {"addresses": ["127.64.0.2"]},
            {"addresses": ["127.64.0.4"], "conditions": {"ready": false}},
        ]),
    )];
    let table = table([web("ClusterIP")].iter(), slices.iter(), &settings());
    let listener = &table.services[0].listeners[0];
    assert_eq!((listener.address.as_str(), listener.port), ("127.96.0.9", 80));
    let addresses: Vec<_> = listener.endpoints.iter().map(|e| (e.address.as_str(), e.port)).collect();
    assert_eq!(addresses, [("127.64.0.2", 8080), ("127.64.0.3", 8080)]);
    assert_eq!(table.services[0].listeners.len(), 1, "a ClusterIP Service has no node port");
    let names: Vec<_> = table.names.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["web.a", "web.a.svc", "web.a.svc.cluster.local"]);
}

#[test]
fn a_service_without_endpoints_still_listens() {
    let table = table([web("NodePort")].iter(), [].iter(), &settings());
    let listeners: Vec<_> =
        table.services[0].listeners.iter().map(|l| (l.address.as_str(), l.port, l.endpoints.len())).collect();
    assert_eq!(listeners, [("127.96.0.9", 80, 0), ("127.0.1.1", 30080, 0)]);
}

#[test]
fn endpoints_that_drain_serve_when_nothing_else_does() {
    let draining = json!({"addresses": ["127.64.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let slices = [slice("web", json!([draining]))];
    let table = table([web("ClusterIP")].iter(), slices.iter(), &settings());
    assert_eq!(table.services[0].listeners[0].endpoints.len(), 1);
}

#[test]
fn headless_services_are_names_only() {
    let headless = service(json!({
        "metadata": {"namespace": "a", "name": "db"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]},
    }));
    let slices = [slice("db", json!([{"addresses": ["127.64.0.2"], "hostname": "db-0"}]))];
    let table = table([headless].iter(), slices.iter(), &settings());
    assert!(table.services.is_empty());
    let names: Vec<_> = table.names.iter().map(|n| (n.name.as_str(), n.addresses.len())).collect();
    assert!(names.contains(&("db.a.svc.cluster.local", 1)));
    assert!(names.contains(&("db-0.db.a.svc.cluster.local", 1)));
}
