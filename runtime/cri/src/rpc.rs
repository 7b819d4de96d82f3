//! The runtime service of CRI: each call handed to what does it.

use std::pin::Pin;
use std::sync::Arc;

use coracle_cri_api::v1;
use coracle_cri_api::v1::runtime_service_server::RuntimeService;
use futures::{Stream, StreamExt as _};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use crate::address::Range;
use crate::service::Service;
use crate::spec::HANDLERS;

/// What answers gRPC calls. Clones share one service.
#[derive(Clone)]
pub struct Rpc(pub Arc<Service>);

type Answer<T> = Result<Response<T>, Status>;

/// The range that was brought by UpdateRuntimeConfig, as it is kept.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kept {
    pub pod_cidr: String,
}

impl Rpc {
    fn conditions(&self) -> Vec<v1::RuntimeCondition> {
        let condition = |kind: &str, problem: Option<(&str, String)>| {
            let (reason, message) = problem.clone().unwrap_or_default();
            v1::RuntimeCondition {
                r#type: kind.to_owned(),
                status: problem.is_none(),
                reason: reason.to_owned(),
                message,
            }
        };
        let runtime = (!self.0.host.is_attached()).then(|| {
            ("WasmHostNotReady", "the wasm host process is being started or does not answer".to_owned())
        });
        let network = match self.0.state.range() {
            None => Some((
                "PodRangeUnset",
                "no pod range is set: it comes with UpdateRuntimeConfig or --pod-cidr".to_owned(),
            )),
            Some(range) => match self.0.linux.node() {
                Some(node) => node.trouble().map(|words| ("PodNetworkFailed", words)),
                None => not_local(range),
            },
        };
        vec![condition("RuntimeReady", runtime), condition("NetworkReady", network)]
    }
}

/// Pods listen on their addresses: those have to be local to this machine.
fn not_local(range: Range) -> Option<(&'static str, String)> {
    let error = std::net::UdpSocket::bind((range.first(), 0)).err()?;
    Some((
        "PodRangeNotLocal",
        format!("addresses of the pod range {range} cannot be bound on this machine: {error}"),
    ))
}

#[tonic::async_trait]
impl RuntimeService for Rpc {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            // The version of the kubelet's side of this interface: it has always been this.
            version: "0.1.0".into(),
            runtime_name: "coracle".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let info = if request.into_inner().verbose {
            let range = self.0.state.range().map(|r| r.to_string());
            let engine = coracle_wasm::engine::engine_fingerprint();
            [("config".to_owned(), serde_json::json!({"podCidr": range, "engine": engine}).to_string())]
                .into()
        } else {
            Default::default()
        };
        let handler = |name: &str| v1::RuntimeHandler {
            name: name.to_owned(),
            features: Some(v1::RuntimeHandlerFeatures::default()),
        };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions: self.conditions() }),
            info,
            runtime_handlers: HANDLERS
                .iter()
                .filter(|h| **h != "runc" || self.0.linux.engine().is_ok())
                .map(|h| handler(h))
                .collect(),
            // Of Linux containers: guests of wasm have no groups.
            features: Some(v1::RuntimeFeatures { supplemental_groups_policy: self.0.linux.engine().is_ok() }),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| Status::invalid_argument("the sandbox has no config"))?;
        let service = self.0.clone();
        let pod_sandbox_id =
            finish(async move { service.run_pod_sandbox(config, request.runtime_handler).await }).await?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let service = self.0.clone();
        let id = request.into_inner().pod_sandbox_id;
        finish(async move { service.stop_pod_sandbox(&id).await }).await?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let service = self.0.clone();
        let id = request.into_inner().pod_sandbox_id;
        finish(async move { service.remove_pod_sandbox(&id).await }).await?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        self.0.pod_sandbox_status(&request.pod_sandbox_id, request.verbose).map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = self.0.list_pod_sandboxes(request.into_inner().filter);
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let service = self.0.clone();
        let request = request.into_inner();
        let container_id = finish(async move { service.create_container(request).await }).await?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        let service = self.0.clone();
        let id = request.into_inner().container_id;
        finish(async move { service.start_container(&id).await }).await?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        let service = self.0.clone();
        let request = request.into_inner();
        finish(async move { service.stop_container(&request.container_id, request.timeout).await }).await?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        let service = self.0.clone();
        let id = request.into_inner().container_id;
        finish(async move { service.remove_container(&id).await }).await?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        let containers = self.0.list_containers(request.into_inner().filter);
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        self.0.container_status(&request.container_id, request.verbose).map(Response::new)
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        self.0.update_container_resources(&request.into_inner()).await?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        self.0.reopen_container_log(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let response = self.0.exec_sync(request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let url = self.0.exec_url(request.into_inner())?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let url = self.0.attach_url(request.into_inner())?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        let url = self.0.port_forward_url(request.into_inner())?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        let stats = self.0.container_stats(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let stats = self.0.list_container_stats(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        let stats = self.0.pod_sandbox_stats(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = self.0.list_pod_sandbox_stats(request.into_inner().filter).await?;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.unwrap_or_default();
        let pod_cidr = config.network_config.unwrap_or_default().pod_cidr;
        if !pod_cidr.is_empty() {
            let range: Range = pod_cidr.parse().map_err(|e| Status::invalid_argument(format!("{e}")))?;
            if self.0.linux.node().is_some_and(|n| n.fixed_range().is_some()) {
                // The CNI configuration says which addresses there are.
                return Ok(Response::new(v1::UpdateRuntimeConfigResponse {}));
            }
            self.0.state.set_range(range);
            if let Some(node) = self.0.linux.node() {
                node.bridge(Some(range)).await?;
            }
            let kept = Kept { pod_cidr: range.to_string() };
            crate::service::durable(self.0.settings.write("", "runtime", &kept)).await?;
        }
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn checkpoint_container(
        &self,
        request: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        let service = self.0.clone();
        finish(async move { service.checkpoint_container(request.into_inner()).await }).await?;
        Ok(Response::new(v1::CheckpointContainerResponse {}))
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        // A watcher that is too slow is told so by an error: it lists and watches again.
        let events = BroadcastStream::new(self.0.events.subscribe())
            .map(|event| event.map_err(|e| Status::data_loss(format!("events were missed: {e}"))));
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        let descriptors = self.0.metric_descriptors().await?;
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let pod_metrics = self.0.list_pod_sandbox_metrics().await?;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        // Wasm containers are in no cgroup of their own; a kubelet that asks manages its own ones by files.
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let service = self.0.clone();
        finish(async move { service.update_pod_sandbox_resources(request.into_inner()).await }).await?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }
}

/// Carries a change to its end even if the client hangs up: half-made objects are nobody's.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|e| Status::internal(format!("the call broke off: {e}")))?
}
