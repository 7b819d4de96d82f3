//! The same for Linux containers: what a pod's spec says reaches a program that knows nothing of this node.
//! Profile: routed.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, layout};
use serde_json::{Value, json};

use super::describe;
use crate::pods::{apply, has};

/// A cluster with busybox under these names.
fn cluster(names: &[&str]) -> Result<Cluster> {
    let cluster = Cluster::start(Profile::Routed)?;
    let dir = cluster.data_dir().with_file_name("busybox");
    let config = json!({"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin"], "StopSignal": "SIGKILL"});
    layout::busybox(&dir, config)?;
    for name in names {
        cluster.coracle(&["image", "push", &dir.display().to_string(), name])?;
    }
    Ok(cluster)
}

fn wait(cluster: &Cluster, pod: &str, what: &str) -> Result<Value> {
    let waited = cluster.kubectl(&["wait", &format!("--for={what}"), &format!("pod/{pod}"), "--timeout=60s"]);
    let said = || cluster.kubectl(&["logs", pod, "-c", "init-myservice", "--tail=20"]).unwrap_or_default();
    waited.with_context(|| format!("{}\n{}\n{}", describe(cluster, "pod", pod), said(), cluster.logs()))?;
    cluster.get(&["pod", pod])
}

/// Row: pods: a Linux init container that waits for a Service holds the app back until the name resolves
/// Profile: routed
#[test]
fn mission_m08_busybox_itself_waits_for_the_service() -> Result<Ended> {
    let mut cluster = cluster(&["busybox:latest", "myapp:latest"])?;
    // Today's nslookup fails as soon as one domain of the search list does not have the name: it is asked for the whole.
    let asked = "nslookup -type=a myservice.default.svc.cluster.local";
    let manifest = include_str!("02-init-pod.yaml").replace("nslookup myservice", asked);
    let file = cluster.file("02-init-pod.yaml", &manifest)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    coracle_e2e::eventually("it says what it waits for", std::time::Duration::from_secs(60), || {
        let said = cluster.kubectl(&["logs", "init-pod", "-c", "init-myservice"])?;
        Ok(said.contains("waiting for myservice"))
    })
    .with_context(|| describe(&cluster, "pod", "init-pod"))?;
    has(&cluster.kubectl(&["get", "pod", "init-pod"])?, &["0/1", "Init:0/1"])?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "myservice"}, "spec": {"ports": [{"port": 80}]},
    });
    apply(&cluster, &[service])?;
    wait(&cluster, "init-pod", "condition=Ready")?;
    cluster.kubectl(&["delete", "pod", "init-pod", "--now"])?;
    cluster.stop()
}

/// Row: pods: a Linux container has its user, groups, read-only root, hosts, files by subPath, hooks by command, its last words and its claim
/// Profile: routed
#[test]
fn mission_m05_a_linux_container_gets_what_its_spec_says() -> Result<Ended> {
    let mut cluster = cluster(&["busybox:v1"])?;
    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=color=blue"])?;
    let script = "id -u; id -G; touch /x || echo root is read only; cat /etc/color; grep alias.test /etc/hosts; \
        wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token; echo kept > /data/note; cat /data/hook; \
        echo my last words > /dev/termination-log; exit 3";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "told"},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 2,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000},
            "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["alias.test"]}],
            "containers": [{
                "name": "main", "image": "busybox:v1",
                "command": ["/bin/sh", "-c", format!("until test -f /data/hook; do sleep 0.1; done; {script}")],
                "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                                    "capabilities": {"drop": ["ALL"]}},
                "lifecycle": {"postStart": {"exec": {"command": ["/bin/sh", "-c", "echo hooked > /data/hook"]}}},
                "volumeMounts": [
                    {"name": "settings", "mountPath": "/etc/color", "subPath": "color"},
                    {"name": "data", "mountPath": "/data"},
                ],
            }],
            "volumes": [
                {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}}},
            ],
        },
    });
    apply(&cluster, &[pod])?;
    let ended = wait(&cluster, "told", "jsonpath={.status.phase}=Failed")?;
    let end = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(end["exitCode"] == 3 && end["message"] == "my last words\n", "{end:#}");
    let said = cluster.kubectl(&["logs", "told"])?;
    has(&said, &["1000\n", "3000", "2000", "root is read only", "blue10.1.2.3\talias.test", "hooked"])?;

    let refused = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"},
        "spec": {"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "main", "image": "busybox:v1"}]},
    });
    let mut debugged = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "busybox:v1"}]},
    });
    debugged["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    apply(&cluster, &[refused, debugged])?;
    wait(&cluster, "plain", "condition=Ready")?;
    coracle_e2e::eventually("root is refused", std::time::Duration::from_secs(30), || {
        Ok(describe(&cluster, "pod", "root")
            .contains("container has runAsNonRoot and image will run as root"))
    })?;
    // A container that is added to look into the pod.
    let added = ["debug", "plain", "--image=busybox:v1", "--container=look", "--", "/bin/echo", "looking in"];
    cluster.kubectl(&added)?;
    coracle_e2e::eventually("the added container says so", std::time::Duration::from_secs(30), || {
        Ok(cluster.kubectl(&["logs", "plain", "-c", "look"])?.contains("looking in"))
    })
    .with_context(|| describe(&cluster, "pod", "plain"))?;
    // One with a target sees its processes.
    let list = "grep -al sleep /proc/[0-9]*/cmdline; tr '\\0' ' ' < /proc/1/cmdline";
    let target = [
        "debug",
        "plain",
        "--image=busybox:v1",
        "--container=within",
        "--target=main",
        "--",
        "/bin/sh",
        "-c",
        list,
    ];
    cluster.kubectl(&target)?;
    coracle_e2e::eventually("it sees the target", std::time::Duration::from_secs(30), || {
        let said = cluster.kubectl(&["logs", "plain", "-c", "within"])?;
        has(&said, &["/proc/1/cmdline", "sleep 100000"])?;
        Ok(true)
    })
    .with_context(|| describe(&cluster, "pod", "plain"))?;
    cluster.kubectl(&["delete", "pod", "--all", "--now"])?;
    cluster.stop()
}
