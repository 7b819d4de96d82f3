//! Containers: create, start, stop, remove, show.

use std::time::Duration;

use coracle_cri_api::{annotation, signal, v1};
use coracle_images::{ImageRecord, Platform};
use coracle_wasm::client::Error as HostFailure;
use coracle_wasm::protocol::{Kind, State as Life};
use tonic::Status;

use crate::record::{ContainerRecord, SandboxRecord, now_ns};
use crate::sandboxes::json;
use crate::service::{Service, durable, new_id, refused};
use crate::state::Filter;
use crate::{images, spec};

/// The exit code of a container that could not be started.
const START_FAILED: i32 = 128;
/// The longest time that a checkpoint may take.
const MAX_CHECKPOINT: Duration = Duration::from_secs(3600);
/// The longest grace, in seconds.
const MAX_GRACE: i64 = 7 * 24 * 3600;

impl Service {
    /// Makes a container in a sandbox; its image has to be here. Answers its id.
    pub async fn create_container(&self, request: v1::CreateContainerRequest) -> Result<String, Status> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.ready {
            return Err(Status::failed_precondition(format!("sandbox {} is not ready", sandbox.id)));
        }
        let mut config =
            request.config.ok_or_else(|| Status::invalid_argument("the container has no config"))?;
        let v1::ImageSpec { image: asked, user_specified_image, .. } =
            config.image.clone().unwrap_or_default();
        let image = self.image_for(&asked, &sandbox.runtime_handler)?;
        let id = new_id();
        if image.platform == Platform::Linux {
            return self.create_linux_container(id, sandbox, config, image).await;
        }
        if sandbox.host_network {
            return Err(Status::unimplemented(
                "wasm pods have an address of their own: hostNetwork is for Linux containers",
            ));
        }
        // Checked before anything is compiled or made.
        let nowhere = std::path::Path::new("");
        spec::container(&id, &sandbox.id, nowhere, &config, &sandbox.config)?;
        let artifact = self.code(&asked, &image).await?;
        images::startable(&asked, &artifact, Some(&sandbox.config))?;
        let named = if user_specified_image.is_empty() { &asked } else { &user_specified_image };
        let code = match spec::program(&config, named, artifact.kind, &image.commands)? {
            Some((name, layer)) => self.command(name, layer).await?,
            None => {
                if artifact.kind == Kind::HttpHandler {
                    let words = config.annotations.get(annotation::LAST_WORDS);
                    config.mounts.retain(|mount| Some(&mount.container_path) != words);
                }
                artifact.path
            }
        };
        let reservation =
            self.state.reserve_container(&sandbox.id, &config.metadata.clone().unwrap_or_default())?;
        let wanted = spec::container(&id, &sandbox.id, &code, &config, &sandbox.config)?;
        let log_path = wanted.log_path.clone();
        if let Some(dir) = log_path.parent() {
            tokio::fs::create_dir_all(dir).await.map_err(|e| {
                Status::internal(format!("creating the log directory {}: {e}", dir.display()))
            })?;
        }
        self.make_room(&sandbox, &id, config.linux.as_ref().and_then(|l| l.resources.as_ref()));
        let host = self.host_of(&sandbox.id)?.client().await?;
        let made = host.create_container(wanted).await.map_err(refused)?;

        config.envs.clear();
        let stop_signal = config.stop_signal();
        name_image(&mut config, &image);
        let record = ContainerRecord {
            id: id.clone(),
            sandbox_id: sandbox.id.clone(),
            config,
            image_ref: images::reference(&image),
            image_id: image.id,
            log_path,
            created_at_ns: now_ns(),
            state: made.state,
            linux: false,
            stop_signal: signal::name(stop_signal).unwrap_or_default(),
        };
        let Some(pending) = self.state.add_container(record.clone()) else {
            host.remove_container(&id).await.map_err(refused)?;
            return Err(Status::failed_precondition(format!("sandbox {} was stopped meanwhile", sandbox.id)));
        };
        drop(reservation);
        tracing::info!(container = id, name = record.name(), pod = sandbox.pod(), "container created");
        self.announce(&record, v1::ContainerEventType::ContainerCreatedEvent);
        durable(pending).await?;
        Ok(id)
    }

    async fn create_linux_container(
        &self,
        id: String,
        sandbox: SandboxRecord,
        config: v1::ContainerConfig,
        image: ImageRecord,
    ) -> Result<String, Status> {
        let metadata = config.metadata.clone().unwrap_or_default();
        if metadata.name.is_empty() {
            return Err(Status::invalid_argument("the container metadata has no name"));
        }
        let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let target = security.and_then(|s| s.namespace_options.as_ref()).map(|n| n.target_id.as_str());
        if let Some(target) = target.and_then(|id| self.state.container(id)).filter(|target| !target.linux) {
            return Err(Status::invalid_argument(format!(
                "container {}: its target, container {}, is a wasm container, which has no processes to be seen: leave \
                 targetContainerName out (--target of kubectl debug)",
                metadata.name,
                target.name()
            )));
        }
        let log_path = spec::log_path(&sandbox.config, &config)?;
        if let Some(dir) = log_path.parent() {
            tokio::fs::create_dir_all(dir).await.map_err(|e| {
                Status::internal(format!("creating the log directory {}: {e}", dir.display()))
            })?;
        }
        let reservation = self.state.reserve_container(&sandbox.id, &metadata)?;
        let settings = self.configuration(&image)?;
        let of_image = || settings.config().as_ref().and_then(|c| c.stop_signal().clone());
        let stop_signal = signal::name(config.stop_signal()).or_else(of_image).unwrap_or_default();
        let mut kept = config.clone();
        kept.envs.clear();
        name_image(&mut kept, &image);
        let record = ContainerRecord {
            id: id.clone(),
            sandbox_id: sandbox.id.clone(),
            config: kept,
            image_ref: images::reference(&image),
            image_id: image.id.clone(),
            log_path,
            created_at_ns: now_ns(),
            state: Life::Created,
            linux: true,
            stop_signal,
        };
        self.create_linux(&record, &config, &sandbox, &image).await?;
        let Some(pending) = self.state.add_container(record.clone()) else {
            self.linux.engine()?.remove(&id).await.map_err(|e| Status::internal(format!("{e:#}")))?;
            return Err(Status::failed_precondition(format!("sandbox {} was stopped meanwhile", sandbox.id)));
        };
        drop(reservation);
        tracing::info!(container = id, name = record.name(), pod = sandbox.pod(), "Linux container created");
        self.announce(&record, v1::ContainerEventType::ContainerCreatedEvent);
        durable(pending).await?;
        Ok(id)
    }

    async fn start_linux(&self, record: &ContainerRecord) -> Result<(), Status> {
        match self.linux.engine()?.start(&record.id).await {
            Ok(state) => self.observe(&record.id, crate::linux::life(state)).await,
            Err(error) => {
                let words = format!("{error:#}");
                let ended = Life::Exited {
                    started_at_ns: 0,
                    finished_at_ns: now_ns(),
                    exit_code: START_FAILED,
                    reason: "StartError".into(),
                    message: words.clone(),
                };
                self.observe(&record.id, ended).await?;
                let _ = self.linux.engine()?.stop(&record.id, 0, Duration::ZERO).await;
                Err(Status::internal(format!("container {}: {words}", record.name())))
            }
        }
    }

    /// Starts a created container. One that fails to start has exited, with the reason.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let record = self.container(id)?;
        if record.state != Life::Created {
            let state = record.cri_state().as_str_name();
            return Err(Status::failed_precondition(format!(
                "container {} is {state}, not created",
                record.id
            )));
        }
        if record.linux {
            return self.start_linux(&record).await;
        }
        let host = self.host_of(&record.sandbox_id)?.client().await?;
        match host.start_container(&record.id).await {
            // How it ended, if it has already, follows as an event with both times; it may also be in this answer.
            Ok(status) => self.observe(&record.id, status.state).await,
            Err(HostFailure::Host(error)) => {
                let ended = Life::Exited {
                    started_at_ns: 0,
                    finished_at_ns: now_ns(),
                    exit_code: START_FAILED,
                    reason: "StartError".into(),
                    message: error.message.clone(),
                };
                self.observe(&record.id, ended).await?;
                // Whatever it holds there is given back; its record stays until it is removed.
                let _ = host.remove_container(&record.id).await;
                Err(refused(HostFailure::Host(error)))
            }
            Err(error) => Err(refused(error)),
        }
    }

    /// Stops a container within its grace, in seconds; again, or of one that is not there: fine.
    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let Some(record) = self.state.container(id) else { return Ok(()) };
        if !matches!(record.state, Life::Running { .. }) {
            return Ok(());
        }
        let grace = Duration::from_secs(timeout.clamp(0, MAX_GRACE).unsigned_abs());
        if record.linux {
            return self.stop_linux(&record, grace).await;
        }
        let host = self.host_of(&record.sandbox_id)?.client().await?;
        self.stop_on_host(&host, &record, grace).await
    }

    /// Removes a container, killing it if it runs; of one that is not there: fine. Its log stays.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.state.container(id) else { return Ok(()) };
        if record.linux {
            let engine = self.linux.engine()?;
            self.stop_linux(&record, Duration::ZERO).await?;
            engine.remove(&record.id).await.map_err(|e| Status::internal(format!("{e:#}")))?;
        } else if let Ok(host) = self.host_of(&record.sandbox_id) {
            let host = host.client().await?;
            self.stop_on_host(&host, &record, Duration::ZERO).await?;
            host.remove_container(&record.id).await.map_err(refused)?;
        }
        self.samples.forget(&record.id);
        if let Some(pending) = self.state.remove_container(&record.id) {
            durable(pending).await?;
            self.announce(&record, v1::ContainerEventType::ContainerDeletedEvent);
        }
        Ok(())
    }

    /// The containers that a filter leaves.
    pub fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let filter = filter.unwrap_or_default();
        let by = Filter {
            id: &filter.id,
            sandbox_id: &filter.pod_sandbox_id,
            labels: Some(&filter.label_selector),
        };
        let summaries = self.state.containers(&by).iter().map(ContainerRecord::summary).collect::<Vec<_>>();
        summaries.into_iter().filter(|c| filter.state.is_none_or(|wanted| wanted.state == c.state)).collect()
    }

    /// One container.
    pub fn container_status(&self, id: &str, verbose: bool) -> Result<v1::ContainerStatusResponse, Status> {
        let record = self.container(id)?;
        Ok(v1::ContainerStatusResponse {
            status: Some(record.status()),
            info: if verbose { [("info".to_owned(), json(&record))].into() } else { Default::default() },
        })
    }

    /// Goes on in a new log file of the same name.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), Status> {
        let record = self.container(id)?;
        if !matches!(record.state, Life::Running { .. }) {
            return Err(Status::failed_precondition(format!("container {} does not run", record.id)));
        }
        if record.linux {
            let reopened = self.linux.engine()?.reopen_log(&record.id).await;
            return reopened.map_err(|e| Status::internal(format!("{e:#}")));
        }
        self.host_of(&record.sandbox_id)?.client().await?.reopen_log(&record.id).await.map_err(refused)
    }

    /// Changes limits, of a container that is created or runs; what is not named stays as it is.
    pub async fn update_container_resources(
        &self,
        request: &v1::UpdateContainerResourcesRequest,
    ) -> Result<(), Status> {
        let record = self.container(&request.container_id)?;
        if matches!(record.state, Life::Exited { .. }) {
            return Err(Status::failed_precondition(format!("container {} has ended", record.id)));
        }
        let asked = request.linux.clone().unwrap_or_default();
        let now = record.config.linux.clone().and_then(|l| l.resources).unwrap_or_default();
        let resources = spec::merged(now.clone(), &asked);
        if record.linux {
            let updated = self.linux.engine()?.update(&record.id, &asked).await;
            updated.map_err(|e| Status::internal(format!("container {}: {e:#}", record.id)))?;
        } else {
            let (memory, cpu) = (spec::memory_limit(&resources), spec::cpu_millis(&resources));
            let sandbox = self.sandbox(&record.sandbox_id)?;
            // The host has room for the larger limits while they change, and may be refused the smaller ones.
            self.make_room(&sandbox, &record.id, Some(&spec::larger(&now, &resources)));
            let host = self.host_of(&record.sandbox_id)?.client().await?;
            let changed = host.update_container(&record.id, memory, cpu).await;
            self.make_room(&sandbox, &record.id, Some(if changed.is_ok() { &resources } else { &now }));
            changed.map_err(refused)?;
        }
        match self.state.set_resources(&record.id, resources) {
            Some(pending) => durable(pending).await,
            None => Ok(()),
        }
    }
}

impl Service {
    /// Writes a checkpoint of a running container, which runs on.
    pub async fn checkpoint_container(&self, asked: v1::CheckpointContainerRequest) -> Result<(), Status> {
        let record = self.container(&asked.container_id)?;
        if !matches!(record.state, Life::Running { .. }) {
            let state = record.cri_state().as_str_name();
            return Err(Status::failed_precondition(format!(
                "container {} is {state}, not running",
                record.id
            )));
        }
        if !record.linux {
            return Err(Status::unimplemented(format!(
                "container {} is a wasm container: its memory is its host's, which nothing can write to a file and \
                 start from again; only Linux containers are checkpointed",
                record.name()
            )));
        }
        let limit = match u64::try_from(asked.timeout) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(MAX_CHECKPOINT),
            _ => MAX_CHECKPOINT,
        };
        let location = std::path::Path::new(&asked.location);
        let written = self.linux.engine()?.checkpoint(&record.id, location);
        match tokio::time::timeout(limit, written).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Status::internal(format!("container {}: {error:#}", record.name()))),
            Err(_) => {
                Err(Status::deadline_exceeded(format!("no checkpoint of {} in {limit:?}", record.name())))
            }
        }
    }
}

/// A container that was asked for by image id is shown with the image's name.
fn name_image(config: &mut v1::ContainerConfig, image: &ImageRecord) {
    let Some(asked) = config.image.as_mut() else { return };
    if !asked.user_specified_image.is_empty() {
        asked.image.clone_from(&asked.user_specified_image);
    } else if asked.image == image.id
        && let Some(tag) = image.tags.first()
    {
        asked.image.clone_from(tag);
    }
}
