//! The API by hand with curl, and through Kubernetes' Python client. Profile: loopback.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, root, shown, succeed};
use serde_json::{Value, json};

/// A call by curl; the status code and the body.
fn call(
    cluster: &Cluster,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value)> {
    let server = cluster.coracle(&["ui"])?;
    let (server, _) = server.split_once("/ui/").context("coracle ui prints no address")?;
    let url = format!("{server}{path}");
    let mut arguments =
        vec!["-sS", "-m", "20", "--cacert", "ca.crt", "-w", "\n%{http_code}", "-X", method, &url];
    let authorization = token.map(|token| format!("Authorization: Bearer {token}"));
    if let Some(header) = &authorization {
        arguments.extend(["-H", header]);
    }
    let body = body.map(Value::to_string);
    if let Some(body) = &body {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        arguments.extend(["--data", body, "-H"]);
        arguments.push(if kind == "application/json" {
            "Content-Type: application/json"
        } else {
            "Content-Type: application/merge-patch+json"
        });
    }
    let out = succeed(cluster.command("curl").args(arguments))?;
    let (body, code) = out.rsplit_once('\n').context("curl printed no status code")?;
    Ok((code.parse()?, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// Row: API: REST by hand with curl: authentication, authorization, admission, validation, every verb
#[test]
fn mission_m01_rest_by_hand() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let address = cluster.coracle(&["ui"])?;
    let (_, admin) = address.trim().split_once("#token=").context("coracle ui prints no token")?;
    let ca = cluster.kubectl(&["get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"])?;
    cluster.file("ca.crt", &ca)?;
    let maps = "/api/v1/namespaces/default/configmaps";
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "by-hand"}, "data": {"a": "1"}});

    // Who nobody knows, and who may not.
    let (code, status) = call(&cluster, Some("wrong"), "GET", maps, None)?;
    ensure!((code, &status["reason"]) == (401, &json!("Unauthorized")), "{code} {status}");
    let (code, status) = call(&cluster, None, "GET", maps, None)?;
    let words = "configmaps is forbidden: User \"system:anonymous\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    ensure!((code, &status["message"]) == (403, &json!(words)), "{code} {status}");
    cluster.kubectl(&["create", "serviceaccount", "robot"])?;
    let robot = cluster.kubectl(&["create", "token", "robot"])?;
    let (code, _) = call(&cluster, Some(robot.trim()), "POST", maps, Some(&object))?;
    ensure!(code == 403, "an account without a role made an object: {code}");

    // Admission and validation.
    let elsewhere = "/api/v1/namespaces/nowhere/configmaps";
    let (code, status) = call(&cluster, Some(admin), "POST", elsewhere, Some(&object))?;
    ensure!(
        (code, &status["message"]) == (404, &json!("namespaces \"nowhere\" not found")),
        "{code} {status}"
    );
    let wrong = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "Not A Name"}});
    let (code, status) = call(&cluster, Some(admin), "POST", maps, Some(&wrong))?;
    let cause = &status["details"]["causes"][0];
    ensure!((code, &cause["field"]) == (422, &json!("metadata.name")), "{code} {status}");

    // Every verb.
    let (code, made) = call(&cluster, Some(admin), "POST", maps, Some(&object))?;
    ensure!(code == 201 && made["metadata"]["uid"].is_string(), "{code} {made}");
    let (code, status) = call(&cluster, Some(admin), "POST", maps, Some(&object))?;
    ensure!((code, &status["reason"]) == (409, &json!("AlreadyExists")), "{code} {status}");
    let one = format!("{maps}/by-hand");
    let (code, patched) = call(&cluster, Some(admin), "PATCH", &one, Some(&json!({"data": {"b": "2"}})))?;
    ensure!((code, &patched["data"]) == (200, &json!({"a": "1", "b": "2"})), "{code} {patched}");
    let (code, status) = call(&cluster, Some(admin), "PUT", &one, Some(&made))?;
    ensure!((code, &status["reason"]) == (409, &json!("Conflict")), "a stale update: {code} {status}");
    let (code, list) =
        call(&cluster, Some(admin), "GET", &format!("{maps}?fieldSelector=metadata.name%3Dby-hand"), None)?;
    ensure!(code == 200 && list["items"].as_array().is_some_and(|items| items.len() == 1), "{code} {list}");
    let version = made["metadata"]["resourceVersion"].as_str().context("resourceVersion")?;
    let watch = format!("{maps}?watch=true&timeoutSeconds=1&resourceVersion={version}");
    let (code, _) = call(&cluster, Some(admin), "GET", &watch, None)?;
    ensure!(code == 200, "watch: {code}");
    let (code, _) = call(&cluster, Some(admin), "DELETE", &one, None)?;
    ensure!(code == 200, "delete: {code}");
    let (code, _) = call(&cluster, Some(admin), "GET", &one, None)?;
    ensure!(code == 404, "after its deletion: {code}");
    cluster.stop()
}

const SCRIPT: &str = r#"
from kubernetes import client, config, watch
config.load_kube_config()
apps, core = client.AppsV1Api(), client.CoreV1Api()
container = client.V1Container(name="hello", image="hello:v1", ports=[client.V1ContainerPort(container_port=8080)])
template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels={"app": "py"}), spec=client.V1PodSpec(containers=[container]))
spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels={"app": "py"}), template=template)
apps.create_namespaced_deployment("default", client.V1Deployment(metadata=client.V1ObjectMeta(name="py"), spec=spec))
ready = False
for event in watch.Watch().stream(apps.list_namespaced_deployment, "default", field_selector="metadata.name=py", timeout_seconds=60):
    if (event["object"].status.ready_replicas or 0) == 2:
        ready = True
        break
assert ready, "not ready within a minute"
apps.patch_namespaced_deployment_scale("py", "default", {"spec": {"replicas": 1}})
pods = core.list_namespaced_pod("default", label_selector="app=py").items
assert all(pod.status.pod_ip for pod in pods), pods
core.read_namespaced_pod_log(pods[0].metadata.name, "default")
try:
    core.read_namespaced_pod("absent", "default")
    raise AssertionError("a pod that does not exist was read")
except client.ApiException as error:
    assert error.status == 404, error
apps.delete_namespaced_deployment("py", "default", propagation_policy="Foreground")
print("done")
"#;

/// Row: clients: Kubernetes' Python client: create, watch, scale, logs, errors, deletion
#[test]
fn mission_m01_the_python_client() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("hello", "hello:v1")?;
    let python =
        std::env::var_os("CORACLE_PYTHON").context("CORACLE_PYTHON is not set: run `cargo xtask test`")?;
    // Its folder is its user's alone: runs as the user of the test.
    let kubeconfig = cluster.data_dir().join("kubeconfig");
    let out = Command::new(python).args(["-c", SCRIPT]).env("KUBECONFIG", kubeconfig).output()?;
    ensure!(out.status.success(), "{}", shown(&out));
    cluster.stop()
}

/// Row: SDK: a pod is about fifteen lines of Rust: built, deployed, answering with what its pod is told
#[test]
fn mission_m31_a_pod_in_fifteen_lines() -> Result<Ended> {
    let source = std::fs::read_to_string(root().join("examples/hello/src/main.rs"))?;
    let lines = source.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("//")).count();
    ensure!(lines <= 15, "examples/hello has {lines} lines");
    let mut cluster = Cluster::start(Profile::Loopback)?;
    crate::hello::deploy(&cluster)?;
    let address = crate::hello::service_address(&cluster)?;
    let answer = coracle_e2e::curl(&format!("http://{address}/"))?;
    ensure!(answer.starts_with("Hello from hello-") && answer.ends_with("(request 1)\n"), "{answer}");
    cluster.stop()
}

const DYNAMIC: &str = r#"
import subprocess, sys, time
from kubernetes import client, config, dynamic, watch
from kubernetes.client import api_client

config.load_kube_config()
dyn = dynamic.DynamicClient(api_client.ApiClient())
# A custom resource, from its definition to its watch.
crd = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "boats.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
    "names": {"plural": "boats", "singular": "boat", "kind": "Boat"}, "versions": [{"name": "v1", "served": True, "storage": True,
    "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"seats": {"type": "integer"}}},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}}]}}
crds = dyn.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
crds.create(body=crd)
for event in crds.watch(name="boats.example.com", timeout=30):
    conditions = (event["object"].to_dict().get("status") or {}).get("conditions") or []
    if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
        break
else:
    raise AssertionError("not established")
dyn.resources.invalidate_cache()
boats = dyn.resources.get(api_version="example.com/v1", kind="Boat")
made = boats.create(namespace="default", body={"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "a"}, "spec": {"seats": 1}})
patched = boats.patch(namespace="default", name="a", body={"spec": {"seats": 2}}, content_type="application/merge-patch+json")
assert patched.spec.seats == 2, patched
applied = boats.server_side_apply(namespace="default", name="a", field_manager="py", force_conflicts=True,
    body={"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "a"}, "spec": {"seats": 3}})
assert applied.spec.seats == 3, applied
boats.status.patch(namespace="default", name="a", body={"status": {"afloat": True}}, content_type="application/merge-patch+json")
seen = []
for event in boats.watch(namespace="default", resource_version=made.metadata.resourceVersion, timeout=10):
    seen.append(event["type"])
    if event["type"] == "DELETED":
        break
    if event["object"].to_dict().get("status", {}).get("afloat"):
        boats.delete(namespace="default", name="a")
assert seen[0] == "MODIFIED" and seen[-1] == "DELETED", seen
# A watch that goes on where it ended.
core, stop = client.CoreV1Api(), watch.Watch()
core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="w")))
version = core.list_namespaced_config_map("default").metadata.resource_version
core.patch_namespaced_config_map("w", "default", {"data": {"k": "v"}})
events = list(stop.stream(core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=1))
assert [e["type"] for e in events] == ["MODIFIED"], events
# Two candidates, one leader; the other takes over when it ends.
first = subprocess.Popen([sys.executable, "-c", sys.argv[1], "first"])
deadline = time.time() + 20
while True:
    try:
        core.read_namespaced_config_map("election", "default")
        break
    except client.ApiException:
        assert time.time() < deadline, "nobody leads"
        time.sleep(0.05)
first.kill()
first.wait()
second = subprocess.Popen([sys.executable, "-c", sys.argv[1], "second"])
while "second" not in core.read_namespaced_config_map("election", "default").metadata.annotations["control-plane.alpha.kubernetes.io/leader"]:
    assert time.time() < deadline, "nobody took over"
    time.sleep(0.05)
second.kill()
second.wait()
print("done")
"#;

const CANDIDATE: &str = r#"
import sys, time
from kubernetes import config
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
config.load_kube_config()
def lead():
    time.sleep(60)
election = electionconfig.Config(ConfigMapLock("election", "default", sys.argv[1]), lease_duration=3, renew_deadline=2, retry_period=1,
    onstarted_leading=lead, onstopped_leading=None)
leaderelection.LeaderElection(election).run()
"#;

/// Row: clients: Kubernetes' Python client: dynamic client with a custom resource, apply, watches that resume, leader election
#[test]
fn the_python_clients_dynamic_side() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    let python =
        std::env::var_os("CORACLE_PYTHON").context("CORACLE_PYTHON is not set: run `cargo xtask test`")?;
    let kubeconfig = cluster.data_dir().join("kubeconfig");
    let out = Command::new(python).args(["-c", DYNAMIC, CANDIDATE]).env("KUBECONFIG", kubeconfig).output()?;
    ensure!(out.status.success(), "{}", shown(&out));
    cluster.stop()
}
