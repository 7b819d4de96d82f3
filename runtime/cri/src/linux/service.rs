//! What the service does for pods with an address of the node, and for Linux containers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::{signal, v1};
use coracle_images::ImageRecord;
use coracle_oci::engine::{Container, Engine, Pod};
use coracle_oci::network;
use coracle_wasm::protocol::State as Life;
use oci_spec::image::ImageConfiguration;
use tonic::Status;

use super::{Ends, hostname, internal, life};
use crate::record::{ContainerRecord, SandboxRecord, lost};
use crate::service::{Service, durable};

impl Service {
    /// Gives a sandbox its network: namespaces and a cable, or a local address.
    pub async fn connect(&self, record: &SandboxRecord) -> Result<(), Status> {
        let Some(node) = self.linux.node() else { return Ok(()) };
        if !record.linux {
            let bridge = node.bridge(self.state.range()).await?;
            return network::add_local(&bridge, record.ip).await.map_err(internal);
        }
        let engine = self.linux.engine()?;
        let address = (!record.host_network).then_some(record.ip);
        let hostname = hostname(&record.config);
        let pod = Pod { id: &record.id, config: &record.config, hostname: &hostname, address };
        engine.make_pod(pod).await.map_err(internal)?;
        if let Some(address) = address {
            let bridge = node.bridge(self.state.range()).await?;
            let netns = engine.netns(&record.id);
            network::unplug(&record.id).await.map_err(internal)?;
            network::plug(&bridge, &record.id, &netns, address).await.map_err(internal)?;
        }
        Ok(())
    }

    /// Takes a sandbox's network away; its namespaces stay until it is removed. Again is fine.
    pub async fn disconnect(&self, record: &SandboxRecord) -> Result<(), Status> {
        let Some(node) = self.linux.node() else { return Ok(()) };
        if record.linux {
            self.linux.engine()?.end_processes(&record.id).await.map_err(internal)?;
            return network::unplug(&record.id).await.map_err(internal);
        }
        match node.bridge(self.state.range()).await {
            Ok(bridge) => network::remove_local(&bridge, record.ip).await.map_err(internal),
            // Without a range there was never an address.
            Err(_) => Ok(()),
        }
    }

    /// The file of a sandbox's network namespace, if it has one.
    pub fn netns(&self, record: &SandboxRecord) -> Option<PathBuf> {
        let engine = self.linux.engine().ok().filter(|_| record.linux && !record.host_network)?;
        Some(engine.netns(&record.id))
    }

    /// Makes a Linux container.
    pub async fn create_linux(
        &self,
        record: &ContainerRecord,
        config: &v1::ContainerConfig,
        sandbox: &SandboxRecord,
        image: &ImageRecord,
    ) -> Result<(), Status> {
        let engine = self.linux.engine()?;
        if !sandbox.linux {
            return Err(Status::failed_precondition(format!(
                "sandbox {} was made for wasm containers only, and the image of container {} is a Linux image",
                sandbox.id,
                record.name()
            )));
        }
        let settings = self.configuration(image)?;
        let (store, of) = (self.images.store().clone(), image.clone());
        let layers = tokio::task::spawn_blocking(move || store.unpacked(&of)).await;
        let layers = layers.map_err(|e| Status::internal(e.to_string()))?.map_err(crate::images::status)?;
        let container = Container {
            id: &record.id,
            sandbox_id: &sandbox.id,
            config,
            sandbox: &sandbox.config,
            image: &settings,
            layers,
            log_path: Some(record.log_path.clone()),
        };
        engine.create(container).await.map_err(|e| {
            let words = format!("container {}: {e:#}", record.name());
            match e.downcast_ref::<coracle_oci::bundle::Error>() {
                Some(_) => Status::invalid_argument(words),
                None => Status::internal(words),
            }
        })
    }

    /// Changes what the containers of a pod may use together; what is not named stays as it is.
    pub async fn update_pod_sandbox_resources(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), Status> {
        let record = self.sandbox(&request.pod_sandbox_id)?;
        if !record.linux {
            return Err(Status::unimplemented("a wasm sandbox has no resources of its own to change"));
        }
        if !record.ready {
            return Err(Status::failed_precondition(format!("sandbox {} is not ready", record.id)));
        }
        let mut config = record.config.clone();
        let linux = config.linux.get_or_insert_default();
        linux.resources = request.resources.clone().or(linux.resources.take());
        linux.overhead = request.overhead.clone().or(linux.overhead.take());
        let engine = self.linux.engine()?;
        engine.limit_pod(&record.id, &config).await.map_err(internal)?;
        match self.state.set_pod_resources(&record.id, request.resources, request.overhead) {
            Some(pending) => durable(pending).await,
            None => {
                // It went meanwhile: nobody else takes away the group that was just limited.
                engine.remove_pod(&record.id).await.map_err(internal)?;
                Err(Status::not_found(format!("sandbox {} is gone", record.id)))
            }
        }
    }

    /// What a Linux image says of itself.
    pub fn configuration(&self, image: &ImageRecord) -> Result<ImageConfiguration, Status> {
        let bytes = self.images.store().read(&image.config).map_err(crate::images::status)?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Status::invalid_argument(format!("the configuration of image {} cannot be read: {e}", image.id))
        })
    }

    /// Stops a Linux container and learns how it ended.
    pub async fn stop_linux(&self, record: &ContainerRecord, grace: Duration) -> Result<(), Status> {
        if matches!(record.state, Life::Exited { .. }) {
            return Ok(());
        }
        let ended = self.linux.engine()?.stop(&record.id, signal::number(record.stop_signal()), grace).await;
        self.observe(&record.id, life(ended.map_err(internal)?)).await
    }

    /// Brings records and what runs together after a start: adopts containers, makes networks that are gone.
    pub async fn reconcile_linux(&self) {
        let Some(node) = self.linux.node() else { return };
        let (sandboxes, containers) = self.state.snapshot();
        if let Some(range) = self.state.range()
            && let Err(error) = node.bridge(Some(range)).await
        {
            tracing::error!("making the pods' bridge: {}", error.message());
        }
        let engine = self.linux.engine().ok();
        for record in &containers {
            if !record.linux {
                continue;
            }
            let found = match engine {
                Some(engine) => engine.adopt(&record.id).await,
                None => None,
            };
            let started_at_ns = match record.state {
                Life::Running { started_at_ns } => started_at_ns,
                _ => 0,
            };
            let now = found.map_or_else(|| lost(started_at_ns, 255, "its files are gone"), life);
            if let Err(error) = self.observe(&record.id, now).await {
                tracing::error!(container = record.id, "adopting a container: {}", error.message());
            }
        }
        for record in sandboxes.iter().filter(|s| s.ready) {
            let there = engine.is_some_and(|e| e.has_pod(&record.id));
            if (!record.linux || !there)
                && let Err(error) = self.connect(record).await
            {
                tracing::error!(sandbox = record.id, "making a pod's network again: {}", error.message());
            }
        }
        let Some(engine) = engine else { return };
        for id in engine.containers().into_iter().filter(|id| !containers.iter().any(|c| c.id == *id)) {
            tracing::info!(container = id, "removing a container that nobody remembers");
            if let Err(error) = engine.remove(&id).await {
                tracing::error!(container = id, "removing it: {error:#}");
            }
        }
        for id in engine.pods().into_iter().filter(|id| !sandboxes.iter().any(|s| s.id == *id)) {
            let _ = network::unplug(&id).await;
            if let Err(error) = engine.remove_pod(&id).await {
                tracing::error!(sandbox = id, "removing a pod that nobody remembers: {error:#}");
            }
        }
    }

    /// Learns how Linux containers end, for as long as the service lives.
    pub async fn follow_linux(self: Arc<Self>, mut ends: Ends) {
        while let Some((id, state)) = ends.recv().await {
            if let Err(error) = self.observe(&id, life(state)).await {
                tracing::error!(container = id, "recording the end of a container: {}", error.message());
            }
        }
    }

    /// Removes what is left of a sandbox on the host; again is fine.
    pub async fn remove_linux_pod(
        &self,
        record: &SandboxRecord,
        containers: &[ContainerRecord],
    ) -> Result<(), Status> {
        if !record.linux {
            return Ok(());
        }
        let engine = self.linux.engine()?;
        for container in containers.iter().filter(|c| c.linux) {
            engine.remove(&container.id).await.map_err(internal)?;
        }
        engine.remove_pod(&record.id).await.map_err(internal)
    }

    /// Folders of layers that are still needed stay; others go.
    pub fn sweep_layers(&self) {
        let in_use = self.linux.engine().map(Engine::layers_in_use).unwrap_or_default();
        if let Err(error) = self.images.store().sweep_unpacked(&in_use) {
            tracing::warn!("removing layers that nobody uses: {error}");
        }
    }
}
