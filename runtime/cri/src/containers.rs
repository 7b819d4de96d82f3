//! Containers: create, start, stop, remove, show.

use std::time::Duration;

use coracle_cri_api::v1;
use coracle_images::ImageRecord;
use coracle_wasm::client::Error as HostFailure;
use coracle_wasm::protocol::State as Life;
use tonic::Status;

use crate::record::{ContainerRecord, now_ns};
use crate::sandboxes::json;
use crate::service::{Service, durable, new_id, refused};
use crate::state::Filter;
use crate::{images, spec};

/// The exit code of a container that could not be started.
const START_FAILED: i32 = 128;
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
        let asked = config.image.clone().unwrap_or_default().image;
        let image = self.image(&asked)?;
        let id = new_id();
        // Checked before anything is compiled or made.
        let nowhere = std::path::Path::new("");
        spec::container(&id, &sandbox.id, nowhere, &config, &sandbox.config)?;
        let artifact = self.code(&asked, &image).await?;
        let reservation =
            self.state.reserve_container(&sandbox.id, &config.metadata.clone().unwrap_or_default())?;
        let wanted = spec::container(&id, &sandbox.id, &artifact.path, &config, &sandbox.config)?;
        let log_path = wanted.log_path.clone();
        if let Some(dir) = log_path.parent() {
            tokio::fs::create_dir_all(dir).await.map_err(|e| {
                Status::internal(format!("creating the log directory {}: {e}", dir.display()))
            })?;
        }
        let host = self.host.client().await?;
        let made = host.create_container(wanted).await.map_err(refused)?;

        config.envs.clear();
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
        let host = self.host.client().await?;
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
        let host = self.host.client().await?;
        self.stop_on_host(&host, &record, grace).await
    }

    /// Removes a container, killing it if it runs; of one that is not there: fine. Its log stays.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let Some(record) = self.state.container(id) else { return Ok(()) };
        let host = self.host.client().await?;
        self.stop_on_host(&host, &record, Duration::ZERO).await?;
        host.remove_container(&record.id).await.map_err(refused)?;
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
        self.host.client().await?.reopen_log(&record.id).await.map_err(refused)
    }

    /// Limits of a running wasm container are fixed: only what they are already can be asked for.
    pub fn update_container_resources(
        &self,
        request: &v1::UpdateContainerResourcesRequest,
    ) -> Result<(), Status> {
        let record = self.container(&request.container_id)?;
        let now = record.config.linux.and_then(|l| l.resources).unwrap_or_default();
        let asked = request.linux.clone().unwrap_or_default();
        let memory = |r: &v1::LinuxContainerResources| r.memory_limit_in_bytes.max(0);
        let same = (memory(&asked) == 0 || memory(&asked) == memory(&now))
            && (asked.cpu_quota == 0 || spec::cpu_millis(&asked) == spec::cpu_millis(&now));
        match same {
            true => Ok(()),
            false => Err(Status::unimplemented(format!(
                "container {}: the limits of a wasm container cannot be changed while it exists",
                record.id
            ))),
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
