//! DNS.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Ended, eventually};
use hickory_server::proto::rr::RecordType::{self, A, AAAA, CNAME, PTR, SRV};
use serde_json::json;

use super::dns::{ask, server};
use super::{SOON, apply, cluster, fetch, reaches, ready, web};

/// Row: network: names of Services resolve in wasm pods and through a DNS server, and go on while server and agent are away
#[test]
fn mission_m14_names_of_services_resolve_in_pods_and_for_programs() -> Result<Ended> {
    let mut cluster = cluster()?;
    let hello = json!({"app": "hello"});
    cluster.kubectl(&["create", "namespace", "other"])?;
    eventually("the namespace has its account", SOON, || {
        cluster.kubectl(&["-n", "other", "get", "serviceaccount", "default"]).map(|_| true)
    })?;
    apply(
        &cluster,
        &[
            web("default", "served", hello.clone(), json!({})),
            web("default", "asks", json!({}), json!({})),
            web("default", "db-0", json!({"app": "db"}), json!({"hostname": "db-0", "subdomain": "db"})),
            web("other", "far", json!({}), json!({})),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello"},
                "spec": {"selector": hello, "ports": [{"name": "http", "port": 8080}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
                "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"name": "http", "port": 8080}]}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"},
                "spec": {"type": "ExternalName", "externalName": "hello.default.svc.cluster.local"}}),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"},
                "spec": {"type": "ExternalName", "externalName": "www.example.com"}}),
        ],
    )?;
    ready(&cluster, "default", "served")?;
    let (asks, far) = (ready(&cluster, "default", "asks")?, ready(&cluster, "other", "far")?);
    let db = ready(&cluster, "default", "db-0")?;
    for name in ["hello", "hello.default", "hello.default.svc", "hello.default.svc.cluster.local", "alias"] {
        reaches(&asks, &format!("http://{name}:8080/"), "served")?;
    }
    reaches(&far, "http://hello.default:8080/", "served")?;
    for name in ["db", "db-0.db.default.svc.cluster.local"] {
        reaches(&asks, &format!("http://{name}:8080/"), "db-0")?;
    }
    for name in ["nope", "hello.other", "www.example.com", "outside"] {
        let answer = fetch(&asks, &format!("http://{name}:8080/"));
        ensure!(answer.is_err(), "{name}: {answer:?}");
    }
    ensure!(fetch(&far, "http://hello:8080/").is_err(), "a short name means the pod's own namespace");

    // The same for a program that asks the server.
    let service = cluster.get(&["service", "hello"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
    let kubernetes = cluster.get(&["service", "kubernetes"])?;
    let kubernetes = kubernetes["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
    let backwards = |ip: &str| {
        let octets: Vec<&str> = ip.split('.').rev().collect();
        format!("{}.in-addr.arpa.", octets.join("."))
    };
    let suffix = "default.svc.cluster.local.";
    let cases: Vec<(String, RecordType, String)> = vec![
        (format!("hello.{suffix}"), A, format!("NoError {address}")),
        (format!("HELLO.{suffix}"), A, format!("NoError {address}")),
        (format!("hello.{suffix}"), AAAA, "NoError".into()),
        (format!("kubernetes.{suffix}"), A, format!("NoError {kubernetes}")),
        (format!("_http._tcp.hello.{suffix}"), SRV, format!("NoError 0 100 8080 hello.{suffix}")),
        (format!("db.{suffix}"), A, format!("NoError {db}")),
        (format!("db-0.db.{suffix}"), A, format!("NoError {db}")),
        (format!("_http._tcp.db.{suffix}"), SRV, format!("NoError 0 100 8080 db-0.db.{suffix}")),
        (format!("outside.{suffix}"), CNAME, "NoError www.example.com.".into()),
        (format!("alias.{suffix}"), A, format!("NoError {address}, hello.{suffix}")),
        (format!("{}.default.pod.cluster.local.", db.replace('.', "-")), A, format!("NoError {db}")),
        (backwards(&address), PTR, format!("NoError hello.{suffix}")),
        (backwards(&db), PTR, format!("NoError db-0.db.{suffix}")),
        (format!("nope.{suffix}"), A, "NXDomain".into()),
        ("www.example.com.".into(), A, "Refused".into()),
    ];
    let dns = server(&cluster)?;
    for (name, kind, expected) in &cases {
        let answer = ask(&dns, name, *kind)?;
        ensure!(answer == *expected, "{name} {kind}: {answer}, not {expected}");
    }

    // Lookup is the runtime's: it needs neither the server nor the agent.
    cluster.kill_up()?;
    for process in ["server", "node"] {
        let pid = nix::unistd::Pid::from_raw(cluster.pid(process)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    }
    reaches(&asks, "http://hello:8080/", "served")?;
    ensure!(ask(&dns, &format!("hello.{suffix}"), A)? == format!("NoError {address}"));
    cluster.up()?;
    eventually("names follow Services", SOON, || {
        cluster.kubectl(&["delete", "service", "hello", "--ignore-not-found"])?;
        Ok(ask(&dns, &format!("hello.{suffix}"), A)? == "NXDomain")
    })?;
    cluster.stop()
}
