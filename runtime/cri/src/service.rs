//! What the gRPC services share: records, the host, images, code and events.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri_api::v1;
use coracle_wasm::client::{Error as HostFailure, HostClient};
use coracle_wasm::protocol::{ErrorCode, Event, ServiceTable, State as Life};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tonic::Status;

use crate::compile::Compiler;
use crate::host::{Host, Listener};
use crate::isolated::{Isolated, key};
use crate::reconcile::{Action, plan};
use crate::record::{ContainerRecord, SandboxRecord, lost, now_ns};
use crate::state::{Filter, State};
use crate::{spec, stats};

/// Events that a slow watcher may be behind.
const EVENTS: usize = 4096;
/// How long the host may take to tell how a container ended that it was told to kill.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// The state of the CRI service. Shared by everything that answers calls.
pub struct Service {
    pub state: State,
    /// The host of all pods that have none of their own.
    pub host: Host,
    pub isolated: Isolated,
    pub linux: crate::linux::Linux,
    /// Set once it serves.
    pub streaming: std::sync::OnceLock<coracle_streaming::Server>,
    pub images: coracle_images::Puller,
    pub compiler: Compiler,
    pub events: broadcast::Sender<v1::ContainerEventResponse>,
    pub samples: stats::Samples,
    /// What Linux containers have written.
    pub layers: stats::layers::Layers,
    /// What wasm guests measure of themselves.
    pub guests: crate::metrics::guests::Guests,
    /// The Service table that came last.
    pub table: watch::Sender<Option<Arc<ServiceTable>>>,
    /// Where the pod range that UpdateRuntimeConfig brought is kept.
    pub settings: crate::journal::Journal,
    /// One stop at a time for a sandbox: (id, lock).
    stopping: Mutex<std::collections::HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Service {
    /// A service over these parts.
    pub fn new(
        state: State,
        linux: crate::linux::Linux,
        images: coracle_images::Puller,
        compiler: Compiler,
        settings: crate::journal::Journal,
    ) -> Self {
        Self {
            state,
            host: Host::new(),
            isolated: Isolated::default(),
            linux,
            streaming: std::sync::OnceLock::new(),
            images,
            compiler,
            events: broadcast::Sender::new(EVENTS),
            samples: stats::Samples::default(),
            layers: Default::default(),
            guests: Default::default(),
            table: watch::Sender::new(None),
            settings,
            stopping: Mutex::default(),
        }
    }

    /// The sandbox of this id, or NotFound.
    pub fn sandbox(&self, id: &str) -> Result<SandboxRecord, Status> {
        self.state.sandbox(id).ok_or_else(|| Status::not_found(format!("sandbox {id:?} is not there")))
    }

    /// The container of this id, or NotFound.
    pub fn container(&self, id: &str) -> Result<ContainerRecord, Status> {
        self.state.container(id).ok_or_else(|| Status::not_found(format!("container {id:?} is not there")))
    }

    /// Waits its turn to stop or remove a sandbox.
    pub async fn turn(&self, id: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut stopping = self.stopping.lock();
            stopping.retain(|_, lock| Arc::strong_count(lock) > 1);
            stopping.entry(id.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Moves a container on, tells the watchers, and waits for the disk.
    pub async fn observe(&self, id: &str, life: Life) -> Result<(), Status> {
        let Some((before, record, pending)) = self.state.advance(id, life) else { return Ok(()) };
        let kind = match &record.state {
            Life::Exited { started_at_ns, exit_code, reason, message, .. } => {
                // It ended before the call that started it was answered: watchers still hear both.
                if before == Life::Created && *started_at_ns > 0 {
                    self.announce(&record, v1::ContainerEventType::ContainerStartedEvent);
                }
                tracing::info!(
                    container = id,
                    name = record.name(),
                    exit_code,
                    reason,
                    message,
                    "container exited"
                );
                v1::ContainerEventType::ContainerStoppedEvent
            }
            _ => v1::ContainerEventType::ContainerStartedEvent,
        };
        self.announce(&record, kind);
        durable(pending).await
    }

    /// Tells the watchers of GetContainerEvents.
    pub fn announce(&self, record: &ContainerRecord, kind: v1::ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let filter = Filter { sandbox_id: &record.sandbox_id, ..Filter::default() };
        let event = v1::ContainerEventResponse {
            container_id: record.id.clone(),
            container_event_type: kind.into(),
            created_at: now_ns(),
            pod_sandbox_status: self.state.sandbox(&record.sandbox_id).map(|s| s.status()),
            containers_statuses: self.state.containers(&filter).iter().map(ContainerRecord::status).collect(),
        };
        // Nobody listens any more: fine.
        let _ = self.events.send(event);
    }

    /// Stops a container on the host and learns how it ended.
    pub async fn stop_on_host(
        &self,
        host: &HostClient,
        record: &ContainerRecord,
        grace: Duration,
    ) -> Result<(), Status> {
        if record.linux {
            return self.stop_linux(record, grace).await;
        }
        if !matches!(record.state, Life::Running { .. }) {
            return Ok(());
        }
        let killed = record.stop_signal() == v1::Signal::Sigkill;
        let grace = if killed { Duration::ZERO } else { grace };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let started_at_ns = match record.state {
            Life::Running { started_at_ns } => started_at_ns,
            _ => 0,
        };
        let patience = grace.saturating_add(KILL_GRACE);
        match tokio::time::timeout(patience, host.stop_container(&record.id, grace_ms)).await {
            Err(_) => Err(Status::deadline_exceeded(format!("container {} does not stop", record.id))),
            Ok(Ok(status)) => match status.state {
                ended @ Life::Exited { .. } => self.observe(&record.id, ended).await,
                other => {
                    Err(Status::internal(format!("container {} is {other:?} after being stopped", record.id)))
                }
            },
            Ok(Err(HostFailure::Host(error))) if error.code == ErrorCode::NotFound => {
                self.observe(&record.id, lost(started_at_ns, 137, "the wasm host does not know it any more"))
                    .await
            }
            Ok(Err(error)) => Err(refused(error)),
        }
    }

    /// The code of images that are here stays; other code goes.
    pub fn sweep_code(&self) {
        let code = |r: coracle_images::ImageRecord| [r.layer].into_iter().chain(r.commands.into_values());
        let keep = self.images.store().list().into_iter().flat_map(code).filter(|l| !l.is_empty()).collect();
        self.compiler.retain(&keep);
        self.sweep_layers();
    }

    async fn carry_out(&self, host: &HostClient, action: Action) -> anyhow::Result<()> {
        tracing::info!(?action, "reconciling with the wasm host");
        match action {
            Action::CreateSandbox(id) => {
                let Some(record) = self.state.sandbox(&id) else { return Ok(()) };
                if let Err(error) = host
                    .create_sandbox(spec::sandbox(&id, &record.config, record.ip, self.netns(&record)))
                    .await
                {
                    tracing::error!(sandbox = id, pod = record.pod(), %error, "a sandbox cannot be made again");
                    if let Some(pending) = self.state.stop_sandbox(&id) {
                        pending.durable().await?;
                    }
                }
            }
            Action::StopSandbox(id) => host.stop_sandbox(&id).await?,
            Action::RemoveSandbox(id) => host.remove_sandbox(&id).await?,
            Action::RemoveContainer(id) => host.remove_container(&id).await?,
            Action::Observe(id, life) => self.observe(&id, life).await.map_err(|s| anyhow::anyhow!("{s}"))?,
        }
        Ok(())
    }

    /// Brings records and a host together: the one of this key (see [`key`]), or the first shared one.
    async fn reconcile(&self, host: &HostClient, own: Option<&str>) -> anyhow::Result<()> {
        let listing = host.list().await?;
        let (mut sandboxes, mut containers) = self.state.snapshot();
        // The host knows nothing of what is not its own.
        sandboxes.retain(|s| match own {
            Some(own) => key(s).as_deref() == Some(own),
            None => !s.host_network && key(s).is_none(),
        });
        let here: HashSet<_> = sandboxes.iter().map(|s| s.id.as_str()).collect();
        containers.retain(|c| !c.linux && here.contains(c.sandbox_id.as_str()));
        for action in plan(&sandboxes, &containers, &listing) {
            // One object that resists does not keep all others from being served.
            if let Err(error) = self.carry_out(host, action).await {
                tracing::error!("reconciling with the wasm host: {error:#}");
            }
        }
        Ok(())
    }

    /// What is done first with a host that answers.
    pub async fn bring_together(&self, client: &HostClient, own: Option<&str>) -> anyhow::Result<()> {
        self.reconcile(client, own).await?;
        let table = self.table.borrow().clone();
        if let Some(table) = table
            && let Err(error) = client.set_services((*table).clone()).await
        {
            tracing::error!("giving the wasm host the Service table: {error}");
        }
        Ok(())
    }

    /// What is done when a host speaks.
    pub async fn hear(&self, client: &HostClient, event: Event) {
        let result = match event {
            Event::ContainerStopped { id, state, .. } => {
                self.observe(&id, state).await.map_err(|s| anyhow::anyhow!("{s}"))
            }
            Event::Lagged => self.relist(client).await,
        };
        if let Err(error) = result {
            tracing::error!("following the wasm host: {error:#}");
        }
    }

    /// Learns how the containers are doing; changes nothing on the host.
    async fn relist(&self, host: &HostClient) -> anyhow::Result<()> {
        let listing = host.list().await?;
        for status in listing.containers {
            self.observe(&status.spec.id, status.state).await.map_err(|s| anyhow::anyhow!("{s}"))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Listener for Service {
    async fn attached(&self, client: &HostClient) -> anyhow::Result<()> {
        self.bring_together(client, None).await
    }

    async fn event(&self, client: &HostClient, event: Event) {
        self.hear(client, event).await;
    }
}

/// Waits until a change is on disk.
pub async fn durable(pending: crate::journal::Pending) -> Result<(), Status> {
    pending.durable().await.map_err(|e| Status::internal(format!("keeping the record: {e:#}")))
}

/// The host's refusal in the codes of gRPC.
pub fn refused(error: HostFailure) -> Status {
    let HostFailure::Host(error) = error else {
        return Status::unavailable(error.to_string());
    };
    let code = match error.code {
        ErrorCode::NotFound => tonic::Code::NotFound,
        ErrorCode::AlreadyExists => tonic::Code::AlreadyExists,
        ErrorCode::Invalid => tonic::Code::InvalidArgument,
        ErrorCode::PortInUse | ErrorCode::FailedPrecondition => tonic::Code::FailedPrecondition,
        ErrorCode::ResourceExhausted => tonic::Code::ResourceExhausted,
        ErrorCode::Internal => tonic::Code::Internal,
    };
    Status::new(code, error.message)
}

/// 64 random hex digits.
pub fn new_id() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}
