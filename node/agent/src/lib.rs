//! The node agent: the kubelet's job. It brings the pods that the API binds to this node to life through CRI, and says how they are.
//!
//! It never knows what runs inside a container, and it reaches the cluster only through the Kubernetes API. Pods run on
//! while it, the API server or the runtime's service is away.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

mod checkpoint;
pub mod claims;
pub mod context;
pub mod cpus;
pub mod csi;
pub mod env;
pub mod events;
pub mod eviction;
pub mod hooks;
pub mod images;
pub mod logs;
pub mod memory;
pub mod node;
pub mod numa;
pub mod objects;
pub mod pods;
pub mod probes;
pub mod runtime;
pub mod server;
pub mod services;
pub mod stop;
pub mod storage;
pub mod tokens;
pub mod tuning;
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
    /// What other parts of the node serve under the node API.
    pub more_routes: axum::Router,
    /// Where pods ask for names.
    pub dns: context::Dns,
    /// What an operator sets.
    pub tuning: tuning::Tuning,
    /// Where device plugins have their sockets; `None`: `device-plugins` in the root directory.
    pub device_plugin_dir: Option<PathBuf>,
}

/// Runs until `shutdown`. Pods run on afterwards.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let root = root_directory(&options.root_dir)?;
    let devices = coracle_devices::manager::Manager::new(
        options.device_plugin_dir.clone().unwrap_or_else(|| root.join("device-plugins")),
        root.join("device-plugins").join("checkpoint.json"),
        shutdown.clone(),
    );
    let machine = node::machine::read(&root);
    let (recorder, write_events) =
        events::Recorder::new(options.client.clone(), options.node_name.clone(), shutdown.clone());
    let (services, follow_services) = services::Services::new(options.client.clone(), shutdown.clone());
    let cpus =
        cpus::Cpus::new(&root, &options.tuning).map_err(|words| anyhow::anyhow!("CPU manager: {words}"))?;
    let [_, left, _] = node::object::allocatable([0, machine.memory, 0], &options.tuning);
    let kept = u64::try_from(machine.memory.saturating_sub(left)).unwrap_or(0);
    let memory = memory::Memory::new(&root, &options.tuning, &machine.nodes, kept)
        .map_err(|words| anyhow::anyhow!("memory manager: {words}"))?;
    let nodes = numa::hints::Mask::of(machine.nodes.keys().copied());
    let managers = (cpus.clone(), memory.clone(), devices.clone());
    let distances = numa::distances(std::path::Path::new(numa::SYSTEM), nodes);
    let placement = numa::Placement::new(&options.tuning.topology, nodes, distances, managers)
        .map_err(|words| anyhow::anyhow!("topology manager: {words}"))?;
    let context = Arc::new(context::Context {
        cpus,
        memory,
        placement,
        profiles: root.join("seccomp"),
        client: options.client.clone(),
        runtime: runtime::Runtime::new(&options.runtime_endpoint)?,
        objects: objects::Objects::new(options.client.clone()),
        recorder,
        tokens: tokens::Tokens::new(options.client.clone()),
        services,
        node_name: options.node_name.clone(),
        node_ip: options.node_ip,
        root,
        allocatable: node::object::for_pods(&machine, &options.tuning),
        max_pods: options.max_pods,
        cpu_milli: machine.cpus.saturating_mul(1000),
        machine_memory: machine.memory,
        page_sizes: {
            let sizes = machine.huge_pages().into_keys();
            sizes.filter_map(|name| pods::steps::config::resources::page_size(&name)).collect()
        },
        dns: options.dns.clone(),
        devices: devices.clone(),
        csi: Default::default(),
        probes: Default::default(),
        claims: Default::default(),
        volume_stats: Default::default(),
        node_cpu: Default::default(),
        tuning: options.tuning.clone(),
        pressure: tokio::sync::watch::channel(Default::default()).0,
        shutting_down: Default::default(),
        handlers: Default::default(),
        strict_groups: true.into(),
    });
    let pods = pods::source::Pods::default();
    let server = server::Server::bind(&options, context.clone(), pods.clone()).await?;
    let port = server.port();
    tokio::join!(
        write_events,
        follow_services,
        server.run(shutdown.clone()),
        node::run(context.clone(), machine, port, options.max_pods, shutdown.clone()),
        pods::source::run(context.clone(), pods.clone(), shutdown.clone()),
        eviction::run(context.clone(), pods.clone(), options.tuning.eviction.clone(), shutdown.clone()),
        node::shutdown::run(context.clone(), pods.clone(), shutdown.clone()),
        csi::registration::run(context.clone(), shutdown.clone()),
        images::gc::run(context.clone(), options.tuning.images, shutdown.clone()),
        logs::rotate::run(context.clone(), shutdown.clone()),
        cpus::run(context.clone(), shutdown.clone()),
        storage::run(context, shutdown.clone()),
        serve_devices(devices),
    );
    Ok(())
}

/// The root directory, made where it is missing, as the kernel names what is mounted below it: absolute and without links.
fn root_directory(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| format!("create the root directory {}", path.display()))?;
    path.canonicalize().with_context(|| format!("find the root directory {}", path.display()))
}

/// A node without device plugins goes on.
async fn serve_devices(devices: coracle_devices::manager::Manager) {
    if let Err(error) = devices.run().await {
        tracing::warn!(%error, "device plugins cannot register with this node");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_directory_is_named_as_the_kernel_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("its own name");
        std::os::unix::fs::symlink("there", dir.join("link")).expect("a link");
        std::fs::create_dir(dir.join("there")).expect("a directory");
        let root = root_directory(&dir.join("link/node")).expect("a root directory");
        assert_eq!(root, dir.join("there/node"));
        assert_eq!(root_directory(&root).expect("again"), root);
    }
}
