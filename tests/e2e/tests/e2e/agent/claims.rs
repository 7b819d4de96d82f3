//! Devices that pods claim, from a driver of this test's own. Profile: loopback.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use coracle_agent::claims::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use coracle_agent::claims::{SERVICE, v1};
use coracle_agent::csi::plugin;
use coracle_agent::csi::plugin::registration_server::{Registration, RegistrationServer};
use coracle_e2e::{Cluster, Ended, eventually};
use serde_json::{Value, json};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::super::pods::{SOON, apply, has, status, steps};
use super::cluster;

const DRIVER: &str = "dra.fake.coracle.dev";

/// Notes every call. Claims whose name has `large` in it get a device of the host.
#[derive(Clone)]
struct Fake {
    socket: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn note(&self, call: String) {
        if let Ok(mut calls) = self.calls.lock() {
            calls.push(call);
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().map(|calls| calls.clone()).unwrap_or_default()
    }

    fn count(&self, start: &str) -> usize {
        self.calls().iter().filter(|call| call.starts_with(start)).count()
    }
}

#[tonic::async_trait]
impl Registration for Fake {
    async fn get_info(
        &self,
        _: Request<plugin::InfoRequest>,
    ) -> Result<Response<plugin::PluginInfo>, Status> {
        Ok(Response::new(plugin::PluginInfo {
            r#type: "DRAPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.socket.display().to_string(),
            supported_versions: vec![SERVICE.into(), "v1beta1.DRAPlugin".into()],
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
impl DraPlugin for Fake {
    async fn node_prepare_resources(
        &self,
        request: Request<v1::NodePrepareResourcesRequest>,
    ) -> Result<Response<v1::NodePrepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in request.into_inner().claims {
            self.note(format!("prepare {}", claim.name));
            let large = claim.name.contains("large");
            let device = v1::Device {
                pool_name: "here".into(),
                cdi_device_ids: large.then(|| format!("{DRIVER}/card=large")).into_iter().collect(),
                ..Default::default()
            };
            let answer = v1::NodePrepareResourceResponse { devices: vec![device], error: String::new() };
            claims.insert(claim.uid, answer);
        }
        Ok(Response::new(v1::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<v1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<v1::NodeUnprepareResourcesResponse>, Status> {
        let mut claims = HashMap::new();
        for claim in request.into_inner().claims {
            self.note(format!("unprepare {}", claim.name));
            claims.insert(claim.uid, v1::NodeUnprepareResourceResponse::default());
        }
        Ok(Response::new(v1::NodeUnprepareResourcesResponse { claims }))
    }
}

fn register(cluster: &Cluster, runtime: &tokio::runtime::Runtime) -> Result<Fake> {
    let registry = cluster.data_dir().join("node/plugins_registry");
    eventually("the registry is there", SOON, || Ok(registry.is_dir()))?;
    let fake = Fake { socket: registry.join("dra-reg.sock"), calls: Arc::default() };
    let _guard = runtime.enter();
    let listener = tokio::net::UnixListener::bind(&fake.socket)?;
    std::fs::set_permissions(&fake.socket, PermissionsExt::from_mode(0o777))?;
    let server = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(fake.clone()))
        .add_service(DraPluginServer::new(fake.clone()))
        .serve_with_incoming(UnixListenerStream::new(listener));
    runtime.spawn(server);
    eventually("it is registered", SOON, || Ok(fake.count("registered true") == 1))?;
    Ok(fake)
}

fn template(name: &str) -> Value {
    let expression = format!("device.attributes['{DRIVER}'].size == '{name}'");
    let exactly = json!({"deviceClassName": "fake", "selectors": [{"cel": {"expression": expression}}]});
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": name},
        "spec": {"spec": {"devices": {"requests": [{"name": "card", "exactly": exactly}]}}}})
}

fn pod(name: &str, template: &str) -> Value {
    let mut pod = steps("", name, "Always", &["sleep 600000"]);
    pod["spec"]["nodeName"] = Value::Null;
    pod["spec"]["resourceClaims"] = json!([{"name": template, "resourceClaimTemplateName": template}]);
    pod["spec"]["containers"][0]["resources"] = json!({"claims": [{"name": template}]});
    pod
}

/// The claim that was made for a pod.
fn claim_of(cluster: &Cluster, pod: &str) -> Result<Value> {
    let pod = cluster.get(&["pod", pod])?;
    let name =
        pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str().context("its claim")?;
    cluster.get(&["resourceclaim", name])
}

/// Row: devices: claims of devices (DRA) are made from templates, given by class and selector, prepared by their driver, and given back
#[test]
fn claimed_devices_are_given_prepared_and_taken_back() -> Result<Ended> {
    let (mut node_cluster, node) = cluster(&[])?;
    let cluster = &node_cluster;
    let runtime = tokio::runtime::Runtime::new()?;
    let fake = register(cluster, &runtime)?;
    let card = |name: &str, size: &str| json!({"name": name, "attributes": {"size": {"string": size}}});
    let expression = format!("device.driver == '{DRIVER}'");
    apply(
        cluster,
        &[
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": "here"}, "spec": {
                "driver": DRIVER, "nodeName": node, "pool": {"name": "here", "generation": 1, "resourceSliceCount": 1},
                "devices": [card("card-0", "small"), card("card-1", "large")]}}),
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "fake"},
                "spec": {"selectors": [{"cel": {"expression": expression}}]}}),
            template("small"),
            template("large"),
            pod("first", "small"),
        ],
    )?;
    status(cluster, "first", "runs", |status| status["phase"] == "Running")
        .with_context(|| cluster.kubectl(&["describe", "pod", "first"]).unwrap_or_default())?;
    let claim = claim_of(cluster, "first")?;
    let result = &claim["status"]["allocation"]["devices"]["results"][0];
    ensure!(
        result["device"] == "card-0" && result["request"] == "card" && result["driver"] == DRIVER,
        "{claim:#}"
    );
    ensure!(claim["status"]["reservedFor"][0]["name"] == "first", "{claim:#}");
    has(&cluster.kubectl(&["get", "resourceclaims"])?, &["first-small-", "allocated,reserved"])?;
    ensure!(fake.count("prepare first-small-") == 1, "{:?}", fake.calls());

    // There is one such device: who comes second waits for it, and gets it when the first is gone.
    apply(cluster, &[pod("second", "small")])?;
    eventually("the second pod says why it waits", SOON, || {
        let words = "0/1 nodes are available: 1 cannot allocate all claims.";
        has(&cluster.kubectl(&["describe", "pod", "second"])?, &["FailedScheduling", words])?;
        Ok(true)
    })?;
    // Another agent knows what the one before prepared.
    cluster.kill("node")?;
    cluster.kubectl(&["delete", "pod", "first", "--timeout=30s"])?;
    eventually("it is taken back", SOON, || Ok(fake.count("unprepare first-small-") == 1))?;
    status(cluster, "second", "runs", |status| status["phase"] == "Running")
        .with_context(|| cluster.kubectl(&["describe", "pod", "second"]).unwrap_or_default())?;
    eventually("the first claim is gone", SOON, || {
        Ok(!cluster.kubectl(&["get", "resourceclaims"])?.contains("first-small-"))
    })?;
    ensure!(
        claim_of(cluster, "second")?["status"]["allocation"]["devices"]["results"][0]["device"] == "card-0"
    );

    // A device of the host is nothing that a wasm container can have: it is told so, and does not run without it.
    apply(cluster, &[pod("wasm", "large")])?;
    eventually("the container is refused", SOON, || {
        let words = "a wasm container cannot be given devices of the host";
        has(&cluster.kubectl(&["describe", "pod", "wasm"])?, &[words])?;
        Ok(true)
    })?;
    ensure!(cluster.get(&["pod", "wasm"])?["status"]["phase"] == "Pending");
    cluster.kubectl(&["delete", "pod", "wasm", "second", "--timeout=30s"])?;
    eventually("no claim is left", SOON, || {
        Ok(cluster.get(&["resourceclaims"])?["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    ensure!(fake.count("unprepare ") == 3, "{:?}", fake.calls());
    node_cluster.stop()
}
