//! Pods on their node's network. Profile: routed.

use super::*;

/// Row: Linux containers: a pod on its node's network has the node's address; its probes decide, and a Service leads to it
#[test]
fn a_pod_on_its_nodes_network_is_probed_and_served() -> Result<Ended> {
    let mut cluster = cluster()?;
    let node = cluster.host().context("a host")?.address.to_string();
    let script = "mkdir /www; echo from the node > /www/index.html; \
                  exec /bin/httpd -f -p 8123 -h /www";
    let get = json!({"httpGet": {"path": "index.html", "port": 8123}, "periodSeconds": 1});
    let container = json!({"name": "main", "image": "busybox:v1", "command": ["/bin/sh", "-c", script],
        "ports": [{"containerPort": 8123}], "startupProbe": get, "readinessProbe": get, "livenessProbe": get,
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]});
    let spec = json!({"hostNetwork": true, "terminationGracePeriodSeconds": 1, "containers": [container]});
    let mut object = pod("exporter", spec);
    object["metadata"]["labels"] = json!({"app": "exporter"});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "exporter"},
        "spec": {"selector": {"app": "exporter"}, "ports": [{"port": 80, "targetPort": 8123}]}});
    apply(&cluster, &[object, service])?;
    let ip = ready(&cluster, "exporter")?;
    ensure!(ip == node, "{ip} is not the node's address {node}");
    let status = cluster.get(&["pod", "exporter"])?["status"].take();
    ensure!(status["hostIP"] == node.as_str() && status["podIPs"][0]["ip"] == node.as_str(), "{status:#}");
    let variable = cluster.kubectl(&["exec", "exporter", "--", "/bin/sh", "-c", "echo $IP"])?;
    ensure!(variable.trim() == node, "{variable}");
    let address = cluster.get(&["service", "exporter"])?["spec"]["clusterIP"].take();
    let url = format!("http://{}/", address.as_str().context("an address")?);
    eventually("the Service leads to it", SOON, || {
        Ok(cluster.curl(&url).is_ok_and(|body| body.contains("from the node")))
    })?;
    cluster.kubectl(&["delete", "pod", "exporter", "--now"])?;
    cluster.kubectl(&["delete", "service", "exporter"])?;
    cluster.stop()
}
