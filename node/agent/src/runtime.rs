//! The runtime as the agent sees it: CRI v1 over one channel that reconnects by itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::v1 as cri;
use coracle_cri_api::v1::image_service_client::ImageServiceClient;
use coracle_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use coracle_cri_api::{EndpointError, MAX_MESSAGE_BYTES, annotation};
use tokio::sync::{OnceCell, Semaphore};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::pods::state::{Container, PodState, Together};
use crate::pods::steps::config::security::ImageUser;

mod answers;

use answers::{absent_is_fine, container, sandbox, unless_absent};

/// Labels by which a runtime's objects are found again; the kubelet sets the same.
pub mod label {
    /// The pod's name.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// The pod's namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// The pod's uid.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// The container's name.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// How long a call that only looks may take.
const LOOK: Duration = Duration::from_secs(10);
/// How long a call that acts may take: a first start compiles a component.
const ACT: Duration = Duration::from_secs(240);
/// The longest that a call may take of which the caller says how long, whatever that is: gRPC has no words for all times.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// A client of the CRI service; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    name: Arc<OnceCell<String>>,
    turns: Arc<Turns>,
}

/// Calls that are under way at a time, together fewer than a connection carries. Others wait here: none of their time
/// passes, and the runtime does not hear of those that are given up.
struct Turns {
    /// To look at a pod.
    looks: Semaphore,
    /// To make and start sandboxes and containers.
    starts: Semaphore,
}

/// An image that the runtime has.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// What to give to CreateContainer.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Whom it runs as, and whether it is a Linux image.
    pub user: ImageUser,
}

impl Image {
    fn new(image: cri::Image) -> Self {
        let platform = image.spec.as_ref().and_then(|s| s.annotations.get(annotation::PLATFORM));
        let user = ImageUser {
            uid: image.uid.map(|v| v.value),
            name: image.username,
            // A runtime that says nothing of it knows Linux images alone.
            linux: platform.is_none_or(|p| p == annotation::LINUX),
        };
        Self { id: image.id, size: image.size, user }
    }
}

fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn duration(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(LONGEST)
}

fn by_uid(uid: &str) -> HashMap<String, String> {
    HashMap::from([(label::POD_UID.to_owned(), uid.to_owned())])
}

impl Runtime {
    /// A client of `unix:///path`; connects on first use.
    pub fn new(endpoint: &str) -> Result<Self, EndpointError> {
        let channel = coracle_cri_api::connect_lazy(endpoint)?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES),
            name: Arc::default(),
            turns: Arc::new(Turns { looks: Semaphore::new(48), starts: Semaphore::new(128) }),
        })
    }

    /// What the runtime calls itself; it is asked once.
    pub async fn name(&self) -> Result<&str, Status> {
        let ask = || async { Ok(self.version().await?.runtime_name) };
        self.name.get_or_try_init(ask).await.map(String::as_str)
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<cri::VersionResponse, Status> {
        let request = cri::VersionRequest { version: "v1".into() };
        Ok(self.runtime.clone().version(timed(request, LOOK)).await?.into_inner())
    }

    /// Conditions of the runtime (`RuntimeReady`, `NetworkReady`).
    pub async fn conditions(&self) -> Result<Vec<cri::RuntimeCondition>, Status> {
        let answer = self.runtime.clone().status(timed(cri::StatusRequest { verbose: false }, LOOK)).await?;
        Ok(answer.into_inner().status.map(|s| s.conditions).unwrap_or_default())
    }

    /// Names of the handlers that sandboxes can ask for.
    pub async fn handlers(&self) -> Result<Vec<String>, Status> {
        let answer = self.runtime.clone().status(timed(cri::StatusRequest { verbose: false }, LOOK)).await?;
        Ok(answer.into_inner().runtime_handlers.into_iter().map(|h| h.name).collect())
    }

    /// Whether Linux containers can have the groups that are named and no others.
    pub async fn has_strict_groups(&self) -> Result<bool, Status> {
        let answer = self.runtime.clone().status(timed(cri::StatusRequest { verbose: false }, LOOK)).await?;
        Ok(answer.into_inner().features.is_some_and(|f| f.supplemental_groups_policy))
    }

    /// Tells the runtime the range of pod addresses of this node.
    pub async fn set_pod_cidr(&self, pod_cidr: &str) -> Result<(), Status> {
        let config =
            cri::RuntimeConfig { network_config: Some(cri::NetworkConfig { pod_cidr: pod_cidr.to_owned() }) };
        let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(config) };
        self.runtime.clone().update_runtime_config(timed(request, LOOK)).await?;
        Ok(())
    }

    /// Everything that the runtime has of one pod.
    pub async fn pod_state(&self, uid: &str) -> Result<PodState, Status> {
        let _turn = self.turns.looks.acquire().await;
        let mut client = self.runtime.clone();
        let filter = cri::PodSandboxFilter { label_selector: by_uid(uid), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let sandboxes = client.list_pod_sandbox(timed(request, LOOK)).await?.into_inner().items;
        let mut state = PodState { runtime: self.name().await?.to_owned(), ..Default::default() };
        let mut all_told = true;
        for listed in sandboxes {
            let Some(answer) = self.sandbox(&listed.id).await? else { continue };
            // A runtime that says when it looked has told of the containers too.
            all_told &= answer.timestamp > 0;
            let containers = answer.containers_statuses.into_iter();
            state.containers.extend(containers.map(|status| container(&listed.id, status)));
            state.sandboxes.push(sandbox(listed, answer.status));
        }
        if !all_told {
            state.containers.clear();
            for listed in self.containers(by_uid(uid)).await? {
                state.containers.extend(self.container(&listed).await?);
            }
        }
        state.sort();
        Ok(state)
    }

    /// One sandbox, or `None` when it is gone.
    async fn sandbox(&self, id: &str) -> Result<Option<cri::PodSandboxStatusResponse>, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        unless_absent(self.runtime.clone().pod_sandbox_status(timed(request, LOOK)).await)
    }

    /// Containers that carry all these labels.
    pub async fn containers(&self, labels: HashMap<String, String>) -> Result<Vec<cri::Container>, Status> {
        let filter = cri::ContainerFilter { label_selector: labels, ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.clone().list_containers(timed(request, LOOK)).await?.into_inner().containers)
    }

    /// Every sandbox of this runtime.
    pub async fn sandboxes(&self) -> Result<Vec<cri::PodSandbox>, Status> {
        let request = cri::ListPodSandboxRequest { filter: None };
        Ok(self.runtime.clone().list_pod_sandbox(timed(request, LOOK)).await?.into_inner().items)
    }

    /// One container, or `None` when it is gone.
    async fn container(&self, listed: &cri::Container) -> Result<Option<Container>, Status> {
        let request = cri::ContainerStatusRequest { container_id: listed.id.clone(), verbose: false };
        let answer = unless_absent(self.runtime.clone().container_status(timed(request, LOOK)).await)?;
        let status = answer.and_then(|answer| answer.status);
        Ok(status.map(|status| container(&listed.pod_sandbox_id, status)))
    }

    /// Makes a sandbox and returns its id.
    pub async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let _turn = self.turns.starts.acquire().await;
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        Ok(self.runtime.clone().run_pod_sandbox(timed(request, ACT)).await?.into_inner().pod_sandbox_id)
    }

    /// Ends a sandbox; one that is gone is fine.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        absent_is_fine(self.runtime.clone().stop_pod_sandbox(timed(request, ACT)).await)
    }

    /// Forgets a sandbox and its containers; one that is gone is fine.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        absent_is_fine(self.runtime.clone().remove_pod_sandbox(timed(request, ACT)).await)
    }

    /// Makes a container and returns its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let _turn = self.turns.starts.acquire().await;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(self.runtime.clone().create_container(timed(request, ACT)).await?.into_inner().container_id)
    }

    /// Starts a container; a handler listens when this returns.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let _turn = self.turns.starts.acquire().await;
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(timed(request, ACT)).await?;
        Ok(())
    }

    /// Stops a container within `grace` seconds; one that is gone is fine.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        let limit = duration(grace) + Duration::from_secs(60);
        absent_is_fine(self.runtime.clone().stop_container(timed(request, limit)).await)
    }

    /// Forgets a container and its log; one that is gone is fine.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        absent_is_fine(self.runtime.clone().remove_container(timed(request, ACT)).await)
    }

    /// Gives a running container other limits.
    pub async fn update_resources(
        &self,
        id: &str,
        linux: cri::LinuxContainerResources,
    ) -> Result<(), Status> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        self.runtime.clone().update_container_resources(timed(request, LOOK)).await?;
        Ok(())
    }

    /// Gives a sandbox other resources, and its overhead. A runtime that does not know how is fine: its sandboxes have none.
    pub async fn update_sandbox(&self, id: &str, [resources, overhead]: Together) -> Result<(), Status> {
        let request =
            cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: id.to_owned(), overhead, resources };
        match self.runtime.clone().update_pod_sandbox_resources(timed(request, LOOK)).await {
            Err(status) if status.code() != tonic::Code::Unimplemented => Err(status),
            _ => Ok(()),
        }
    }

    /// After its log was renamed: the container goes on in a new file of the old name.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime.clone().reopen_container_log(timed(request, LOOK)).await?;
        Ok(())
    }

    /// Writes a checkpoint of a running container to a file, within so many seconds.
    pub async fn checkpoint(&self, id: &str, location: &str, seconds: i64) -> Result<(), Status> {
        let (container_id, location) = (id.to_owned(), location.to_owned());
        let request = cri::CheckpointContainerRequest { container_id, location, timeout: seconds };
        let limit = duration(seconds) + Duration::from_secs(5);
        self.runtime.clone().checkpoint_container(timed(request, limit)).await?;
        Ok(())
    }

    /// The image of this name, if the runtime has it for this handler.
    pub async fn image(&self, name: &str, handler: &str) -> Result<Option<Image>, Status> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(name, handler)), verbose: false };
        let answer = self.images.clone().image_status(timed(request, LOOK)).await;
        match answer {
            Ok(answer) => Ok(answer.into_inner().image.map(Image::new)),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// How far the pull of an image is, `(received, total)` in bytes; `None` from a runtime that does not tell.
    pub async fn pull_progress(&self, name: &str, handler: &str) -> Option<(u64, u64)> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(name, handler)), verbose: true };
        let info = self.images.clone().image_status(timed(request, LOOK)).await.ok()?.into_inner().info;
        let progress: serde_json::Value = serde_json::from_str(info.get(annotation::PULL_PROGRESS)?).ok()?;
        Some((progress["received"].as_u64()?, progress["total"].as_u64()?))
    }

    /// Pulls an image for a handler and returns what CreateContainer wants.
    pub async fn pull(
        &self,
        name: &str,
        handler: &str,
        auth: Option<cri::AuthConfig>,
        sandbox: cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::PullImageRequest {
            image: Some(image_spec(name, handler)),
            auth,
            sandbox_config: Some(sandbox),
        };
        // Pulls take as long as they take; deleting the pod interrupts them.
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// Container events as they happen; a runtime without them answers `Unimplemented`.
    pub async fn events(&self) -> Result<tonic::Streaming<cri::ContainerEventResponse>, Status> {
        Ok(self.runtime.clone().get_container_events(cri::GetEventsRequest::default()).await?.into_inner())
    }

    /// Where the streams of a new process in a container are.
    pub async fn exec(&self, request: cri::ExecRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().exec(timed(request, LOOK)).await?.into_inner().url)
    }

    /// Where the streams of a container are.
    pub async fn attach(&self, request: cri::AttachRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().attach(timed(request, LOOK)).await?.into_inner().url)
    }

    /// Where connections to the ports of a pod are made.
    pub async fn port_forward(&self, request: cri::PortForwardRequest) -> Result<String, Status> {
        Ok(self.runtime.clone().port_forward(timed(request, LOOK)).await?.into_inner().url)
    }

    /// Runs a command in a container, for so many seconds at most.
    pub async fn exec_sync(
        &self,
        container: &str,
        cmd: Vec<String>,
        seconds: i64,
    ) -> Result<cri::ExecSyncResponse, Status> {
        let request = cri::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: seconds };
        let limit = duration(seconds) + Duration::from_secs(5);
        Ok(self.runtime.clone().exec_sync(timed(request, limit)).await?.into_inner())
    }

    /// Images that the runtime has.
    pub async fn list_images(&self) -> Result<Vec<cri::Image>, Status> {
        let request = cri::ListImagesRequest { filter: None };
        Ok(self.images.clone().list_images(timed(request, LOOK)).await?.into_inner().images)
    }

    /// Removes an image; one that is gone is fine.
    pub async fn remove_image(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveImageRequest { image: Some(image_spec(id, "")) };
        absent_is_fine(self.images.clone().remove_image(timed(request, ACT)).await)
    }

    /// Where images lie, and the bytes that they take.
    pub async fn image_filesystem(&self) -> Result<Option<(String, u64)>, Status> {
        let answer = self.images.clone().image_fs_info(timed(cri::ImageFsInfoRequest {}, LOOK)).await?;
        let first = answer.into_inner().image_filesystems.into_iter().next();
        Ok(first.and_then(|one| Some((one.fs_id?.mountpoint, one.used_bytes.map_or(0, |v| v.value)))))
    }

    /// Bytes that the containers of a pod have written to their own files, by their names.
    pub async fn writable_layers(&self, uid: &str) -> Result<BTreeMap<String, u64>, Status> {
        let filter = cri::ContainerStatsFilter { label_selector: by_uid(uid), ..Default::default() };
        let request = cri::ListContainerStatsRequest { filter: Some(filter) };
        let stats = self.runtime.clone().list_container_stats(timed(request, LOOK)).await?.into_inner().stats;
        let layer = |stat: cri::ContainerStats| {
            let name = stat.attributes?.labels.get(label::CONTAINER_NAME)?.clone();
            Some((name, stat.writable_layer?.used_bytes?.value))
        };
        Ok(stats.into_iter().filter_map(layer).collect())
    }

    /// Processes of each pod, by its uid, where the runtime can count them.
    pub async fn processes(&self) -> Result<HashMap<String, u64>, Status> {
        let request = cri::ListPodSandboxStatsRequest { filter: None };
        let stats =
            self.runtime.clone().list_pod_sandbox_stats(timed(request, LOOK)).await?.into_inner().stats;
        let mut all = HashMap::new();
        let count = |stat: cri::PodSandboxStats| {
            let uid = stat.attributes?.labels.remove(label::POD_UID)?;
            Some((uid, stat.linux?.process?.process_count?.value))
        };
        for (uid, processes) in stats.into_iter().filter_map(count) {
            let sum: &mut u64 = all.entry(uid).or_default();
            *sum = sum.saturating_add(processes);
        }
        Ok(all)
    }

    /// CPU and memory of every container.
    pub async fn stats(&self) -> Result<Vec<cri::ContainerStats>, Status> {
        let request = cri::ListContainerStatsRequest { filter: None };
        Ok(self.runtime.clone().list_container_stats(timed(request, LOOK)).await?.into_inner().stats)
    }

    /// What the runtime counts of containers, and what that is.
    pub async fn metrics(&self) -> Result<(Vec<cri::MetricDescriptor>, Vec<cri::PodSandboxMetrics>), Status> {
        let (mut one, mut two) = (self.runtime.clone(), self.runtime.clone());
        let descriptors = one.list_metric_descriptors(timed(cri::ListMetricDescriptorsRequest {}, LOOK));
        let metrics = two.list_pod_sandbox_metrics(timed(cri::ListPodSandboxMetricsRequest {}, LOOK));
        let (descriptors, metrics) = tokio::try_join!(descriptors, metrics)?;
        Ok((descriptors.into_inner().descriptors, metrics.into_inner().pod_metrics))
    }

    /// The networks of pods, by their uids; a runtime that does not tell has none.
    pub async fn networks(&self) -> Result<Vec<(String, cri::NetworkUsage)>, Status> {
        let request = cri::ListPodSandboxStatsRequest { filter: None };
        let stats = match self.runtime.clone().list_pod_sandbox_stats(timed(request, LOOK)).await {
            Ok(answer) => answer.into_inner().stats,
            Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(Vec::new()),
            Err(status) => return Err(status),
        };
        let network = |stat: cri::PodSandboxStats| {
            let uid = stat.attributes?.labels.get(label::POD_UID)?.clone();
            Some((uid, stat.linux?.network?))
        };
        Ok(stats.into_iter().filter_map(network).collect())
    }
}

/// An image by its name, as a handler wants it; empty: as the runtime's default does.
fn image_spec(name: &str, handler: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        runtime_handler: handler.to_owned(),
        ..Default::default()
    }
}
