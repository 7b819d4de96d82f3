//! The node agent: the kubelet's job. It brings the pods that the API binds to this node to life through CRI, and says how they are.
//!
//! It never knows what runs inside a container, and it reaches the cluster only through the Kubernetes API. Pods run on
//! while it, the API server or the runtime's service is away.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

pub mod context;
pub mod env;
pub mod events;
pub mod images;
pub mod logs;
pub mod node;
pub mod objects;
pub mod pods;
pub mod probes;
pub mod runtime;
pub mod server;
pub mod services;
pub mod tokens;
pub mod volumes;

/// What an agent needs to know.
pub struct Options {
    /// The API server, as `system:node:<name>`.
    pub client: kube::Client,
    /// The node's name.
    pub node_name: String,
    /// The node's address: the node API listens there.
    pub node_ip: IpAddr,
    /// The port of the node API; 0 takes a free one, which the Node object tells.
    pub port: u16,
    /// `unix:///path` of the CRI service.
    pub runtime_endpoint: String,
    /// Where volumes and logs lie.
    pub root_dir: PathBuf,
    /// The node API's certificate and key, PEM.
    pub serving_cert: (String, String),
    /// The authority of the node API's clients, PEM.
    pub client_ca_pem: String,
    /// Most pods at a time; the scheduler goes by it.
    pub max_pods: u32,
    /// Where pods ask for names.
    pub dns: context::Dns,
}

/// Runs until `shutdown`. Pods run on afterwards.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.root_dir)
        .with_context(|| format!("create the root directory {}", options.root_dir.display()))?;
    let root = std::path::absolute(&options.root_dir).context("find the root directory")?;
    let machine = node::machine::read();
    let (recorder, write_events) =
        events::Recorder::new(options.client.clone(), options.node_name.clone(), shutdown.clone());
    let (services, follow_services) = services::Services::new(options.client.clone(), shutdown.clone());
    let context = Arc::new(context::Context {
        client: options.client.clone(),
        runtime: runtime::Runtime::new(&options.runtime_endpoint)?,
        objects: objects::Objects::new(options.client.clone()),
        recorder,
        tokens: tokens::Tokens::new(options.client.clone()),
        services,
        node_name: options.node_name.clone(),
        node_ip: options.node_ip,
        root,
        cpu_milli: machine.cpus.saturating_mul(1000),
        memory: machine.memory,
        dns: options.dns.clone(),
    });
    let pods = pods::source::Pods::default();
    let server = server::Server::bind(&options, context.clone(), pods.clone()).await?;
    let port = server.port();
    tokio::join!(
        write_events,
        follow_services,
        server.run(shutdown.clone()),
        node::run(context.clone(), machine, port, options.max_pods, shutdown.clone()),
        pods::source::run(context, pods, shutdown.clone()),
    );
    Ok(())
}
