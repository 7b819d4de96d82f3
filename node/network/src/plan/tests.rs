use serde_json::json;

use super::*;

fn settings() -> Settings {
    Settings {
        node_name: "node-1".into(),
        node_ip: "127.0.1.1".into(),
        cluster_domain: "cluster.local".into(),
        cluster_dns: None,
        upstreams: Vec::new(),
        resolve_only: false,
    }
}

fn plan(services: &[Service], slices: &[EndpointSlice]) -> feed::Table {
    let (services, slices) = (services.iter().collect(), slices.iter().collect());
    table(&Objects { services, slices, ..Objects::default() }, &settings())
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
    let table = plan(&[web("ClusterIP")], &slices);
    let listener = &table.services[0].listeners[0];
    assert_eq!((listener.address.as_str(), listener.port), ("127.96.0.9", 80));
    let addresses: Vec<_> = listener.endpoints.iter().map(|e| (e.address.as_str(), e.port)).collect();
    assert_eq!(addresses, [("127.64.0.2", 8080), ("127.64.0.3", 8080)]);
    assert_eq!(table.services[0].listeners.len(), 1, "a ClusterIP Service has no node port");
    let names: Vec<_> = table.names.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["_http._tcp.web.a.svc.cluster.local", "web.a.svc.cluster.local"]);
}

#[test]
fn a_service_without_endpoints_still_listens() {
    let table = plan(&[web("NodePort")], &[]);
    let listeners: Vec<_> =
        table.services[0].listeners.iter().map(|l| (l.address.as_str(), l.port, l.endpoints.len())).collect();
    assert_eq!(listeners, [("127.96.0.9", 80, 0), ("127.0.1.1", 30080, 0)]);
}

#[test]
fn endpoints_that_drain_serve_when_nothing_else_does() {
    let draining = json!({"addresses": ["127.64.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let slices = [slice("web", json!([draining]))];
    let table = plan(&[web("ClusterIP")], &slices);
    assert_eq!(table.services[0].listeners[0].endpoints.len(), 1);
}

#[test]
fn headless_services_are_names_only() {
    let headless = service(json!({
        "metadata": {"namespace": "a", "name": "db"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}]},
    }));
    let slices = [slice("db", json!([{"addresses": ["127.64.0.2"], "hostname": "db-0"}]))];
    let table = plan(&[headless], &slices);
    assert!(table.services.is_empty());
    let names: Vec<_> = table.names.iter().map(|n| (n.name.as_str(), n.addresses.len())).collect();
    assert!(names.contains(&("db.a.svc.cluster.local", 1)));
    assert!(names.contains(&("db-0.db.a.svc.cluster.local", 1)));
}

fn names_of(table: &feed::Table) -> Vec<String> {
    let shown = |n: &feed::Name| {
        let srv: Vec<_> = n.srv.iter().map(|s| format!("{}:{}", s.target, s.port)).collect();
        format!("{} {}{}{}", n.name, n.addresses.join(","), n.cname, srv.join(","))
    };
    table.names.iter().map(shown).collect()
}

#[test]
fn each_kind_of_service_has_its_names() {
    let external = service(json!({"metadata": {"namespace": "a", "name": "out"},
        "spec": {"type": "ExternalName", "externalName": "example.com"}}));
    let headless = service(json!({"metadata": {"namespace": "a", "name": "db"},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}}));
    let slices = [slice(
        "db",
        json!([{"addresses": ["10.0.0.2"], "hostname": "db-0"}, {"addresses": ["10.0.0.3"]},
               {"addresses": ["10.0.0.4"], "conditions": {"ready": false}}]),
    )];
    let table = plan(&[external, headless, web("ClusterIP")], &slices);
    let suffix = "a.svc.cluster.local";
    assert_eq!(
        names_of(&table),
        [
            format!("_http._tcp.db.{suffix} 10-0-0-3.db.{suffix}:8080,db-0.db.{suffix}:8080"),
            format!("db.{suffix} 10.0.0.2,10.0.0.3"),
            format!("10-0-0-3.db.{suffix} 10.0.0.3"),
            format!("db-0.db.{suffix} 10.0.0.2"),
            format!("out.{suffix} example.com"),
            format!("_http._tcp.web.{suffix} web.{suffix}:80"),
            format!("web.{suffix} 127.96.0.9"),
        ]
    );
}

#[test]
fn traffic_policies_choose_by_node() {
    let mut balanced = web("LoadBalancer");
    let spec = balanced.spec.as_mut().expect("a spec");
    spec.external_traffic_policy = Some("Local".into());
    spec.external_ips = Some(vec!["192.0.2.7".into()]);
    balanced.status =
        serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}})).ok();
    let slices = [slice(
        "web",
        json!([{"addresses": ["10.0.0.2"], "nodeName": "node-1"}, {"addresses": ["10.0.0.3"], "nodeName": "node-2"}]),
    )];
    let table = plan(&[balanced], &slices);
    let listeners: Vec<_> = table.services[0]
        .listeners
        .iter()
        .map(|l| format!("{}:{} {}", l.address, l.port, l.endpoints.len()))
        .collect();
    assert_eq!(listeners, ["127.96.0.9:80 2", "192.0.2.9:80 1", "192.0.2.7:80 1", "127.0.1.1:30080 1"]);
}

fn pod(name: &str, ip: &str, node: &str, port: u16) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"namespace": "a", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [
            {"name": "main", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"podIP": ip, "phase": "Running"},
    }))
    .expect("a Pod")
}

fn policies(spec: serde_json::Value) -> Vec<feed::Policy> {
    let policy: NetworkPolicy =
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "p"}, "spec": spec}))
            .expect("a policy");
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "a", "labels": {"team": "x"}}}))
            .expect("a Namespace");
    let pods = [pod("web", "10.0.0.2", "node-1", 80), pod("ask", "10.0.0.3", "node-2", 81)];
    let objects = Objects {
        pods: pods.iter().collect(),
        namespaces: vec![&namespace],
        policies: vec![&policy],
        ..Objects::default()
    };
    table(&objects, &settings()).policies
}

#[test]
fn a_policy_is_resolved_to_addresses_of_pods_of_this_node() {
    let found = policies(json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "ask"}}},
                              {"ipBlock": {"cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"]}}],
                     "ports": [{"port": "http"}, {"port": 90, "endPort": 99, "protocol": "UDP"}]}],
    }));
    assert_eq!(found.len(), 1);
    let policy = &found[0];
    assert_eq!(
        (policy.pods.as_slice(), policy.ingress, policy.egress),
        (&["10.0.0.2".to_owned()][..], true, false)
    );
    let rule = &policy.ingress_rules[0];
    let peers: Vec<_> = rule.peers.iter().map(|p| format!("{} {}", p.cidr, p.except.join(","))).collect();
    assert_eq!(peers, ["10.0.0.3/32 ", "10.9.0.0/16 10.9.1.0/24"]);
    let ports: Vec<_> = rule.ports.iter().map(|p| (p.protocol(), p.first, p.last)).collect();
    assert_eq!(ports, [(feed::Protocol::Tcp, 80, 80), (feed::Protocol::Udp, 90, 99)]);
    assert!(!rule.any_peer && !rule.any_port);
}

#[test]
fn what_a_policy_leaves_out_is_its_default() {
    let found = policies(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    assert!(found.iter().all(|p| p.pods == ["10.0.0.2"]), "{found:?}");
    assert_eq!(found.iter().filter(|p| p.egress && p.egress_rules.is_empty()).count(), 1);
    assert_eq!(
        found.iter().filter(|p| p.ingress && p.ingress_rules.len() == 1).count(),
        1,
        "from the node only"
    );
    let found = policies(json!({"podSelector": {"matchLabels": {"app": "ask"}}}));
    assert!(found.is_empty(), "its pods are another node's");
    let found = policies(json!({"podSelector": {}, "egress": [{"to": [
        {"namespaceSelector": {"matchLabels": {"team": "x"}}}], "ports": [{"port": "http"}]}]}));
    let egress = found.iter().find(|p| p.egress).expect("an egress policy");
    let rules: Vec<_> =
        egress.egress_rules.iter().map(|r| (r.peers[0].cidr.as_str(), r.ports[0].first)).collect();
    assert_eq!(rules, [("10.0.0.2/32", 80), ("10.0.0.3/32", 81)], "a named port is the peer's");
}
