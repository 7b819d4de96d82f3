//! The node agent: the kubelet's job over any CRI runtime.
//!
//! [`node`] keeps the Node and its Lease, [`pods`] runs one worker a pod, [`node_api`] serves port 10250. State is reached
//! through the Kubernetes API and CRI alone.
#![forbid(unsafe_code)]

pub mod cri;
pub mod events;
pub mod images;
pub mod node;
pub mod node_api;
pub mod pods;
pub mod probes;
pub mod volumes;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use kube::Client;
use tokio_util::sync::CancellationToken;

/// What an agent needs.
pub struct Options {
    /// The API server, as `system:node:<name>`.
    pub client: Client,
    pub node_name: String,
    pub node_ip: IpAddr,
    /// The port of the node API; 0 takes a free one.
    pub port: u16,
    /// The CRI endpoint, `unix:///path`.
    pub runtime_endpoint: String,
    /// Where volumes and logs lie.
    pub root_dir: PathBuf,
    /// Certificate chain and key of the node API, PEM.
    pub serving_cert: (String, String),
    /// The authority of the node API's clients, PEM.
    pub client_ca_pem: String,
    /// Most pods at a time.
    pub max_pods: u32,
}

/// What the parts of an agent share.
pub struct Shared {
    pub client: Client,
    pub node_name: String,
    pub node_ip: IpAddr,
    pub root_dir: PathBuf,
    pub cri: cri::Cri,
    pub images: images::Images,
    pub events: events::Recorder,
}

/// Runs until shutdown; pods go on without it. A lost API server or runtime is waited for.
///
/// # Errors
/// When the node API cannot listen or a certificate cannot be read.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<()> {
    std::fs::create_dir_all(&options.root_dir)
        .with_context(|| format!("create {}", options.root_dir.display()))?;
    let cri = cri::Cri::connect(&options.runtime_endpoint)?;
    let events = events::Recorder::start(options.client.clone(), options.node_name.clone());
    let shared = Arc::new(Shared {
        images: images::Images::new(cri.clone()),
        client: options.client,
        node_name: options.node_name,
        node_ip: options.node_ip,
        root_dir: options.root_dir,
        cri,
        events,
    });
    let api = node_api::Server::bind(
        (options.node_ip, options.port),
        &options.serving_cert,
        &options.client_ca_pem,
        shared.clone(),
    )
    .await?;
    let port = api.port();
    let node = node::Keeper::new(shared.clone(), port, options.max_pods);
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        served = api.serve() => served,
        () = node.run() => Ok(()),
        () = pods::run(shared) => Ok(()),
    }
}
