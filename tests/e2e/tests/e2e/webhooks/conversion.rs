//! Custom resources of several versions, between which a webhook converts. Profile: loopback.

use anyhow::{Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually};
use serde_json::{Value, json};

use super::server::Hook;
use super::{LOCAL, apply};

/// v1 has `spec.host: "h:p"`, v2 has `spec.host` and `spec.port`.
fn convert(_: &str, request: &Value) -> Value {
    let to = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let mut converted = request["objects"].as_array().cloned().unwrap_or_default();
    for object in &mut converted {
        if object["spec"]["host"] == "broken" {
            return json!({"result": {"status": "Failed", "message": "cannot convert that"}});
        }
        let host = object["spec"]["host"].as_str().unwrap_or_default().to_owned();
        if to.ends_with("/v2") {
            let (host, port) = host.split_once(':').unwrap_or((&host, "0"));
            object["spec"] = json!({"host": host, "port": port.parse::<i64>().unwrap_or(0)});
        } else {
            object["spec"] = json!({"host": format!("{host}:{}", object["spec"]["port"])});
        }
        object["apiVersion"] = to.into();
    }
    json!({"result": {"status": "Success"}, "convertedObjects": converted})
}

fn definition(hook: &Hook, storage: &str, served: bool) -> String {
    let version = |name: &str, fields: Value| {
        json!({"name": name, "served": served, "storage": name == storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}}})
    };
    let text = json!({"type": "string"});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "routes.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "routes", "kind": "Route"},
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": hook.url("/convert")}},
            "versions": [version("v1", json!({"host": text})), version("v2", json!({"host": text, "port": {"type": "integer"}}))]}})
    .to_string()
}

/// Row: custom resources: several versions and a conversion webhook: read, list, watch, write and apply in each; the storage version changes
#[test]
fn conversion_webhooks_convert() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let hook = Hook::start(LOCAL, &[], convert)?;
    apply(&cluster, "crd.json", &definition(&hook, "v1", true), &[])?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/routes.example.com"])?;
    let route = |version: &str, name: &str, spec: Value| {
        json!({"apiVersion": format!("example.com/{version}"), "kind": "Route", "metadata": {"name": name}, "spec": spec}).to_string()
    };
    for i in 0..5 {
        let said = apply(
            &cluster,
            "r.json",
            &route("v1", &format!("r{i}"), json!({"host": format!("h{i}:80{i}")})),
            &[],
        )?;
        ensure!(said.contains("created"), "{said}");
    }
    ensure!(hook.seen("/convert").is_empty(), "what is stored as it is served is not converted");
    let list = cluster.get(&["routes.v2.example.com"])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    ensure!(items.len() == 5 && items[3]["spec"] == json!({"host": "h3", "port": 803}), "{list}");
    ensure!(items.iter().all(|i| i["apiVersion"] == "example.com/v2"), "{list}");
    ensure!(hook.seen("/convert").len() == 1, "a list is converted in one call");
    let said = apply(
        &cluster,
        "r.json",
        &route("v2", "r1", json!({"host": "h1", "port": 9})),
        &["--server-side", "--force-conflicts"],
    )?;
    ensure!(said.contains("serverside-applied"), "{said}");
    ensure!(cluster.get(&["routes.v1.example.com", "r1"])?["spec"]["host"] == "h1:9");
    // Now v2 is stored; what was stored before is still served in both.
    ensure!(apply(&cluster, "crd.json", &definition(&hook, "v2", true), &[])?.contains("configured"));
    let stored = cluster.get(&["crd", "routes.example.com"])?["status"]["storedVersions"].clone();
    ensure!(stored == json!(["v1", "v2"]), "{stored}");
    eventually("v2 is stored", SOON, || {
        let said = apply(&cluster, "n.json", &route("v2", "new", json!({"host": "n", "port": 1})), &[])?;
        Ok(said.contains("created") || said.contains("unchanged"))
    })?;
    ensure!(cluster.get(&["routes.v1.example.com", "new"])?["spec"]["host"] == "n:1");
    ensure!(cluster.get(&["routes.v2.example.com", "r4"])?["spec"]["port"] == 804);
    // A watch converts as well.
    let out = cluster.kubectl(&[
        "get",
        "--raw",
        "/apis/example.com/v1/namespaces/default/routes?watch=1&timeoutSeconds=1",
    ])?;
    ensure!(out.contains("\"host\":\"n:1\"") && out.contains("\"host\":\"h1:9\""), "{out}");
    let said = apply(&cluster, "b.json", &route("v1", "b", json!({"host": "broken"})), &[])?;
    ensure!(
        said.contains("conversion webhook for example.com/v1, Kind=Route failed: cannot convert that"),
        "{said}"
    );
    // Without served versions the definition can still be deleted, with its objects.
    ensure!(apply(&cluster, "crd.json", &definition(&hook, "v2", false), &[])?.contains("configured"));
    cluster.kubectl(&["delete", "crd", "routes.example.com", "--timeout=30s"])?;
    ensure!(apply(&cluster, "crd.json", &definition(&hook, "v2", true), &[])?.contains("created"));
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/routes.example.com"])?;
    let left = cluster.get(&["routes"])?;
    ensure!(left["items"] == json!([]), "{left}");
    cluster.stop()
}
