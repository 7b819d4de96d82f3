//! `coracle up`: one server, one node and one runtime on this machine, supervised.
//!
//! SIGTERM stops the pods, then everything else. After a kill -9 the runtime and its pods live on; the next `up` with
//! the same data directory adopts them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use coracle_cri_api::v1::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;

use crate::data_dir::DataDir;
use crate::kubeconfig::Cluster;
use crate::supervise::{Program, Running};

#[derive(Args)]
pub struct Options {
    /// Where everything lies.
    #[arg(long, default_value = "coracle-data")]
    data_dir: PathBuf,
    /// Where the API server listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Addresses of Services.
    #[arg(long, default_value = "127.96.0.0/12")]
    service_cidr: String,
    /// Addresses of pods.
    #[arg(long, default_value = "127.64.0.0/11")]
    pod_cidr: String,
    /// The node's name.
    #[arg(long, default_value = "node-1")]
    node_name: String,
    /// The node's address.
    #[arg(long, default_value = "127.0.1.1")]
    node_ip: IpAddr,
    /// The port of the node's API; 0 takes a free one.
    #[arg(long, default_value_t = 10250)]
    node_port: u16,
    /// How long to wait until everything is ready, in seconds.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// How long pods may take to stop at the end.
const POD_GRACE: Duration = Duration::from_secs(30);

pub fn run(options: Options) -> Result<()> {
    super::init_logs_quiet();
    super::run_client(async {
        let shutdown = CancellationToken::new();
        super::cancel_on_signal(shutdown.clone())?;
        supervise(&options, shutdown).await
    })
}

async fn supervise(options: &Options, shutdown: CancellationToken) -> Result<()> {
    let dir = DataDir::open(&options.data_dir)?;
    let _lock = lock(&dir)?;
    let [server, runtime, node] = programs(options, &dir);
    // Only the runtime is adopted: the others hold no pod, and may be of an older version.
    server.end_leftover().await?;
    node.end_leftover().await?;
    let credentials = dir.node_credentials();
    // The server writes them anew, this file last: ports and keys may have changed.
    let written = credentials.join("kubeconfig");
    if written.is_file() {
        std::fs::remove_file(&written).with_context(|| format!("remove {}", written.display()))?;
    }
    let started = server.adopt_or_start()?;
    let server_task = tokio::spawn(server.keep(started, shutdown.clone()));
    let wait = wait_for(&shutdown, options.timeout, &dir, "server", || async { written.is_file() }).await;
    if let Err(error) = wait {
        shutdown.cancel();
        server_task.await??.stop(Duration::from_secs(20)).await?;
        return Err(error);
    }
    let started = runtime.adopt_or_start()?;
    let runtime_task = tokio::spawn(runtime.keep(started, shutdown.clone()));
    let started = node.adopt_or_start()?;
    let node_task = tokio::spawn(node.keep(started, shutdown.clone()));

    if let Err(error) = ready(options, &dir, &shutdown).await {
        shutdown.cancel();
        stop(&dir, server_task.await??, runtime_task.await??, node_task.await??).await?;
        return Err(error);
    }
    let url = Cluster { kubeconfig: Some(dir.kubeconfig()), namespace: None }.registry()?.authority;
    println!("coracle is ready at https://{url}; export KUBECONFIG={}", dir.kubeconfig().display());
    shutdown.cancelled().await;
    stop(&dir, server_task.await??, runtime_task.await??, node_task.await??).await
}

fn lock(dir: &DataDir) -> Result<Flock<std::fs::File>> {
    let path = dir.lock();
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| anyhow::anyhow!("{} is held by another `coracle up` ({error})", path.display()))
}

fn programs(options: &Options, dir: &DataDir) -> [Program; 3] {
    let shown = |path: PathBuf| path.display().to_string();
    let program = |name: &'static str, args: Vec<(&str, String)>| Program {
        name,
        args: std::iter::once(name.to_owned())
            .chain(args.into_iter().flat_map(|(flag, value)| [format!("--{flag}"), value]))
            .collect(),
        log: dir.log(name),
        pid_file: dir.pid_file(name),
    };
    let credentials = dir.node_credentials();
    let server = program(
        "server",
        vec![
            ("data-dir", shown(dir.server())),
            ("listen", options.listen.to_string()),
            ("service-cidr", options.service_cidr.clone()),
            ("pod-cidr", options.pod_cidr.clone()),
            ("write-kubeconfig", shown(dir.kubeconfig())),
            ("local-node", format!("{}={}", options.node_name, options.node_ip)),
        ],
    );
    let runtime = program(
        "runtime",
        vec![
            ("socket", shown(dir.cri_socket())),
            ("state-dir", shown(dir.runtime())),
            ("registries", shown(credentials.join("registries.json"))),
            ("pod-cidr", options.pod_cidr.clone()),
        ],
    );
    let node = program(
        "node",
        vec![
            ("kubeconfig", shown(credentials.join("kubeconfig"))),
            ("name", options.node_name.clone()),
            ("node-ip", options.node_ip.to_string()),
            ("port", options.node_port.to_string()),
            ("runtime-endpoint", format!("unix://{}", dir.cri_socket().display())),
            ("root-dir", shown(dir.node())),
            ("tls-cert-file", shown(credentials.join("serving.crt"))),
            ("tls-private-key-file", shown(credentials.join("serving.key"))),
            ("client-ca-file", shown(credentials.join("ca.crt"))),
        ],
    );
    [server, runtime, node]
}

/// Waits until the API answers and the node is Ready.
async fn ready(options: &Options, dir: &DataDir, shutdown: &CancellationToken) -> Result<()> {
    let cluster = Cluster { kubeconfig: Some(dir.kubeconfig()), namespace: None };
    let name = options.node_name.as_str();
    wait_for(shutdown, options.timeout, dir, "node", || async {
        let Ok((client, _)) = cluster.client().await else { return false };
        let node = Api::<Node>::all(client).get(name).await;
        node.is_ok_and(|node| is_ready(&node))
    })
    .await
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

async fn wait_for<F: Future<Output = bool>>(
    shutdown: &CancellationToken,
    seconds: u64,
    dir: &DataDir,
    what: &str,
    mut met: impl FnMut() -> F,
) -> Result<()> {
    let wait = async {
        while !met().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        done = tokio::time::timeout(Duration::from_secs(seconds), wait) => {
            done.map_err(|_| anyhow::anyhow!("the {what} is not ready after {seconds} s; its log: {}", dir.log(what).display()))
        }
        () = shutdown.cancelled() => bail!("stopped before the {what} was ready"),
    }
}

/// Stops the agent (so that nothing is started again), the pods, the runtime with its hosts, and the server.
async fn stop(dir: &DataDir, mut server: Running, mut runtime: Running, mut node: Running) -> Result<()> {
    node.stop(Duration::from_secs(10)).await?;
    let pods = tokio::time::timeout(POD_GRACE, stop_pods(dir)).await;
    if let Err(error) = pods.context("stopping took too long").and_then(|done| done) {
        tracing::warn!(error = format!("{error:#}"), "not every pod was stopped in order");
    }
    runtime.stop(Duration::from_secs(10)).await?;
    coracle_cri::end_hosts(&dir.runtime()).await?;
    server.stop(Duration::from_secs(20)).await
}

async fn stop_pods(dir: &DataDir) -> Result<()> {
    let channel = coracle_cri_api::connect(&format!("unix://{}", dir.cri_socket().display())).await?;
    let mut client = RuntimeServiceClient::new(channel);
    let sandboxes = client.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    for sandbox in sandboxes {
        let pod_sandbox_id = sandbox.id;
        client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
        client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
    }
    Ok(())
}
