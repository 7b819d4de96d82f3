use super::*;
use serde_json::json;

fn csr(signer: &str, user: &str, groups: &[&str], usages: &[&str]) -> CertificateSigningRequest {
    serde_json::from_value(json!({
        "metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"signerName": signer, "username": user, "groups": groups, "usages": usages, "request": ""},
    }))
    .unwrap()
}

fn node(name: &str) -> Subject {
    Subject {
        common_name: format!("system:node:{name}"),
        organizations: vec![NODES.into()],
        ..Subject::default()
    }
}

const CLIENT_USAGES: [&str; 2] = ["digital signature", "client auth"];
const SERVING_USAGES: [&str; 3] = ["digital signature", "key encipherment", "server auth"];

#[test]
fn who_is_approved() {
    let boot = csr(NODE_CLIENT, "system:bootstrap:abcdef", &["system:bootstrappers"], &CLIENT_USAGES);
    let approved = |c: &CertificateSigningRequest, s: &Subject| match approval(c, s) {
        Some(Approval::IfAllowed { subresource, .. }) => subresource,
        Some(Approval::IfOwnNames) => "own names",
        None => "nobody",
    };
    assert_eq!(approved(&boot, &node("a")), "nodeclient");
    let own = csr(NODE_CLIENT, "system:node:a", &[NODES], &CLIENT_USAGES);
    assert_eq!(approved(&own, &node("a")), "selfnodeclient");
    let masters = Subject { organizations: vec!["system:masters".into()], ..node("a") };
    assert_eq!(approved(&boot, &masters), "nobody");
    let both = Subject { organizations: vec![NODES.into(), "system:masters".into()], ..node("a") };
    assert_eq!(approved(&boot, &both), "nobody");
    let greedy = csr(NODE_CLIENT, "x", &[], &["client auth", "digital signature", "server auth"]);
    assert_eq!(approved(&greedy, &node("a")), "nobody");
    let serving = csr(NODE_SERVING, "system:node:a", &[NODES], &SERVING_USAGES);
    assert_eq!(approved(&serving, &node("a")), "nobody", "it names nothing");
    let named = Subject { dns: vec!["a".into()], ..node("a") };
    assert_eq!(approved(&serving, &named), "own names");
    let foreign = csr(NODE_SERVING, "system:node:b", &[NODES], &SERVING_USAGES);
    assert_eq!(approved(&foreign, &named), "nobody");
    let person = csr(CLIENT, "jane", &[], &CLIENT_USAGES);
    assert_eq!(approved(&person, &Subject { common_name: "jane".into(), ..Subject::default() }), "nobody");
}

#[test]
fn names_of_others_are_not_ones_own() {
    let (one, two): (IpAddr, IpAddr) = ("127.0.1.1".parse().unwrap(), "127.0.2.1".parse().unwrap());
    let asks = |dns: &str, address| Subject { dns: vec![dns.into()], addresses: vec![address], ..node("a") };
    let known = [("a", [one]), ("b", [two])];
    let others = || known.iter().map(|(name, addresses)| (*name, addresses.as_slice()));
    assert!(own_names(&asks("a", one), others()));
    assert!(!own_names(&asks("a", two), others()));
    assert!(!own_names(&asks("b", one), others()));
    assert!(own_names(&asks("a", two), [].into_iter()));
}

#[test]
fn what_is_signed() {
    let jane = Subject { common_name: "jane".into(), ..Subject::default() };
    assert_eq!(refusal(&csr(CLIENT, "x", &[], &["client auth"]), &jane), None);
    assert!(refusal(&csr(CLIENT, "x", &[], &["client auth", "server auth"]), &jane).is_some());
    assert!(refusal(&csr(CLIENT, "x", &[], &["digital signature"]), &jane).is_some());
    assert!(refusal(&csr("example.com/x", "x", &[], &["client auth"]), &jane).is_some());
}

#[test]
fn old_requests_go() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let open = csr(CLIENT, "x", &[], &["client auth"]);
    assert_eq!(forgotten_in(&open, at("2026-01-01T23:59:50Z")), 10);
    let mut denied = open;
    denied.status =
        serde_json::from_value(json!({"conditions": [{"type": "Denied", "status": "True"}]})).ok();
    assert_eq!(forgotten_in(&denied, at("2026-01-01T02:00:00Z")), 0);
}
