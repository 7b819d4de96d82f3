//! A storage driver of this test's own, over its socket, as the hostpath driver is one. Profile: loopback.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use coracle_agent::csi::plugin::registration_server::{Registration, RegistrationServer};
use coracle_agent::csi::v1::node_server::{Node, NodeServer};
use coracle_agent::csi::v1::node_service_capability::{Rpc, Type, rpc};
use coracle_agent::csi::v1::volume_capability::AccessType;
use coracle_agent::csi::v1::volume_usage::Unit;
use coracle_agent::csi::{plugin, v1};
use coracle_e2e::{Cluster, Ended, eventually};
use serde_json::json;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::super::pods::{SOON, apply, has, status, steps};
use super::cluster;

mod attach;

pub(crate) const DRIVER: &str = "fake.csi.coracle.dev";

/// Notes every call; a published volume is a directory with one file, or a device.
#[derive(Clone)]
pub(crate) struct Fake {
    socket: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn note(&self, call: impl Into<String>) {
        if let Ok(mut calls) = self.calls.lock() {
            calls.push(call.into());
        }
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().map(|calls| calls.clone()).unwrap_or_default()
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|c| *c == call).count()
    }
}

fn io(error: std::io::Error) -> Status {
    Status::internal(error.to_string())
}

#[tonic::async_trait]
impl Registration for Fake {
    async fn get_info(
        &self,
        _: Request<plugin::InfoRequest>,
    ) -> Result<Response<plugin::PluginInfo>, Status> {
        Ok(Response::new(plugin::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.socket.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<plugin::RegistrationStatus>,
    ) -> Result<Response<plugin::RegistrationStatusResponse>, Status> {
        self.note(format!("registered {}", request.into_inner().plugin_registered));
        Ok(Response::new(plugin::RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Node for Fake {
    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Result<Response<v1::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("stage {}", request.volume_id));
        let lun = request.publish_context.get("lun");
        lun.iter().for_each(|lun| self.note(format!("at {lun}")));
        std::fs::write(Path::new(&request.staging_target_path).join("data"), "of the driver").map_err(io)?;
        Ok(Response::new(v1::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Result<Response<v1::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("unstage {}", request.volume_id));
        std::fs::remove_file(Path::new(&request.staging_target_path).join("data")).map_err(io)?;
        Ok(Response::new(v1::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let of: HashMap<String, String> = request.volume_context;
        let get = |key: &str| of.get(key).cloned().unwrap_or_default();
        self.note(if request.staging_target_path.is_empty() {
            "publish inline".to_owned()
        } else {
            format!("publish {}", request.volume_id)
        });
        let target = Path::new(&request.target_path);
        if let Some(AccessType::Block(_)) = request.volume_capability.and_then(|c| c.access_type) {
            let mut node = std::process::Command::new("mknod");
            let made = coracle_e2e::succeed(node.arg(target).args(["b", "7", "201"]));
            made.map_err(|error| Status::internal(error.to_string()))?;
            return Ok(Response::new(v1::NodePublishVolumeResponse {}));
        }
        std::fs::create_dir(target).map_err(io)?;
        let text = format!(
            "pod {} size {} ephemeral {}",
            get("csi.storage.k8s.io/pod.name"),
            get("size"),
            get("csi.storage.k8s.io/ephemeral")
        );
        std::fs::write(target.join("file"), text).map_err(io)?;
        Ok(Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<v1::NodeUnpublishVolumeResponse>, Status> {
        self.note("unpublish");
        let target = request.into_inner().target_path;
        let is_folder = std::fs::metadata(&target).map_err(io)?.is_dir();
        let removed = if is_folder { std::fs::remove_dir_all(target) } else { std::fs::remove_file(target) };
        removed.map_err(io)?;
        Ok(Response::new(v1::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<v1::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        if !Path::new(&request.volume_path).join("file").is_file() {
            return Err(Status::not_found(request.volume_path));
        }
        let bytes = v1::VolumeUsage { available: 6, total: 10, used: 4, unit: Unit::Bytes.into() };
        Ok(Response::new(v1::NodeGetVolumeStatsResponse { usage: vec![bytes], volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<v1::NodeExpandVolumeRequest>,
    ) -> Result<Response<v1::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.capacity_range.map_or(0, |range| range.required_bytes);
        if !Path::new(&request.staging_target_path).join("data").is_file() {
            return Err(Status::not_found(request.staging_target_path));
        }
        self.note(format!("expand {} to {bytes}", request.volume_id));
        if bytes > 8 << 20 {
            return Err(Status::out_of_range("8Mi is the most"));
        }
        Ok(Response::new(v1::NodeExpandVolumeResponse { capacity_bytes: bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        use rpc::Type::{ExpandVolume, GetVolumeStats, StageUnstageVolume};
        let can = |what: rpc::Type| v1::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: what.into() })),
        };
        let capabilities = [StageUnstageVolume, GetVolumeStats, ExpandVolume].map(can).into();
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<v1::NodeGetInfoRequest>,
    ) -> Result<Response<v1::NodeGetInfoResponse>, Status> {
        let segments = HashMap::from([("topology.fake.csi/node".to_owned(), "here".to_owned())]);
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id: "id-of-the-driver".into(),
            max_volumes_per_node: 7,
            accessible_topology: Some(v1::Topology { segments }),
        }))
    }
}

/// A driver that has registered with the cluster's node.
pub(crate) fn register(cluster: &Cluster, runtime: &tokio::runtime::Runtime) -> Result<Fake> {
    let registry = cluster.data_dir().join("node/plugins_registry");
    eventually("the registry is there", SOON, || Ok(registry.is_dir()))?;
    let fake = Fake { socket: registry.join("fake-reg.sock"), calls: Arc::default() };
    let _guard = runtime.enter();
    let listener = tokio::net::UnixListener::bind(&fake.socket)?;
    std::fs::set_permissions(&fake.socket, PermissionsExt::from_mode(0o777))?;
    let server = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(fake.clone()))
        .add_service(NodeServer::new(fake.clone()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    runtime.spawn(server);
    eventually("it is registered", SOON, || Ok(fake.count("registered true") == 1))?;
    Ok(fake)
}

/// How full the claim's volume is, in the summary and in the metrics.
fn usage(cluster: &Cluster, node: &str) -> Result<()> {
    let of = |path: &str| cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/{path}")]);
    eventually("the summary tells", SOON, || {
        let summary: serde_json::Value = serde_json::from_str(&of("stats/summary")?)?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let first = pods.iter().find(|pod| pod["podRef"]["name"] == "first").context("no pod")?;
        let volume = &first["volume"][0];
        ensure!(volume["pvcRef"] == json!({"name": "data", "namespace": "default"}), "{first:#}");
        ensure!(volume["usedBytes"] == 4 && volume["capacityBytes"] == 10, "{volume}");
        Ok(true)
    })?;
    let metrics = of("metrics")?;
    let line = "kubelet_volume_stats_available_bytes{namespace=\"default\",persistentvolumeclaim=\"data\"} 6";
    ensure!(metrics.lines().filter(|l| *l == line).count() == 1, "{metrics}");
    Ok(())
}

/// What an external resizer leaves to the node: the volume is larger, and its claim waits.
fn grown(cluster: &Cluster, fake: &Fake) -> Result<()> {
    let patch = |args: &[&str], body: serde_json::Value| {
        let body = body.to_string();
        let mut all = vec!["patch"];
        all.extend(args);
        all.extend(["--type=merge", "-p", &body]);
        cluster.kubectl(&all).map(drop)
    };
    let grow = |size: &str| -> Result<()> {
        patch(&["pv", "fake-1"], json!({"spec": {"capacity": {"storage": size}}}))?;
        let pending = json!({"status": {"allocatedResourceStatuses": {"storage": "NodeResizePending"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}});
        patch(&["pvc", "data", "--subresource=status"], pending)
    };
    let told = || -> Result<serde_json::Value> { Ok(cluster.get(&["pvc", "data"])?["status"].take()) };
    grow("2Mi")?;
    eventually("the claim has its size", SOON, || {
        let status = told()?;
        ensure!(status["capacity"]["storage"] == "2Mi", "{status}");
        ensure!(status["conditions"].as_array().is_none_or(Vec::is_empty), "{status}");
        ensure!(status["allocatedResourceStatuses"]["storage"].is_null(), "{status}");
        Ok(true)
    })?;
    ensure!(fake.count("expand vol-1 to 2097152") == 1, "{:?}", fake.calls());
    grow("1Gi")?;
    eventually("the driver's refusal is told", SOON, || {
        let status = told()?;
        ensure!(status["allocatedResourceStatuses"]["storage"] == "NodeResizeInfeasible", "{status}");
        let events = cluster.kubectl(&["get", "events"])?;
        has(&events, &["VolumeResizeFailed", "FileSystemResizeSuccessful", "8Mi is the most"])?;
        Ok(true)
    })?;
    Ok(())
}

/// Row: storage: a CSI driver registers over its socket; its volumes, by claim and inline, are staged, published, measured, expanded and given back
#[test]
fn volumes_of_a_storage_driver() -> Result<Ended> {
    let (mut node_cluster, node) = cluster(&[])?;
    let cluster = &node_cluster;
    let runtime = tokio::runtime::Runtime::new()?;
    let fake = register(cluster, &runtime)?;
    let object = cluster.get(&["csinode", &node])?;
    let driver = &object["spec"]["drivers"][0];
    ensure!(driver["name"] == DRIVER && driver["nodeID"] == "id-of-the-driver", "{object:#}");
    ensure!(driver["allocatable"]["count"] == 7, "{object:#}");
    let labels = cluster.get(&["node", &node])?["metadata"]["labels"].take();
    ensure!(labels["topology.fake.csi/node"] == "here", "{labels:#}");

    let volume = |pod: serde_json::Value, source: serde_json::Value| {
        let (mut pod, mut source) = (pod, source);
        source["name"] = json!("v");
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        pod["spec"]["volumes"] = json!([source]);
        pod
    };
    let reads = ["read /v/file", "sleep 600000"];
    let claimed = || json!({"persistentVolumeClaim": {"claimName": "data"}});
    let inline = json!({"csi": {"driver": DRIVER, "volumeAttributes": {"size": "1Gi"}}});
    apply(
        cluster,
        &[
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
                "spec": {"attachRequired": false, "podInfoOnMount": true,
                    "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "fake-1"}, "spec": {
                "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "hand",
                "csi": {"driver": DRIVER, "volumeHandle": "vol-1", "volumeAttributes": {"size": "1Mi"}}}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "hand", "volumeName": "fake-1",
                "resources": {"requests": {"storage": "1Mi"}}}}),
            volume(steps(&node, "first", "Always", &reads), claimed()),
            volume(steps(&node, "second", "Always", &reads), claimed()),
            volume(steps(&node, "inline", "Always", &reads), inline),
        ],
    )?;
    for (pod, words) in [
        ("first", "/v/file: pod first size 1Mi ephemeral false"),
        ("second", "/v/file: pod second size 1Mi ephemeral false"),
        ("inline", "/v/file: pod inline size 1Gi ephemeral true"),
    ] {
        status(cluster, pod, "runs", |status| status["phase"] == "Running")
            .with_context(|| cluster.kubectl(&["describe", "pod", pod]).unwrap_or_default())?;
        eventually(words, SOON, || {
            has(&cluster.kubectl(&["logs", pod])?, &[words])?;
            Ok(true)
        })?;
    }
    ensure!(fake.count("publish vol-1") == 2 && fake.count("publish inline") == 1, "{:?}", fake.calls());
    usage(cluster, &node)?;
    grown(cluster, &fake)?;
    // Another agent knows what the one before published.
    cluster.kill("node")?;
    cluster.kubectl(&["delete", "pod", "first", "inline", "--timeout=30s"])?;
    eventually("two are given back", SOON, || Ok(fake.count("unpublish") == 2))?;
    ensure!(fake.count("unstage vol-1") == 0, "{:?}", fake.calls());
    cluster.kubectl(&["delete", "pod", "second", "--timeout=30s"])?;
    eventually("the last one too", SOON, || {
        Ok(fake.count("unpublish") == 3 && fake.count("unstage vol-1") == 1)
    })?;
    // A driver that leaves is no longer listed, and who needs it is told.
    std::fs::remove_file(&fake.socket)?;
    eventually("it is not listed", SOON, || {
        Ok(cluster.get(&["csinode", &node])?["spec"]["drivers"].as_array().is_none_or(Vec::is_empty))
    })?;
    apply(cluster, &[volume(steps(&node, "late", "Always", &reads), claimed())])?;
    let words = format!("driver name {DRIVER} not found in the list of registered CSI drivers");
    eventually("an Event tells", SOON, || {
        has(&cluster.kubectl(&["describe", "pod", "late"])?, &[words.as_str()])?;
        Ok(true)
    })?;
    node_cluster.stop()
}
