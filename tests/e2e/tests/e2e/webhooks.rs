//! Admission webhooks: servers of the test's own that the API server asks. Profile: loopback.

mod conversion;
mod server;

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use coracle_e2e::{Cluster, Ended, Profile, shown};
use serde_json::{Value, json};

use server::Hook;

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// A rule about ConfigMaps that are created or updated.
fn config_maps() -> Value {
    json!([{"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}])
}

fn webhook(name: &str, client: Value) -> Value {
    json!({"name": name, "clientConfig": client, "rules": config_maps(), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "objectSelector": {"matchLabels": {"hooked": "yes"}}})
}

fn configuration(kind: &str, name: &str, webhooks: &[Value]) -> String {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": webhooks}).to_string()
}

fn config_map(name: &str, data: Value) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"hooked": "yes"}}, "data": data}).to_string()
}

fn patch(operations: Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patch": patch, "patchType": "JSONPatch"})
}

fn apply(cluster: &Cluster, name: &str, text: &str, more: &[&str]) -> Result<String> {
    let file = cluster.file(name, text)?;
    let mut args = vec!["apply", "-f", &file];
    args.extend(more);
    let out = cluster.command(coracle_e2e::kubectl()?).args(&args).output()?;
    Ok(shown(&out))
}

/// Row: admission: a validating webhook refuses writes with its own words, is asked about dry runs, and warns
#[test]
fn validating_webhooks_refuse_and_warn() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let hook = Hook::start(LOCAL, &[], |_, request| match request["object"]["data"]["color"].as_str() {
        Some("red") => {
            json!({"allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": "red is not worn here"}})
        }
        Some("pink") => json!({"allowed": false}),
        _ => json!({"allowed": true, "warnings": ["mind the color"]}),
    })?;
    let config = configuration(
        "ValidatingWebhookConfiguration",
        "colors",
        &[webhook("colors.example.com", hook.url("/v"))],
    );
    ensure!(apply(&cluster, "hooks.json", &config, &[])?.contains("created"));
    let said = apply(&cluster, "red.json", &config_map("c", json!({"color": "red"})), &[])?;
    ensure!(said.contains("Error from server (Forbidden): error when creating"), "{said}");
    ensure!(
        said.contains("admission webhook \"colors.example.com\" denied the request: red is not worn here"),
        "{said}"
    );
    let said = apply(&cluster, "pink.json", &config_map("c", json!({"color": "pink"})), &[])?;
    ensure!(
        said.contains("admission webhook \"colors.example.com\" denied the request without explanation"),
        "{said}"
    );
    let blue = config_map("c", json!({"color": "blue"}));
    let said = apply(&cluster, "blue.json", &blue, &["--dry-run=server"])?;
    ensure!(said.contains("Warning: mind the color") && said.contains("created (server dry run)"), "{said}");
    ensure!(apply(&cluster, "blue.json", &blue, &[])?.contains("created"));
    let said = apply(&cluster, "red.json", &config_map("c", json!({"color": "red"})), &[])?;
    ensure!(said.contains("red is not worn here"), "an update is judged too: {said}");
    let seen = hook.seen("/v");
    let last = seen.last().context("the webhook was asked")?;
    ensure!(last["operation"] == "UPDATE" && last["oldObject"]["data"]["color"] == "blue", "{last}");
    ensure!(
        last["userInfo"]["groups"].as_array().is_some_and(|g| g.iter().any(|g| g == "system:masters")),
        "{last}"
    );
    ensure!(last["kind"] == json!({"group": "", "version": "v1", "kind": "ConfigMap"}), "{last}");
    ensure!(last["options"]["kind"] == "PatchOptions" && last["namespace"] == "default", "{last}");
    ensure!(seen.iter().any(|r| r["dryRun"] == true), "the dry run was not shown as one");
    ensure!(hook.connections() < seen.len(), "{} calls, {} connections", seen.len(), hook.connections());
    // Without the label nobody is asked.
    cluster.kubectl(&["create", "configmap", "free", "--from-literal=color=red"])?;
    ensure!(hook.seen("/v").len() == seen.len());
    cluster.stop()
}

/// Row: admission: mutating webhooks change objects by JSON patch, in order, and see again what others changed after them
#[test]
fn mutating_webhooks_change_objects() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let hook = Hook::start(LOCAL, &[], |path, request| match path {
        "/first" => {
            let has = request["object"]["data"].get("second").is_some();
            patch(
                json!([{"op": "add", "path": "/data/first", "value": if has { "saw second" } else { "alone" }}]),
            )
        }
        "/second" => patch(json!([{"op": "add", "path": "/data/second", "value": "x"}])),
        _ => match request["object"]["data"]["second"].as_str() {
            Some("x") => json!({"allowed": true}),
            _ => json!({"allowed": false, "status": {"message": "not changed yet"}}),
        },
    })?;
    let mut first = webhook("first.example.com", hook.url("/first"));
    first["reinvocationPolicy"] = "IfNeeded".into();
    let second = webhook("second.example.com", hook.url("/second"));
    let mutating = configuration("MutatingWebhookConfiguration", "change", &[first, second]);
    ensure!(apply(&cluster, "m.json", &mutating, &[])?.contains("created"));
    let judge = webhook("judge.example.com", hook.url("/judge"));
    let validating = configuration("ValidatingWebhookConfiguration", "judge", &[judge]);
    ensure!(apply(&cluster, "v.json", &validating, &[])?.contains("created"));
    let said = apply(&cluster, "c.json", &config_map("c", json!({"a": "b"})), &[])?;
    ensure!(said.contains("configmap/c created"), "{said}");
    let data = cluster.get(&["configmap", "c"])?["data"].clone();
    ensure!(data == json!({"a": "b", "first": "saw second", "second": "x"}), "{data}");
    ensure!(hook.seen("/first").len() == 2 && hook.seen("/second").len() == 1, "who was asked how often");
    cluster.stop()
}

/// Row: admission: failurePolicy decides where a webhook cannot be asked; match conditions and selectors say who is asked at all; timeouts, equivalent versions
#[test]
fn webhooks_that_fail_and_conditions() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let hook = Hook::start(LOCAL, &[], |_, _| json!({"allowed": false, "status": {"message": "never"}}))?;
    let nowhere = json!({"url": "https://127.0.0.1:1/x", "caBundle": hook.bundle});
    let strict = webhook("down.example.com", nowhere.clone());
    let mut lenient = webhook("lenient.example.com", nowhere);
    lenient["failurePolicy"] = "Ignore".into();
    let config = |hooks: &[Value]| configuration("ValidatingWebhookConfiguration", "hooks", hooks);
    apply(&cluster, "hooks.json", &config(&[strict]), &[])?;
    let said = apply(&cluster, "c.json", &config_map("c", json!({})), &[])?;
    ensure!(said.contains("Error from server (InternalError)"), "{said}");
    ensure!(said.contains("Internal error occurred: failed calling webhook \"down.example.com\": failed to call webhook: Post \"https://127.0.0.1:1/x?timeout=10s\": dial tcp 127.0.0.1:1: connect: connection refused"), "{said}");
    ensure!(apply(&cluster, "hooks.json", &config(&[lenient]), &[])?.contains("configured"));
    ensure!(apply(&cluster, "c.json", &config_map("c", json!({})), &[])?.contains("created"));
    let mut conditional = webhook("cond.example.com", hook.url("/c"));
    conditional["matchConditions"] = json!([{"name": "not-free", "expression": "object.metadata.name != 'free' && !('system:nodes' in request.userInfo.groups)"},
        {"name": "may", "expression": "authorizer.group('').resource('configmaps').namespace('default').check('create').allowed()"}]);
    let untrusted = Hook::start(LOCAL, &[], |_, _| json!({"allowed": true}))?;
    apply(&cluster, "hooks.json", &config(&[conditional.clone()]), &[])?;
    ensure!(apply(&cluster, "free.json", &config_map("free", json!({})), &[])?.contains("created"));
    ensure!(
        apply(&cluster, "other.json", &config_map("other", json!({})), &[])?
            .contains("denied the request: never")
    );
    conditional["clientConfig"]["url"] = untrusted.url("/c")["url"].clone();
    apply(&cluster, "hooks.json", &config(&[conditional.clone()]), &[])?;
    let said = apply(&cluster, "other.json", &config_map("other", json!({})), &[])?;
    ensure!(said.contains("x509: certificate signed by unknown authority"), "{said}");
    conditional["matchConditions"][0]["expression"] = "objekt.metadata.name == 'x'".into();
    conditional["timeoutSeconds"] = 31.into();
    let said = apply(&cluster, "hooks.json", &config(&[conditional.clone()]), &[])?;
    ensure!(said.contains("webhooks[0].matchConditions[0].expression: Invalid value: \"objekt.metadata.name == 'x'\": compilation failed: "), "{said}");
    ensure!(said.contains("webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"), "{said}");
    whom_and_how_long(&cluster, &hook, &conditional)?;
    // Nobody is kept from removing a webhook that keeps everybody out.
    cluster.kubectl(&["delete", "validatingwebhookconfiguration", "hooks"])?;
    cluster.kubectl(&["create", "configmap", "other"])?;
    cluster.stop()
}

/// Timeouts, namespace selectors, side effects, and calls in another version than the one that a rule names.
fn whom_and_how_long(cluster: &Cluster, hook: &Hook, template: &Value) -> Result<()> {
    let config =
        |hook: &Value| configuration("ValidatingWebhookConfiguration", "hooks", std::slice::from_ref(hook));
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind((LOCAL, 0))?;
    let mut slow = template.clone();
    slow["matchConditions"] = json!([]);
    slow["timeoutSeconds"] = 1.into();
    slow["clientConfig"] =
        json!({"url": format!("https://{}/slow", silent.local_addr()?), "caBundle": hook.bundle});
    apply(cluster, "hooks.json", &config(&slow), &[])?;
    let said = apply(cluster, "late.json", &config_map("late", json!({})), &[])?;
    ensure!(said.contains("/slow?timeout=1s\": context deadline exceeded"), "{said}");
    slow["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}});
    apply(cluster, "hooks.json", &config(&slow), &[])?;
    let said = apply(cluster, "late.json", &config_map("late", json!({})), &[])?;
    ensure!(said.contains("configmap/late created"), "{said}");
    slow["sideEffects"] = "Some".into();
    let said = apply(cluster, "hooks.json", &config(&slow), &[])?;
    let words =
        "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"";
    ensure!(said.contains(words), "{said}");

    let mut versions = template.clone();
    for field in ["matchConditions", "objectSelector", "timeoutSeconds"] {
        versions.as_object_mut().context("an object")?.remove(field);
    }
    versions["clientConfig"] = hook.url("/versions");
    versions["rules"] = json!([{"operations": ["CREATE"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"], "resources": ["horizontalpodautoscalers"]}]);
    versions["matchPolicy"] = "Exact".into();
    let scaler = |name: &str| {
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 2,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]}})
        .to_string()
    };
    apply(cluster, "hooks.json", &config(&versions), &[])?;
    ensure!(apply(cluster, "h.json", &scaler("exact"), &[])?.contains("created"));
    versions["matchPolicy"] = "Equivalent".into();
    apply(cluster, "hooks.json", &config(&versions), &[])?;
    let said = apply(cluster, "h.json", &scaler("equivalent"), &[])?;
    ensure!(said.contains("denied the request: never"), "{said}");
    let seen = hook.seen("/versions").pop().context("the webhook was asked")?;
    ensure!(seen["kind"]["version"] == "v1" && seen["requestKind"]["version"] == "v2", "{seen}");
    ensure!(seen["object"]["spec"]["targetCPUUtilizationPercentage"] == 70, "{seen}");
    Ok(())
}

/// Row: admission: a webhook behind a Service is reached at its endpoints; exec and scale are shown as what they are
#[test]
fn webhooks_behind_a_service() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let node = cluster.get(&["nodes"])?;
    let addresses = node["items"][0]["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let ip = addresses.iter().find(|a| a["type"] == "InternalIP").and_then(|a| a["address"].as_str());
    let ip: IpAddr = ip.context("address of the node")?.parse()?;
    let hook = Hook::start(ip, &["hook.default.svc"], |_, request| match request["kind"]["kind"].as_str() {
        Some("Scale") => patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 0}])),
        Some("PodExecOptions") => {
            json!({"allowed": false, "status": {"message": format!("no {}", request["object"]["command"][0])}})
        }
        other => json!({"allowed": false, "status": {"message": format!("what is {other:?}")}}),
    })?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"}, "spec": {"ports": [{"name": "tls", "port": 443, "targetPort": hook.address.port()}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "addressType": "IPv4", "ports": [{"name": "tls", "port": hook.address.port()}], "endpoints": [{"addresses": [ip.to_string()]}]});
    let client =
        json!({"service": {"namespace": "default", "name": "hook", "path": "/s"}, "caBundle": hook.bundle});
    let mut one = webhook("service.example.com", client);
    one["objectSelector"] = json!({});
    one["rules"] = json!([
        {"operations": ["UPDATE"], "apiGroups": ["apps"], "apiVersions": ["*"], "resources": ["deployments/scale"]},
        {"operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/exec"]}]);
    let config = configuration("MutatingWebhookConfiguration", "service", &[one]);
    apply(&cluster, "config.json", &config, &[])?;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}}}});
    ensure!(apply(&cluster, "d.json", &deployment.to_string(), &[])?.contains("created"));
    let said = cluster.kubectl_fails(&["scale", "deployment", "d", "--replicas=3"])?;
    ensure!(said.contains("failed calling webhook \"service.example.com\": failed to call webhook: Post \"https://hook.default.svc:443/s?timeout=10s\": service \"hook\" not found"), "{said}");
    apply(&cluster, "service.json", &service.to_string(), &[])?;
    let said = cluster.kubectl_fails(&["scale", "deployment", "d", "--replicas=3"])?;
    ensure!(said.contains("no endpoints available for service \"hook\""), "{said}");
    apply(&cluster, "slice.json", &slice.to_string(), &[])?;
    cluster.kubectl(&["scale", "deployment", "d", "--replicas=3"])?;
    ensure!(cluster.get(&["deployment", "d"])?["spec"]["replicas"] == 0, "the webhook scales to zero");
    let scale =
        hook.seen("/s").into_iter().find(|r| r["subResource"] == "scale").context("a scale was shown")?;
    ensure!(
        scale["object"]["spec"]["replicas"] == 3 && scale["object"]["apiVersion"] == "autoscaling/v1",
        "{scale}"
    );
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "none"}]}});
    apply(&cluster, "p.json", &pod.to_string(), &[])?;
    let said = cluster.kubectl_fails(&["exec", "p", "--", "whoami"])?;
    ensure!(
        said.contains("admission webhook \"service.example.com\" denied the request: no \"whoami\""),
        "{said}"
    );
    cluster.stop()
}
