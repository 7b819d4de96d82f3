//! Ingresses. Profile: loopback.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Ended, eventually, succeed};
use serde_json::{Value, json};

use super::{SOON, apply, cluster, ready, web};

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 8080}]}})
}

fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind,
        "backend": {"service": {"name": service, "port": {"name": "http"}}}})
}

/// The status and body of a page of a host's name at an address.
fn page(address: &str, host: &str, path: &str) -> Result<String> {
    let url = format!("http://{address}{path}");
    let host = format!("Host: {host}");
    let body = succeed(Command::new("curl").args([
        "-s",
        "--max-time",
        "5",
        "-w",
        " %{http_code}",
        "-H",
        &host,
        &url,
    ]))?;
    Ok(body.trim().to_owned())
}

/// Row: network: an Ingress routes by path and host, follows changes, and says where it is served
#[test]
fn mission_m15_an_ingress_routes_by_path_and_host() -> Result<Ended> {
    let mut cluster = cluster()?;
    let mut objects = Vec::new();
    for name in ["shop", "cart", "other"] {
        objects.push(web("default", name, json!({"app": name}), json!({})));
        objects.push(service(name));
    }
    objects.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "shops"},
        "spec": {"ingressClassName": "nginx", "rules": [
            {"host": "shop.example", "http": {"paths": [
                path("/", "Prefix", "shop"), path("/cart", "Prefix", "cart"), path("/exact", "Exact", "other")]}},
            {"host": "*.others.example", "http": {"paths": [path("/", "Prefix", "other")]}},
        ]}}));
    objects.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "rewritten", "annotations": {"nginx.ingress.kubernetes.io/rewrite-target": "/$2"}},
        "spec": {"ingressClassName": "nginx", "rules": [{"host": "api.example", "http": {"paths": [
            path("/v1(/|$)(.*)", "ImplementationSpecific", "shop")]}}]}}));
    apply(&cluster, &objects)?;
    for name in ["shop", "cart", "other"] {
        ready(&cluster, "default", name)?;
    }
    let node = cluster.get(&["nodes"])?;
    let gateway = node["items"][0]["metadata"]["annotations"]["coracle.dev/gateway"]
        .as_str()
        .context("the node does not say where its gateway is")?
        .to_owned();
    let cases = [
        ("shop.example", "/", "hello from shop 200"),
        ("shop.example", "/anything", "hello from shop 200"),
        ("SHOP.example:80", "/cart/1", "hello from cart 200"),
        ("shop.example", "/carts", "hello from shop 200"),
        ("shop.example", "/exact", "hello from other 200"),
        ("shop.example", "/exact/more", "hello from shop 200"),
        ("a.others.example", "/", "hello from other 200"),
        ("api.example", "/v1/env?POD", "shop 200"),
    ];
    for (host, path, expected) in cases {
        eventually(&format!("{host}{path} is answered {expected:?}"), SOON, || {
            let answer = page(&gateway, host, path)?.replace('\n', "");
            ensure!(answer == expected, "{answer}");
            Ok(true)
        })?;
    }
    for (host, path) in [("nobody.example", "/"), ("others.example", "/"), ("api.example", "/v2/")] {
        let answer = page(&gateway, host, path)?;
        ensure!(answer.ends_with("404"), "{host}{path}: {answer}");
    }
    eventually("the Ingress says where it is served", SOON, || {
        let ingress = cluster.get(&["ingress", "shops"])?;
        let ip =
            ingress["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().context("nowhere")?.to_owned();
        Ok(gateway.starts_with(&ip))
    })?;
    cluster.kubectl(&["delete", "ingress", "shops"])?;
    eventually("the route is gone", SOON, || Ok(page(&gateway, "shop.example", "/")?.ends_with("404")))?;
    cluster.stop()
}
