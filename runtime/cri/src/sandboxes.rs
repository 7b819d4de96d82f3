//! Pod sandboxes: run, stop, remove, show.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::v1;
use coracle_wasm::client::HostClient;
use coracle_wasm::protocol::State as Life;
use tonic::Status;

use crate::isolated::{is_isolated, key};
use crate::record::{ContainerRecord, SandboxRecord, lost, now_ns};
use crate::service::{Service, durable, new_id, refused};
use crate::spec;
use crate::state::Filter;

impl Service {
    /// Makes a sandbox with an address of its own; answers its id.
    pub async fn run_pod_sandbox(
        self: &Arc<Self>,
        config: v1::PodSandboxConfig,
        handler: String,
    ) -> Result<String, Status> {
        spec::check_sandbox(&config, &handler)?;
        let linux = self.linux.wants_namespace(&config, &handler)?;
        let host_network = spec::host_network(&config);
        if host_network && !linux {
            return Err(Status::unimplemented(
                "wasm pods have an address of their own: hostNetwork is for Linux containers",
            ));
        }
        let metadata = config.metadata.clone().unwrap_or_default();
        let reservation = self.state.reserve_sandbox(&metadata, !host_network)?;
        let ip = reservation.address().unwrap_or(crate::linux::NO_ADDRESS);
        let place = if host_network { 0 } else { self.place(&handler).await };
        let record = SandboxRecord {
            host: place,
            id: new_id(),
            config,
            runtime_handler: handler,
            ready: true,
            created_at_ns: now_ns(),
            ip,
            linux,
            host_network,
        };
        let id = record.id.clone();
        if let Err(error) = self.make(&record).await {
            self.unmake(&record).await;
            return Err(error);
        }
        tracing::info!(sandbox = id, pod = record.pod(), %ip, "sandbox runs");
        let pending = self.state.add_sandbox(record);
        reservation.settled();
        durable(pending).await?;
        Ok(id)
    }

    async fn make(self: &Arc<Self>, record: &SandboxRecord) -> Result<(), Status> {
        let host = if key(record).is_some() { self.start_own(record)? } else { self.host.clone() };
        let host = host.client().await?;
        self.connect(record).await?;
        if record.host_network {
            return Ok(());
        }
        let netns = self.netns(record);
        host.create_sandbox(spec::sandbox(&record.id, &record.config, record.ip, netns))
            .await
            .map_err(refused)
    }

    /// Takes back what [`Service::make`] did before it failed.
    async fn unmake(&self, record: &SandboxRecord) {
        self.leave(record).await;
        let undone = self.disconnect(record).await;
        if let Err(error) = undone.and(self.remove_linux_pod(record, &[]).await) {
            tracing::warn!(sandbox = record.id, "taking back a sandbox that failed: {}", error.message());
        }
    }

    /// Stops a sandbox and its containers at once; again, or of one that is not there: fine.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.state.sandbox(id) else { return Ok(()) };
        let _turn = self.turn(&record.id).await;
        self.stop_record(&record.id).await
    }

    async fn stop_record(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.state.sandbox(id).filter(|s| s.ready) else { return Ok(()) };
        if is_isolated(&record) {
            self.stop_isolated(&record).await?;
        } else {
            let host = self.host_of(id)?.client().await?;
            self.stop_containers(&host, id).await?;
            if !record.host_network {
                host.stop_sandbox(id).await.map_err(refused)?;
            }
        }
        self.disconnect(&record).await?;
        match self.state.stop_sandbox(id) {
            Some(pending) => durable(pending).await,
            None => Ok(()),
        }
    }

    async fn stop_containers(&self, host: &HostClient, sandbox: &str) -> Result<(), Status> {
        let filter = Filter { sandbox_id: sandbox, ..Filter::default() };
        let containers = self.state.containers(&filter);
        let stops = containers.iter().map(|c| self.stop_on_host(host, c, Duration::ZERO));
        futures::future::try_join_all(stops).await.map(drop)
    }

    /// Ends the host of one pod: what it does not tell of its containers any more is how one ends that is killed.
    async fn stop_isolated(&self, record: &SandboxRecord) -> Result<(), Status> {
        let host = self.host_of(&record.id)?.client().await;
        let told = match &host {
            Ok(host) => self.stop_containers(host, &record.id).await,
            Err(error) => Err(error.clone()),
        };
        drop(host);
        if let Err(error) = told {
            tracing::warn!(sandbox = record.id, "stopping an isolated pod: {}", error.message());
        }
        self.end_own(record).await;
        let filter = Filter { sandbox_id: &record.id, ..Filter::default() };
        for container in self.state.containers(&filter) {
            let ended = match container.state {
                Life::Running { started_at_ns } => {
                    lost(started_at_ns, 137, "the wasm host process that ran it ended")
                }
                Life::Created | Life::Exited { .. } => continue,
            };
            self.observe(&container.id, ended).await?;
        }
        Ok(())
    }

    /// Removes a sandbox and its containers; of one that is not there: fine.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.state.sandbox(id) else { return Ok(()) };
        let id = record.id.as_str();
        let _turn = self.turn(id).await;
        self.stop_record(id).await?;
        // One with a host of its own went with it.
        if !is_isolated(&record) {
            self.host_of(id)?.client().await?.remove_sandbox(id).await.map_err(refused)?;
        }
        let filter = Filter { sandbox_id: id, ..Filter::default() };
        let containers = self.state.containers(&filter);
        self.remove_linux_pod(&record, &containers).await?;
        for pending in self.state.remove_sandbox(id) {
            durable(pending).await?;
        }
        if record.host != 0 {
            self.leave(&record).await;
        }
        for container in &containers {
            self.samples.forget(&container.id);
            self.announce(container, v1::ContainerEventType::ContainerDeletedEvent);
        }
        Ok(())
    }

    /// A sandbox and its containers.
    pub fn pod_sandbox_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<v1::PodSandboxStatusResponse, Status> {
        let record = self.sandbox(id)?;
        let filter = Filter { sandbox_id: &record.id, ..Filter::default() };
        Ok(v1::PodSandboxStatusResponse {
            status: Some(record.status()),
            info: if verbose { [("info".to_owned(), json(&record))].into() } else { Default::default() },
            containers_statuses: self.state.containers(&filter).iter().map(ContainerRecord::status).collect(),
            timestamp: now_ns(),
        })
    }

    /// The sandboxes that a filter leaves.
    pub fn list_pod_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let by = Filter { id: &filter.id, labels: Some(&filter.label_selector), ..Filter::default() };
        let summaries = self.state.sandboxes(&by).iter().map(SandboxRecord::summary).collect::<Vec<_>>();
        summaries.into_iter().filter(|s| filter.state.is_none_or(|wanted| wanted.state == s.state)).collect()
    }
}

/// A record as people read it.
pub fn json(record: &impl serde::Serialize) -> String {
    serde_json::to_string(record).unwrap_or_else(|e| format!("{{\"error\":{:?}}}", e.to_string()))
}
