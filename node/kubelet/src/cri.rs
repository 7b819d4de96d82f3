//! The runtime as the agent sees it: CRI calls with the labels that tie sandboxes and containers to pods.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use coracle_cri_api::v1::image_service_client::ImageServiceClient;
use coracle_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use coracle_cri_api::v1::*;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// The labels that kubelets set; other tools read them too.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";

const CALL: Duration = Duration::from_secs(30);
/// Compiling a large component takes a while.
const PULL: Duration = Duration::from_secs(600);

/// Clients of one runtime; connects again by itself.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// A pod as the runtime has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The newest sandbox.
    pub sandbox: Option<PodSandboxStatus>,
    /// Older sandboxes, to be removed.
    pub stale: Vec<String>,
    /// Every container of the newest sandbox, oldest attempt first.
    pub containers: Vec<ContainerStatus>,
}

impl Observed {
    /// The last attempt of a container.
    pub fn latest<'a>(&'a self, name: &'a str) -> Option<&'a ContainerStatus> {
        self.attempts(name).last()
    }

    /// The attempt before the last.
    pub fn previous<'a>(&'a self, name: &'a str) -> Option<&'a ContainerStatus> {
        self.attempts(name).rev().nth(1)
    }

    /// Every attempt of a container, oldest first.
    pub fn attempts<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a ContainerStatus> {
        self.containers.iter().filter(move |one| one.metadata.as_ref().is_some_and(|m| m.name == name))
    }

    /// The sandbox, if it can hold running containers.
    pub fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandbox.as_ref().filter(|one| one.state() == PodSandboxState::SandboxReady)
    }

    /// The pod's address.
    pub fn ip(&self) -> Option<&str> {
        let ip = self.ready_sandbox()?.network.as_ref()?.ip.as_str();
        (!ip.is_empty()).then_some(ip)
    }
}

fn with_timeout<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

impl Cri {
    /// A client that connects when it is first used.
    pub fn connect(endpoint: &str) -> Result<Self> {
        let channel = coracle_cri_api::connect_lazy(endpoint)?;
        let limit = coracle_cri_api::MAX_MESSAGE_BYTES;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit),
            images: ImageServiceClient::new(channel).max_decoding_message_size(limit),
        })
    }

    /// The runtime's own conditions.
    pub async fn status(&self) -> Result<StatusResponse, Status> {
        Ok(self.runtime.clone().status(with_timeout(StatusRequest::default(), CALL)).await?.into_inner())
    }

    /// The runtime's name and version.
    pub async fn version(&self) -> Result<VersionResponse, Status> {
        Ok(self.runtime.clone().version(with_timeout(VersionRequest::default(), CALL)).await?.into_inner())
    }

    /// Tells the runtime which addresses its pods get.
    pub async fn set_pod_cidr(&self, pod_cidr: &str) -> Result<(), Status> {
        let network_config = Some(NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        self.runtime.clone().update_runtime_config(with_timeout(request, CALL)).await.map(drop)
    }

    /// Every sandbox of the runtime.
    pub async fn sandboxes(&self) -> Result<Vec<PodSandbox>, Status> {
        let request = with_timeout(ListPodSandboxRequest::default(), CALL);
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    /// One pod, by its uid.
    pub async fn observe(&self, uid: &str) -> Result<Observed, Status> {
        let mut runtime = self.runtime.clone();
        let label_selector = HashMap::from([(POD_UID.to_owned(), uid.to_owned())]);
        let filter = Some(PodSandboxFilter { label_selector, ..Default::default() });
        let request = with_timeout(ListPodSandboxRequest { filter }, CALL);
        let mut sandboxes = runtime.list_pod_sandbox(request).await?.into_inner().items;
        sandboxes.sort_by_key(|one| one.created_at);
        let Some(newest) = sandboxes.pop() else { return Ok(Observed::default()) };
        let request = PodSandboxStatusRequest { pod_sandbox_id: newest.id.clone(), ..Default::default() };
        let sandbox = runtime.pod_sandbox_status(with_timeout(request, CALL)).await?.into_inner().status;
        let filter = Some(ContainerFilter { pod_sandbox_id: newest.id, ..Default::default() });
        let request = with_timeout(ListContainersRequest { filter }, CALL);
        let mut containers = Vec::new();
        for container in runtime.list_containers(request).await?.into_inner().containers {
            let request = ContainerStatusRequest { container_id: container.id, ..Default::default() };
            match runtime.container_status(with_timeout(request, CALL)).await {
                Ok(answer) => containers.extend(answer.into_inner().status),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        containers.sort_by_key(|one| (one.metadata.as_ref().map(|m| m.attempt), one.created_at));
        let stale = sandboxes.into_iter().map(|one| one.id).collect();
        Ok(Observed { sandbox, stale, containers })
    }

    /// Makes a sandbox; returns its id.
    pub async fn run_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        Ok(self
            .runtime
            .clone()
            .run_pod_sandbox(with_timeout(request, CALL))
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// Stops and removes a sandbox with everything in it.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let mut runtime = self.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        absent_is_fine(runtime.stop_pod_sandbox(with_timeout(request, CALL)).await)?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        absent_is_fine(runtime.remove_pod_sandbox(with_timeout(request, CALL)).await)
    }

    /// Makes and starts a container. The error says which of the two failed.
    pub async fn start(
        &self,
        sandbox_id: &str,
        sandbox_config: PodSandboxConfig,
        config: ContainerConfig,
    ) -> Result<String, StartError> {
        let mut runtime = self.runtime.clone();
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let created =
            runtime.create_container(with_timeout(request, CALL)).await.map_err(StartError::Create)?;
        let id = created.into_inner().container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        if let Err(status) = runtime.start_container(with_timeout(request, CALL)).await {
            // It would be taken for a container that waits to be started.
            let request = RemoveContainerRequest { container_id: id };
            let _ = runtime.remove_container(with_timeout(request, CALL)).await;
            return Err(StartError::Start(status));
        }
        Ok(id)
    }

    /// Stops a container; returns when it has stopped.
    pub async fn stop(&self, id: &str, grace_seconds: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        let limit = CALL + Duration::from_secs(grace_seconds.max(0).unsigned_abs());
        absent_is_fine(self.runtime.clone().stop_container(with_timeout(request, limit)).await)
    }

    /// Removes a stopped container.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        absent_is_fine(self.runtime.clone().remove_container(with_timeout(request, CALL)).await)
    }

    /// The image's id, if it is here.
    pub async fn image(&self, name: &str) -> Result<Option<Image>, Status> {
        let request = ImageStatusRequest { image: Some(image_spec(name)), ..Default::default() };
        Ok(self.images.clone().image_status(with_timeout(request, CALL)).await?.into_inner().image)
    }

    /// Fetches an image; returns its id.
    pub async fn pull(&self, name: &str) -> Result<String, Status> {
        let request = PullImageRequest { image: Some(image_spec(name)), ..Default::default() };
        Ok(self.images.clone().pull_image(with_timeout(request, PULL)).await?.into_inner().image_ref)
    }

    /// What happens to containers, from now on.
    pub async fn events(&self) -> Result<tonic::Streaming<ContainerEventResponse>, Status> {
        Ok(self.runtime.clone().get_container_events(GetEventsRequest::default()).await?.into_inner())
    }
}

/// Why a container did not start.
#[derive(Debug)]
pub enum StartError {
    Create(Status),
    Start(Status),
}

/// A reference as CRI wants it.
pub fn image_spec(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), user_specified_image: name.to_owned(), ..Default::default() }
}

fn absent_is_fine<T>(answer: Result<T, Status>) -> Result<(), Status> {
    match answer {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status),
    }
}
