//! Kinds of Services. Profile: loopback, with the test's own privilege: the manifests want port 80.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, curl, eventually, root};
use serde_json::json;

use super::{SOON, apply, reaches, ready, web};

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start(Profile::LoopbackAsIs)?;
    cluster.push("web", "web:v1")?;
    Ok(cluster)
}

/// A manifest of those that introductions to Kubernetes show.
fn introduced(cluster: &Cluster, name: &str) -> Result<()> {
    let path = root().join("tests/e2e/manifests").join(name);
    cluster.kubectl(&["apply", "-f", &path.display().to_string()]).map(drop)
}

/// The pods that answer at a URL.
fn answering(url: &str) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    for _ in 0..24 {
        seen.insert(curl(url)?.trim().trim_start_matches("hello from ").to_owned());
    }
    Ok(seen)
}

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A pod that serves at this port.
fn at_port(name: &str, app: &str, port: u16) -> serde_json::Value {
    let mut pod = web("default", name, json!({"app": app}), json!({}));
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": port}]);
    pod
}

/// Row: network: ClusterIP, NodePort, LoadBalancer and session affinity, with the manifests of introductions
#[test]
fn mission_m14_services_of_each_kind() -> Result<Ended> {
    let mut cluster = cluster()?;
    introduced(&cluster, "03-service.yaml")?;
    introduced(&cluster, "08-nodeport.yaml")?;
    let node = cluster.get(&["nodes"])?;
    let node = node["items"][0]["status"]["addresses"].as_array().context("addresses")?.clone();
    let node = node.iter().find(|a| a["type"] == "InternalIP").context("InternalIP")?["address"].clone();
    let node = node.as_str().context("address")?;
    apply(
        &cluster,
        &[
            at_port("mine", "MyApp", 9376),
            at_port("nginx-1", "nginx", 80),
            at_port("nginx-2", "nginx", 80),
            web("default", "asks", json!({}), json!({})),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "sticky"},
                "spec": {"selector": {"app": "nginx"}, "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}}),
        ],
    )?;
    for pod in ["mine", "nginx-1", "nginx-2"] {
        ready(&cluster, "default", pod)?;
    }
    let asks = ready(&cluster, "default", "asks")?;
    let address = |name: &str| -> Result<String> {
        let service = cluster.get(&["service", name])?;
        Ok(service["spec"]["clusterIP"].as_str().context("clusterIP")?.to_owned())
    };
    // ClusterIP: another port in front than behind.
    eventually("my-service answers", SOON, || {
        Ok(answering(&format!("http://{}/", address("my-service")?))? == named(&["mine"]))
    })?;
    reaches(&asks, "http://my-service/", "mine")?;
    // NodePort: the node's address and the Service's own.
    for url in [format!("http://{node}:30008/"), format!("http://{}/", address("myapp-service")?)] {
        eventually(&format!("{url} leads to both pods"), SOON, || {
            Ok(answering(&url)? == named(&["nginx-1", "nginx-2"]))
        })?;
    }
    let sticky = answering(&format!("http://{}/", address("sticky")?))?;
    ensure!(sticky.len() == 1, "one client, {sticky:?}");
    cluster.stop()
}

/// Row: network: a Service of type LoadBalancer has an address without a cloud, which answers and is given back
#[test]
fn mission_m28_a_load_balancer_has_an_address_that_answers() -> Result<Ended> {
    let mut cluster = cluster()?;
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}})
    };
    apply(&cluster, &[at_port("web", "web", 8080), service("first"), service("second")])?;
    ready(&cluster, "default", "web")?;
    let address = |name: &str| -> Result<String> {
        let mut found = String::new();
        eventually(&format!("{name} has an address"), SOON, || {
            let service = cluster.get(&["service", name])?;
            found =
                service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().context("none")?.to_owned();
            Ok(true)
        })?;
        Ok(found)
    };
    let (first, second) = (address("first")?, address("second")?);
    ensure!(first != second);
    for ip in [&first, &second] {
        eventually("the address answers", SOON, || {
            Ok(answering(&format!("http://{ip}/"))? == named(&["web"]))
        })?;
    }
    let listed = cluster.kubectl(&["get", "service", "first"])?;
    ensure!(listed.contains(&first), "{listed}");
    cluster.kubectl(&["delete", "service", "first"])?;
    eventually("the address is closed", SOON, || Ok(curl(&format!("http://{first}/")).is_err()))?;
    cluster.stop()
}
