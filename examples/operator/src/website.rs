//! `Website`: a greeting that so many pods serve.

use serde_json::{Value, json};

use crate::Kind;
use crate::api::{Api, Error};

const MANAGER: &str = "website-operator";

/// The kind.
pub struct Website;

impl Kind for Website {
    const PATH: &'static str = "/apis/example.coracle.dev/v1/websites";

    async fn reconcile(api: &Api, site: &Value) -> Result<(), Error> {
        let (name, namespace) = (text(site, "/metadata/name"), text(site, "/metadata/namespace"));
        if !text(site, "/metadata/deletionTimestamp").is_empty() {
            return Ok(());
        }
        let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
        let deployed = api.apply(&deployments, MANAGER, &deployment(site)).await?;
        let services = format!("/api/v1/namespaces/{namespace}/services/{name}");
        let service = api.apply(&services, MANAGER, &service(site)).await?;
        let status = status(site, &deployed, &service);
        if site["status"] != status {
            println!("{namespace}/{name}: {} of {} ready", status["readyReplicas"], site["spec"]["replicas"]);
            let path = format!("/apis/example.coracle.dev/v1/namespaces/{namespace}/websites/{name}/status");
            api.merge(&path, &json!({"status": status})).await?;
        }
        Ok(())
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// What every object that a website makes begins with.
fn made(site: &Value) -> Value {
    json!({
        "name": site["metadata"]["name"],
        "ownerReferences": [{
            "apiVersion": site["apiVersion"], "kind": site["kind"], "controller": true, "blockOwnerDeletion": true,
            "name": site["metadata"]["name"], "uid": site["metadata"]["uid"],
        }],
    })
}

fn deployment(site: &Value) -> Value {
    let labels = json!({"website": site["metadata"]["name"]});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": made(site),
        "spec": {
            "replicas": site["spec"]["replicas"],
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "containers": [{
                        "name": "web", "image": site["spec"]["image"], "ports": [{"name": "http", "containerPort": 8080}],
                        "env": [{"name": "GREETING", "value": site["spec"]["greeting"]}],
                    }],
                },
            },
        },
    })
}

fn service(site: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": made(site),
        "spec": {"selector": {"website": site["metadata"]["name"]}, "ports": [{"name": "http", "port": 8080, "targetPort": "http"}]},
    })
}

fn status(site: &Value, deployment: &Value, service: &Value) -> Value {
    let ready = deployment["status"]["readyReplicas"].as_i64().unwrap_or(0);
    let wanted = site["spec"]["replicas"].as_i64().unwrap_or(1);
    json!({
        "readyReplicas": ready,
        "phase": if ready >= wanted { "Ready" } else { "Progressing" },
        "address": format!("{}:8080", text(service, "/spec/clusterIP")),
        "observedGeneration": site["metadata"]["generation"],
    })
}
