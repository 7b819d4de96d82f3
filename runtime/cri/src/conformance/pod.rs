//! A pod of the suite: made with one call, gone when the check is over.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use coracle_cri_api::v1;

use super::{Program, Suite};

/// A sandbox and how to make containers in it.
pub struct Pod<'a> {
    suite: &'a Suite,
    pub id: String,
    pub config: v1::PodSandboxConfig,
}

impl Suite {
    /// The config of a pod of this name.
    pub fn pod_config(&self, name: &str) -> v1::PodSandboxConfig {
        let uid = hex::encode(rand::random::<[u8; 8]>());
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "conformance".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.target.scratch.join(format!("logs-{uid}")).display().to_string(),
            labels: [("suite".to_owned(), uid)].into(),
            annotations: [("note".to_owned(), "kept as it is".to_owned())].into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: self.target.cgroup_parent.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Runs a sandbox.
    pub async fn pod(&self, name: &str) -> anyhow::Result<Pod<'_>> {
        self.run(self.pod_config(name)).await
    }

    /// Runs a sandbox of this config.
    pub async fn run(&self, config: v1::PodSandboxConfig) -> anyhow::Result<Pod<'_>> {
        self.run_as(config, &self.target.handler).await
    }

    /// Runs a sandbox of this handler.
    pub async fn run_as(&self, config: v1::PodSandboxConfig, handler: &str) -> anyhow::Result<Pod<'_>> {
        tokio::fs::create_dir_all(&config.log_directory).await?;
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { suite: self, id, config })
    }

    /// Makes sure that a program's image is here; answers its id.
    pub async fn pull(&self, image: &str) -> anyhow::Result<String> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, ..Default::default() };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// The state of a container.
    pub async fn status(&self, id: &str) -> Result<v1::ContainerStatus, tonic::Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| tonic::Status::internal("an answer without a status"))
    }

    /// Waits until a container has exited.
    pub async fn exited(&self, id: &str) -> anyhow::Result<v1::ContainerStatus> {
        for _ in 0..1500 {
            let status = self.status(id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("container {id} has not exited after 30 s")
    }

    /// The lines of a log in the CRI format, as (stream, text); waits until there are so many.
    pub async fn log(&self, path: &str, lines: usize) -> anyhow::Result<Vec<(String, String)>> {
        let mut text = String::new();
        for _ in 0..250 {
            text = tokio::fs::read_to_string(path).await.unwrap_or_default();
            if text.lines().count() >= lines {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        text.lines().map(|line| log_line(line).with_context(|| format!("log line {line:?}"))).collect()
    }
}

/// `<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <text>`
fn log_line(line: &str) -> Option<(String, String)> {
    let mut parts = line.splitn(4, ' ');
    let (time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let well_formed = time.parse::<jiff::Timestamp>().is_ok()
        && matches!(stream, "stdout" | "stderr")
        && matches!(tag, "F" | "P");
    well_formed.then(|| (stream.to_owned(), text.to_owned()))
}

impl Pod<'_> {
    /// The config of a container that runs a program.
    pub fn container_config(&self, name: &str, program: &Program, image: &str) -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec {
                image: image.to_owned(),
                user_specified_image: program.image.clone(),
                ..Default::default()
            }),
            command: program.command.clone(),
            labels: [("container".to_owned(), name.to_owned())].into(),
            annotations: [("note".to_owned(), "also kept".to_owned())].into(),
            log_path: format!("{name}/0.log"),
            linux: Some(v1::LinuxContainerConfig::default()),
            ..Default::default()
        }
    }

    /// Creates a container.
    pub async fn create(&self, name: &str, program: &Program) -> anyhow::Result<String> {
        let image = self.suite.pull(&program.image).await?;
        Ok(self.create_as(self.container_config(name, program, &image)).await?)
    }

    /// Creates a container of this config.
    pub async fn create_as(&self, config: v1::ContainerConfig) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        Ok(self.suite.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    /// Starts a container.
    pub async fn start(&self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.suite.runtime.clone().start_container(request).await.map(drop)
    }

    /// Creates a container with this mount at `/data`, runs it to its end, and answers how it ended.
    pub async fn run_with(
        &self,
        name: &str,
        program: &Program,
        data: PathBuf,
    ) -> anyhow::Result<v1::ContainerStatus> {
        let image = self.suite.pull(&program.image).await?;
        let mut config = self.container_config(name, program, &image);
        config.mounts.push(v1::Mount {
            container_path: "/data".to_owned(),
            host_path: data.display().to_string(),
            ..Default::default()
        });
        let id = self.create_as(config).await?;
        self.start(&id).await?;
        self.suite.exited(&id).await
    }

    /// The sandbox's state.
    pub async fn status(&self) -> Result<v1::PodSandboxStatus, tonic::Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let answer = self.suite.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| tonic::Status::internal("an answer without a status"))
    }

    /// The sandbox's address.
    pub async fn ip(&self) -> anyhow::Result<String> {
        let network = self.status().await?.network.context("the sandbox has no network status")?;
        Ok(network.ip)
    }

    /// Stops the sandbox.
    pub async fn stop(&self) -> Result<(), tonic::Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.suite.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// Removes the sandbox.
    pub async fn remove(&self) -> Result<(), tonic::Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.suite.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// Stops and removes it.
    pub async fn end(&self) -> Result<(), tonic::Status> {
        self.stop().await?;
        self.remove().await
    }
}
