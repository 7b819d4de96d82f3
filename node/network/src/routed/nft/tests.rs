use super::*;

fn listener(address: &str, port: u32, endpoints: &[&str]) -> feed::Listener {
    let endpoint = |ip: &&str| feed::Endpoint { address: (*ip).into(), port: 8080 };
    feed::Listener {
        address: address.into(),
        port,
        endpoints: endpoints.iter().map(endpoint).collect(),
        ..Default::default()
    }
}

fn table() -> feed::Table {
    let pods = ["10.244.0.2", "10.244.1.2"];
    let outside = feed::Listener { masquerade: true, ..listener("192.168.0.1", 30080, &pods) };
    let rule = feed::Rule {
        peers: vec![feed::IpBlock { cidr: "10.9.0.0/16".into(), except: vec!["10.9.1.0/24".into()] }],
        ports: vec![feed::PolicyPort { protocol: 0, first: 80, last: 90 }],
        ..Default::default()
    };
    feed::Table {
        services: vec![
            feed::Service {
                listeners: vec![listener("10.96.0.9", 80, &pods), outside, listener("10.96.0.8", 80, &[])],
                ..Default::default()
            },
            feed::Service {
                listeners: vec![listener("10.96.0.7", 80, &pods[..1])],
                client_ip_affinity: true,
                ..Default::default()
            },
        ],
        policies: vec![feed::Policy {
            pods: vec!["10.244.0.2".into()],
            ingress: true,
            ingress_rules: vec![rule],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn script_of(table: &feed::Table) -> String {
    let ip = |text: &str| text.parse().ok();
    script(table, "10.96.0.0/12", ip("10.96.0.10"), ip("10.244.0.1"))
}

#[test]
fn services_lead_to_endpoints() {
    let text = script_of(&table());
    for part in [
        "elements = { 10.96.0.9 . tcp . 80 : goto service-0, 192.168.0.1 . tcp . 30080 : goto service-1, 10.96.0.7 . tcp . 80 : goto service-2 }",
        "numgen random mod 2 vmap { 0 : goto endpoint-0, 1 : goto endpoint-1 }",
        "jhash ip saddr mod 1 seed 0x1 vmap { 0 : goto endpoint-0 }",
        "meta l4proto tcp dnat to 10.244.1.2:8080",
        "ip daddr 10.96.0.0/12 ip daddr != 10.96.0.10 reject",
        "ip saddr 10.9.0.0/16 ip saddr != 10.9.1.0/24 tcp dport 80-90 return",
        "ip daddr vmap { 10.244.0.2 : jump ingress-10-244-0-2 }",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let marked = text.split("chain service-1 {").nth(1).unwrap_or_default();
    assert!(marked.trim_start().starts_with("meta mark set mark or 0x4000"), "{text}");
    assert_eq!(text.matches("dnat to").count(), 2, "endpoints are shared:\n{text}");
}

/// What is written is what nftables reads: checked (`nft --check`) in a network namespace of the test's own.
#[test]
fn nftables_accepts_the_script() {
    for table in [table(), feed::Table::default()] {
        let path = std::env::temp_dir().join(format!("coracle-nft-{}", std::process::id()));
        std::fs::write(&path, script_of(&table)).expect("write the script");
        let out = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "nft", "--check", "-f"])
            .arg(&path)
            .output()
            .expect("run nft");
        assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), script_of(&table));
        std::fs::remove_file(&path).expect("remove the script");
    }
}
