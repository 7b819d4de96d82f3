//! What the service remembers of a sandbox and of a container, and how CRI shows it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use coracle_cri_api::{signal, v1};
use coracle_wasm::protocol::State;
use serde::{Deserialize, Serialize};

/// A pod sandbox. One JSON file on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    /// 64 hex digits.
    pub id: String,
    /// As it was asked for.
    pub config: v1::PodSandboxConfig,
    pub runtime_handler: String,
    /// False once stopped or lost.
    pub ready: bool,
    /// Nanoseconds since the Unix epoch.
    pub created_at_ns: i64,
    /// Unspecified when the pod is on the host's network.
    pub ip: Ipv4Addr,
    /// It has namespaces, so that Linux containers can be in it.
    #[serde(default)]
    pub linux: bool,
    #[serde(default)]
    pub host_network: bool,
    /// The shared host that it is in: 0 is the first, which has the listeners of Services.
    #[serde(default)]
    pub host: u32,
}

/// A container. One JSON file on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// 64 hex digits.
    pub id: String,
    pub sandbox_id: String,
    /// As it was asked for, without the environment: that may hold secrets and is not needed again.
    pub config: v1::ContainerConfig,
    /// `repository@digest`.
    pub image_ref: String,
    /// The image's id.
    pub image_id: String,
    pub log_path: PathBuf,
    /// Nanoseconds since the Unix epoch.
    pub created_at_ns: i64,
    pub state: State,
    /// Whether the OCI runtime runs it, not a wasm host.
    #[serde(default)]
    pub linux: bool,
    /// What asks the container to end; empty: SIGTERM.
    #[serde(default)]
    pub stop_signal: String,
}

impl SandboxRecord {
    /// The pod as people call it, for messages.
    pub fn pod(&self) -> String {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        format!("{}/{}", metadata.namespace, metadata.name)
    }

    fn state(&self) -> v1::PodSandboxState {
        match self.ready {
            true => v1::PodSandboxState::SandboxReady,
            false => v1::PodSandboxState::SandboxNotready,
        }
    }

    /// The short form, for lists.
    pub fn summary(&self) -> v1::PodSandbox {
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at_ns,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    /// The long form. A sandbox that is not ready has given its address back.
    pub fn status(&self) -> v1::PodSandboxStatus {
        let ip = if self.ready && !self.host_network { self.ip.to_string() } else { String::new() };
        let security = self.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.clone());
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at_ns,
            network: Some(v1::PodSandboxNetworkStatus { ip, additional_ips: Vec::new() }),
            linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options }) }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    /// Who the statistics are of.
    pub fn attributes(&self) -> v1::PodSandboxAttributes {
        v1::PodSandboxAttributes {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }
}

impl ContainerRecord {
    /// What it is called, for messages.
    pub fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |m| m.name.as_str())
    }

    /// Its state in the words of CRI.
    pub fn cri_state(&self) -> v1::ContainerState {
        match self.state {
            State::Created => v1::ContainerState::ContainerCreated,
            State::Running { .. } => v1::ContainerState::ContainerRunning,
            State::Exited { .. } => v1::ContainerState::ContainerExited,
        }
    }

    /// What asks it to end. A wasm guest has no signals: SIGKILL ends it at once, all others as SIGTERM does.
    pub fn stop_signal(&self) -> v1::Signal {
        signal::parse(&self.stop_signal).unwrap_or(v1::Signal::Sigterm)
    }

    /// The short form, for lists.
    pub fn summary(&self) -> v1::Container {
        v1::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox_id.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.image_ref.clone(),
            state: self.cri_state().into(),
            created_at: self.created_at_ns,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.image_id.clone(),
        }
    }

    /// The long form.
    pub fn status(&self) -> v1::ContainerStatus {
        let mut status = v1::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.cri_state().into(),
            created_at: self.created_at_ns,
            image: self.config.image.clone(),
            image_ref: self.image_ref.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: self.log_path.display().to_string(),
            resources: Some(v1::ContainerResources {
                linux: self.config.linux.as_ref().and_then(|l| l.resources.clone()),
            }),
            image_id: self.image_id.clone(),
            stop_signal: self.stop_signal().into(),
            ..v1::ContainerStatus::default()
        };
        match &self.state {
            State::Created => {}
            State::Running { started_at_ns } => status.started_at = *started_at_ns,
            State::Exited { started_at_ns, finished_at_ns, exit_code, reason, message } => {
                status.started_at = *started_at_ns;
                status.finished_at = *finished_at_ns;
                status.exit_code = *exit_code;
                status.reason.clone_from(reason);
                status.message.clone_from(message);
            }
        }
        status
    }

    /// Who the statistics are of.
    pub fn attributes(&self) -> v1::ContainerAttributes {
        v1::ContainerAttributes {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }
}

/// Now, in nanoseconds since the Unix epoch.
pub fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// The end of a container that nobody saw end.
pub fn lost(started_at_ns: i64, exit_code: i32, message: &str) -> State {
    State::Exited {
        started_at_ns,
        finished_at_ns: now_ns(),
        exit_code,
        reason: "Error".into(),
        message: message.into(),
    }
}
