//! NetworkPolicies.

use anyhow::{Result, ensure};
use coracle_e2e::{Ended, eventually};
use serde_json::json;

use super::{SOON, apply, cluster, fetch, reaches, ready, web};

/// Row: network: a NetworkPolicy cuts traffic between wasm pods, and its deletion restores it
#[test]
fn mission_m19_a_policy_cuts_traffic() -> Result<Ended> {
    let mut cluster = cluster()?;
    apply(
        &cluster,
        &[
            web("default", "db", json!({"app": "db"}), json!({})),
            web("default", "friend", json!({"role": "friend"}), json!({})),
            web("default", "stranger", json!({}), json!({})),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
                "spec": {"selector": {"app": "db"}, "ports": [{"port": 8080}]}}),
        ],
    )?;
    let db = ready(&cluster, "default", "db")?;
    let (friend, stranger) = (ready(&cluster, "default", "friend")?, ready(&cluster, "default", "stranger")?);
    let urls = [format!("http://{db}:8080/"), "http://db:8080/".into()];
    for pod in [&friend, &stranger] {
        for url in &urls {
            reaches(pod, url, "db")?;
        }
    }
    let cut =
        |pod: &str, url: &str| eventually(&format!("{url} is cut"), SOON, || Ok(fetch(pod, url).is_err()));

    apply(
        &cluster,
        &[
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "friends"},
            "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}],
                    "ports": [{"protocol": "TCP", "port": "http"}]}]}}),
        ],
    )?;
    for url in &urls {
        cut(&stranger, url)?;
        reaches(&friend, url, "db")?;
    }
    let probed = cluster.get(&["pod", "db"])?;
    ensure!(probed["status"]["phase"] == "Running", "{probed:#}");

    apply(
        &cluster,
        &[
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "silent"},
            "spec": {"podSelector": {"matchLabels": {"role": "friend"}}, "policyTypes": ["Egress"]}}),
        ],
    )?;
    for url in &urls {
        cut(&friend, url)?;
    }
    cluster.kubectl(&["delete", "networkpolicy", "friends", "silent"])?;
    for pod in [&friend, &stranger] {
        for url in &urls {
            reaches(pod, url, "db")?;
        }
    }
    cluster.stop()
}
