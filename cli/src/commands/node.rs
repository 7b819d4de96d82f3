//! `coracle node`: the node agent and the Service table feed.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Options {
    /// The kubeconfig of the cluster to join; its user is `system:node:NAME`.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// The node's name.
    #[arg(long, default_value = "node-1")]
    pub name: String,
    /// The node's address.
    #[arg(long, default_value = "127.0.1.1")]
    pub node_ip: IpAddr,
    /// The port of the node API; 0 takes a free one.
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
    /// Most pods at a time.
    #[arg(long, default_value_t = 1000)]
    pub max_pods: u32,
    /// The CRI endpoint.
    #[arg(long)]
    pub runtime_endpoint: String,
    /// Where volumes and logs lie.
    #[arg(long)]
    pub root_dir: PathBuf,
    /// The node API's serving certificate.
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// Its key.
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// The authority of the node API's clients.
    #[arg(long)]
    pub client_ca_file: PathBuf,
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| serve(options, shutdown))
}

async fn serve(options: Options, shutdown: CancellationToken) -> Result<()> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let kubeconfig = Kubeconfig::read_from(&options.kubeconfig)
        .with_context(|| format!("read the kubeconfig {}", options.kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let agent = coracle_agent::Options {
        client: client.clone(),
        node_name: options.name.clone(),
        node_ip: options.node_ip,
        port: options.port,
        runtime_endpoint: options.runtime_endpoint.clone(),
        root_dir: options.root_dir.clone(),
        serving_cert: (read(&options.tls_cert_file)?, read(&options.tls_private_key_file)?),
        client_ca_pem: read(&options.client_ca_file)?,
        max_pods: options.max_pods,
    };
    let feed = coracle_network::Options {
        client,
        node_ip: options.node_ip.to_string(),
        node_name: options.name,
        runtime_endpoint: options.runtime_endpoint,
        cluster_domain: "cluster.local".to_owned(),
    };
    // One without the other is no node: a failure of either ends the process, so that it is seen and tried again.
    tokio::try_join!(
        async { coracle_agent::run(agent, shutdown.clone()).await.context("the node agent") },
        async { coracle_network::run_with(feed, shutdown.clone()).await.context("the Service table feed") },
    )?;
    Ok(())
}
