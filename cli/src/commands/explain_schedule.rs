//! `coracle explain-schedule pod/NAME`: why each node was or would be chosen for a pod, or not.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_scheduler::config::Configuration;

use crate::kubeconfig::Cluster;

#[derive(Args)]
pub struct Options {
    /// The pod, as `pod/web-0` or `web-0`.
    pod: String,
    /// The KubeSchedulerConfiguration that the servers run with, if any.
    #[arg(long)]
    scheduler_config: Option<PathBuf>,
    #[command(flatten)]
    cluster: Cluster,
}

/// Explains.
pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let name = match options.pod.split_once('/') {
            None => options.pod.as_str(),
            Some(("pod" | "pods" | "po", name)) => name,
            Some((kind, _)) => bail!("only pods are scheduled, not {kind:?}"),
        };
        let configuration = match &options.scheduler_config {
            None => Configuration::default(),
            Some(path) => read(path)?,
        };
        let (client, namespace) = options.cluster.client().await?;
        let said = coracle_scheduler::explain::of(&client, &configuration, &namespace, name).await?;
        super::print(said.to_string())
    })
}

/// Reads a KubeSchedulerConfiguration.
///
/// # Errors
/// When the file cannot be read or says what cannot be done.
pub fn read(path: &std::path::Path) -> Result<Configuration> {
    let what = || format!("read the scheduler's configuration {}", path.display());
    let text = std::fs::read_to_string(path).with_context(what)?;
    let value: serde_json::Value = serde_yaml::from_str(&text).with_context(what)?;
    Configuration::read(value).with_context(what)
}
