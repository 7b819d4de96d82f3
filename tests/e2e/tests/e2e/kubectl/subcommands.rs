//! What each subcommand is to do.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_e2e::{curl, eventually, shown};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;

use super::Kubectl;
use crate::pods::{SOON, steps};

/// A kubectl that goes on; ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one, and the first line that it says.
fn first_line(
    kubectl: &Kubectl,
    args: &[&str],
) -> Result<(Running, BufReader<std::process::ChildStdout>, String)> {
    let mut child = Running(kubectl.command(args).stdout(Stdio::piped()).spawn()?);
    let mut out = BufReader::new(child.0.stdout.take().context("standard output")?);
    let mut line = String::new();
    out.read_line(&mut line)?;
    Ok((child, out, line))
}

pub fn about_the_cluster(kubectl: &Kubectl, node: &str) -> Result<()> {
    kubectl.says(&["version"], &["Client Version", "Server Version: v1.36"])?;
    kubectl.says(&["cluster-info"], &["Kubernetes control plane", "is running at"])?;
    kubectl.says(&["cluster-info", "dump", "--namespaces=kube-system", "-o", "yaml"], &["kind: NodeList"])?;
    kubectl.says(
        &["api-resources", "-o", "wide"],
        &["deployments", "apps/v1", "resourceclaims", "apiservices"],
    )?;
    kubectl.says(&["api-versions"], &["apps/v1", "resource.k8s.io/v1", "metrics.k8s.io/v1beta1"])?;
    kubectl.says(&["config", "view"], &["kind: Config"])?;
    kubectl.says(&["config", "current-context"], &["coracle"])?;
    kubectl.says(&["completion", "bash"], &["__start_kubectl"])?;
    kubectl.says(&["options"], &["--kubeconfig"])?;
    kubectl.exits(1, &["plugin", "list"])?;
    if kubectl.run(&["--help"])?.contains("  kuberc ") {
        kubectl.says(&["kuberc", "--help"], &["kuberc"])?;
    }
    kubectl
        .says(&["explain", "deployment.spec.replicas"], &["GROUP:      apps", "FIELD: replicas <integer>"])?;
    kubectl.says(&["explain", "resourceclaim.spec.devices", "--recursive"], &["deviceClassName"])?;
    kubectl.says(&["explain", "hpa", "--api-version=autoscaling/v2"], &["HorizontalPodAutoscaler"])?;
    kubectl.says(&["get", "componentstatuses"], &["etcd-0", "scheduler", "Healthy"])?;
    kubectl.says(&["get", "nodes", "-o", "wide"], &[node, "Ready"])?;
    kubectl.says(&["describe", "node", node], &["Allocatable", "Conditions"])
}

pub fn objects(kubectl: &Kubectl) -> Result<()> {
    kubectl.says(&["create", "namespace", "other"], &["namespace/other created"])?;
    kubectl.says(&["create", "configmap", "a", "--from-literal=k=v"], &["created"])?;
    kubectl.exits(1, &["create", "configmap", "a"])?;
    kubectl.says(&["create", "secret", "generic", "s", "--from-literal=k=v"], &["created"])?;
    kubectl.says(
        &["create", "secret", "docker-registry", "r", "--docker-username=u", "--docker-password=p"],
        &["created"],
    )?;
    kubectl.says(&["create", "quota", "q", "--hard=count/things.example.com=1"], &["created"])?;
    kubectl.says(&["create", "priorityclass", "p", "--value=5"], &["created"])?;
    kubectl.says(
        &["create", "poddisruptionbudget", "b", "--selector=app=none", "--min-available=0"],
        &["created"],
    )?;
    kubectl.says(&["create", "ingress", "i", "--rule=example.com/=web:80"], &["created"])?;
    kubectl.says(
        &["create", "cronjob", "c", "--image=steps:v1", "--schedule=0 0 1 1 *", "--", "print hello"],
        &["created"],
    )?;
    kubectl.says(&["create", "job", "j", "--from=cronjob/c"], &["created"])?;
    kubectl.says(&["create", "service", "clusterip", "x", "--tcp=80:8080"], &["created"])?;
    kubectl.says(&["label", "configmap", "a", "tier=one"], &["labeled"])?;
    kubectl.says(&["label", "configmap", "a", "tier=two", "--overwrite"], &["labeled"])?;
    kubectl.says(&["annotate", "configmap", "a", "note=words"], &["annotated"])?;
    kubectl.says(&["get", "configmap", "-l", "tier=two", "--show-labels"], &["tier=two"])?;
    kubectl.says(&["get", "cm", "a", "-o", "jsonpath={.metadata.annotations.note}"], &["words"])?;
    kubectl.says(
        &["get", "cm,secret", "-o", "custom-columns=N:.metadata.name,K:.kind"],
        &["ConfigMap", "Secret"],
    )?;
    kubectl.says(
        &["get", "cm", "a", "-o", "yaml", "--show-managed-fields"],
        &["manager: kubectl-create", "f:data"],
    )?;
    kubectl.says(&["patch", "cm", "a", "-p", r#"{"data":{"strategic":"1"}}"#], &["patched"])?;
    kubectl.says(&["patch", "cm", "a", "--type=merge", "-p", r#"{"data":{"merge":"1"}}"#], &["patched"])?;
    let operations = r#"[{"op":"add","path":"/data/json","value":"1"}]"#;
    kubectl.says(&["patch", "cm", "a", "--type=json", "-p", operations], &["patched"])?;
    kubectl.says(&["get", "cm", "a", "-o", "json"], &["strategic", "merge", "json"])?;
    let mut edit = kubectl.command(&["edit", "configmap", "a"]);
    let out = edit.env("KUBE_EDITOR", "sed -i s/words/others/").output()?;
    ensure!(out.status.success(), "{}", shown(&out));
    kubectl.says(&["get", "cm", "a", "-o", "jsonpath={.metadata.annotations.note}"], &["others"])?;
    kubectl.says(&["describe", "configmap", "a"], &["strategic:", "tier=two"])?;

    let map = |value: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": value}}).to_string()
    };
    let (one, two) =
        (kubectl.cluster.file("one.json", &map("1"))?, kubectl.cluster.file("two.json", &map("2"))?);
    kubectl.says(&["apply", "-f", &one], &["configmap/applied created"])?;
    kubectl.says(&["apply", "-f", &one], &["unchanged"])?;
    ensure!(kubectl.exits(1, &["diff", "-f", &two])?.contains("+  k: \"2\""));
    kubectl.says(&["apply", "-f", &two, "--dry-run=server"], &["server dry run"])?;
    kubectl.exits(0, &["diff", "-f", &one])?;
    kubectl.says(&["apply", "-f", &two], &["configured"])?;
    kubectl.says(&["apply", "view-last-applied", "cm/applied"], &["k: \"2\""])?;
    kubectl.says(
        &["apply", "-f", &one, "--server-side", "--field-manager=me", "--force-conflicts"],
        &["serverside-applied"],
    )?;
    kubectl.says(&["replace", "-f", &two], &["replaced"])?;
    kubectl.exits(
        1,
        &[
            "create",
            "-f",
            &kubectl.cluster.file(
                "bad.json",
                r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad"},"datas":{}}"#,
            )?,
        ],
    )?;

    let base = kubectl.cluster.data_dir().with_file_name("base");
    std::fs::create_dir_all(&base)?;
    std::fs::write(base.join("map.json"), map("k"))?;
    std::fs::write(
        base.join("kustomization.yaml"),
        "namePrefix: my-\nlabels:\n- pairs: {by: kustomize}\nresources: [map.json]\nconfigMapGenerator:\n- name: made\n  literals: [a=b]\n",
    )?;
    let base = base.display().to_string();
    kubectl.says(&["kustomize", &base], &["name: my-applied", "name: my-made-"])?;
    kubectl.says(&["apply", "-k", &base], &["configmap/my-applied created"])?;
    kubectl.says(&["get", "cm", "-l", "by=kustomize"], &["my-applied", "my-made-"])?;
    kubectl.says(&["delete", "-k", &base], &["deleted"])?;
    kubectl.says(&["delete", "cm", "a", "applied"], &["deleted"])?;
    kubectl.says(&["delete", "namespace", "other"], &["deleted"])
}

pub fn workloads(kubectl: &Kubectl) -> Result<()> {
    kubectl.says(
        &["create", "deployment", "web", "--image=hello:v1", "--replicas=2", "--port=8080"],
        &["created"],
    )?;
    kubectl.says(&["rollout", "status", "deployment/web", "--timeout=60s"], &["successfully rolled out"])?;
    kubectl.says(
        &["expose", "deployment", "web", "--port=80", "--target-port=8080"],
        &["service/web exposed"],
    )?;
    kubectl.says(&["get", "all", "-o", "wide"], &["deployment.apps/web", "pod/web-", "service/web"])?;
    kubectl.says(&["describe", "deployment", "web"], &["ScalingReplicaSet", "hello:v1"])?;
    kubectl.says(&["describe", "service", "web"], &["Endpoints:", ":8080"])?;
    kubectl.says(&["set", "env", "deployment/web", "MOOD=calm"], &["env updated"])?;
    kubectl.says(
        &["set", "resources", "deployment/web", "--requests=cpu=10m"],
        &["resource requirements updated"],
    )?;
    kubectl.says(&["set", "image", "deployment/web", "hello=hello:v1", "--record=false"], &[])?;
    kubectl.says(&["set", "serviceaccount", "deployment", "web", "default"], &["serviceaccount updated"])?;
    kubectl.says(&["rollout", "status", "deployment/web", "--timeout=60s"], &["successfully"])?;
    kubectl.says(&["rollout", "history", "deployment/web"], &["REVISION"])?;
    kubectl.says(&["rollout", "undo", "deployment/web"], &["rolled back"])?;
    kubectl.says(&["rollout", "pause", "deployment/web"], &["paused"])?;
    kubectl.says(&["rollout", "resume", "deployment/web"], &["resumed"])?;
    kubectl.says(&["rollout", "restart", "deployment/web"], &["restarted"])?;
    kubectl.says(&["rollout", "status", "deployment/web", "--timeout=60s"], &["successfully"])?;
    kubectl.says(&["scale", "deployment", "web", "--replicas=3", "--current-replicas=2"], &["scaled"])?;
    kubectl.says(
        &["wait", "--for=jsonpath={.status.readyReplicas}=3", "deployment/web", "--timeout=60s"],
        &["condition met"],
    )?;
    kubectl.says(&["autoscale", "deployment", "web", "--min=1", "--max=4"], &["autoscaled"])?;
    kubectl.says(&["get", "hpa", "web"], &["Deployment/web", "4"])?;
    kubectl.says(&["delete", "hpa", "web"], &["deleted"])?;
    kubectl.says(&["logs", "deployment/web", "--tail=5"], &[])?;
    kubectl.says(&["events", "--for=deployment/web"], &["ScalingReplicaSet"])?;
    kubectl.says(&["get", "events", "--sort-by=.metadata.creationTimestamp"], &["Scheduled"])?;
    kubectl.says(&["delete", "deployment,service", "web"], &["deleted"])?;
    kubectl.says(&["wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s"], &[])
}

pub fn pods(kubectl: &Kubectl, node: &str) -> Result<()> {
    kubectl.says(
        &["run", "once", "--image=hello:v1", "--restart=Never", "--labels=a=b"],
        &["pod/once created"],
    )?;
    let web = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "web", "image": "switch:v1", "ports": [{"name": "web", "containerPort": 8080}],
            "volumeMounts": [{"name": "state", "mountPath": "/state"}],
        }], "volumes": [{"name": "state", "emptyDir": {}}]},
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [web, steps(node, "ticks", "Never", &["tick 2000 50"])]});
    kubectl.run(&["apply", "-f", &kubectl.cluster.file("pods.json", &list.to_string())?])?;
    kubectl.says(
        &["wait", "--for=condition=Ready", "pod/web", "pod/ticks", "pod/once", "--timeout=60s"],
        &["condition met"],
    )?;
    let note = kubectl.cluster.file("note", "one\ntwo\n")?;
    kubectl.run(&["cp", &note, "web:/state/note"])?;
    kubectl.says(&["exec", "web", "--", "cat", "/state/note"], &["one\ntwo\n"])?;
    kubectl.exits(1, &["exec", "web", "--", "false"])?;
    let (_attached, _out, line) = first_line(kubectl, &["attach", "ticks"])?;
    ensure!(line.starts_with("tick "), "{line}");
    let (_forward, _out, line) = first_line(kubectl, &["port-forward", "pod/web", ":8080"])?;
    let address =
        line.strip_prefix("Forwarding from ").and_then(|l| l.split(' ').next()).context(line.clone())?;
    ensure!(curl(&format!("http://{address}/"))? == "web");
    let (_proxy, _out, line) = first_line(kubectl, &["proxy", "--port=0"])?;
    let address = line.trim().strip_prefix("Starting to serve on ").context(line.clone())?;
    ensure!(
        curl(&format!("http://{address}/api/v1/namespaces/default/pods/web"))?.contains("\"kind\": \"Pod\"")
    );
    ensure!(curl(&format!("http://{address}/api/v1/namespaces/default/pods/web:web/proxy/"))? == "web");
    kubectl.run(&[
        "debug",
        "web",
        "--image=steps:v1",
        "--container=look",
        "--arguments-only",
        "--",
        "print looked",
    ])?;
    eventually("the debugging container ran", SOON, || {
        Ok(kubectl.run(&["logs", "web", "-c", "look"])?.contains("looked"))
    })?;
    kubectl.says(&["logs", "ticks", "--tail=1"], &["tick "])?;
    eventually("usage is known", Duration::from_secs(90), || {
        Ok(kubectl.run(&["top", "pods"])?.contains("web") && kubectl.run(&["top", "nodes"])?.contains(node))
    })?;
    kubectl.says(&["delete", "pod", "once", "web", "ticks", "--grace-period=1"], &["deleted"])
}

pub fn access(kubectl: &Kubectl) -> Result<()> {
    kubectl.says(&["auth", "whoami"], &["kubernetes-admin", "system:masters"])?;
    kubectl.says(&["auth", "can-i", "create", "pods"], &["yes"])?;
    kubectl.says(&["create", "serviceaccount", "robot"], &["created"])?;
    kubectl.says(&["create", "token", "robot"], &["ey"])?;
    kubectl.says(&["create", "role", "reader", "--verb=get", "--resource=pods"], &["created"])?;
    kubectl.says(
        &["create", "rolebinding", "robot", "--role=reader", "--serviceaccount=default:robot"],
        &["created"],
    )?;
    kubectl.says(
        &["create", "clusterrole", "watcher", "--verb=get", "--non-resource-url=/metrics"],
        &["created"],
    )?;
    kubectl.says(
        &["create", "clusterrolebinding", "robot", "--clusterrole=watcher", "--user=jane"],
        &["created"],
    )?;
    let robot = "--as=system:serviceaccount:default:robot";
    kubectl.says(&["auth", "can-i", "get", "pods", robot], &["yes"])?;
    kubectl.exits(1, &["auth", "can-i", "delete", "pods", robot])?;
    kubectl.says(&["auth", "can-i", "--list", robot], &["pods", "[get]"])?;
    kubectl.says(&["set", "subject", "rolebinding", "robot", "--user=jane"], &["subjects updated"])?;
    kubectl.says(&["auth", "can-i", "get", "pods", "--as=jane"], &["yes"])?;
    for (name, verb, state) in [("yes", "approve", "Approved"), ("no", "deny", "Denied")] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "jane");
        let pem = params.serialize_request(&key)?.pem()?;
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client",
                "usages": ["client auth"]},
        });
        kubectl.run(&["create", "-f", &kubectl.cluster.file("csr.json", &object.to_string())?])?;
        kubectl.says(&["certificate", verb, name], &["certificatesigningrequest"])?;
        kubectl.says(&["get", "csr", name], &[state])?;
    }
    Ok(())
}

pub fn nodes(kubectl: &Kubectl, node: &str) -> Result<()> {
    kubectl.says(&["taint", "node", node, "mood=bad:NoSchedule"], &["tainted"])?;
    kubectl.says(&["describe", "node", node], &["mood=bad:NoSchedule"])?;
    kubectl.says(&["taint", "node", node, "mood-"], &["untainted"])?;
    kubectl.says(&["cordon", node], &["cordoned"])?;
    kubectl.says(&["get", "node", node], &["SchedulingDisabled"])?;
    kubectl.says(
        &["drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=60s"],
        &["drained"],
    )?;
    kubectl.says(&["uncordon", node], &["uncordoned"])?;
    kubectl.says(&["label", "node", node, "rack=1"], &["labeled"])
}
