//! `coracle up`: one server, one node and one runtime on this machine, supervised.
//!
//! SIGTERM stops the pods, then everything else. After a kill -9 the runtime and its pods live on; the next `up` with
//! the same data directory adopts them.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use coracle_cri_api::v1::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use coracle_registry::Cidr;
use futures::future::select_all;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;

use crate::data_dir::DataDir;
use crate::kubeconfig::Cluster;
use crate::supervise::{Kept, Program};

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
    service_cidr: Cidr,
    /// Addresses of pods.
    #[arg(long, default_value = "127.64.0.0/11")]
    pod_cidr: Cidr,
    /// The node's name.
    #[arg(long, default_value = "node-1")]
    node_name: String,
    /// The node's address.
    #[arg(long, default_value = "127.0.1.1")]
    node_ip: IpAddr,
    /// `loopback` (wasm pods on this machine, no root) or `routed` (ordinary addresses and Linux pods too, as root).
    #[arg(long, default_value = "loopback")]
    network: String,
    /// The port of the node's API; 0 takes a free one.
    #[arg(long, default_value_t = 10250)]
    node_port: u16,
    /// The port of the cluster's DNS; below 1024 it needs a privilege. Wasm pods resolve names without it.
    #[arg(long, default_value_t = 53)]
    dns_port: u16,
    /// Resolve names of other domains too, through the resolvers of this host.
    #[arg(long)]
    forward_dns: bool,
    /// Accept Ingresses in the versions that Kubernetes removed.
    #[arg(long)]
    legacy_manifests: bool,
    /// Seconds that pods stay on a node that is not ready or not reachable, unless they say otherwise.
    #[arg(long, default_value_t = 300)]
    default_toleration_seconds: i64,
    /// A folder with a folder for each registry (`hosts.toml`, certificates), as containerd has it.
    #[arg(long, default_value = "/etc/coracle/certs.d")]
    registry_config_dir: PathBuf,
    /// The collector that spans of wasm guests go to (OTLP over HTTP), `http://host:port`.
    #[arg(long)]
    otlp_endpoint: Option<String>,
    /// The OCI runtime for Linux containers: a program on the PATH, or a path.
    #[arg(long, default_value = "runc")]
    oci_runtime: String,
    #[command(flatten)]
    tuning: super::server::tuning::Tuning,
    #[command(flatten)]
    authentication: super::server::authentication::Authentication,
    #[command(flatten)]
    encrypting: super::server::encryption::Encrypting,
    #[command(flatten)]
    auditing: super::server::audit::Auditing,
    #[command(flatten)]
    node: super::node::tuning::Tuning,
    /// How long to wait until everything is ready, in seconds.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// How long pods may take to stop at the end.
const POD_GRACE: Duration = Duration::from_secs(30);
const STOPPED_AT_ONCE: usize = 16;

/// A process that ends so often before everything is ready will not do better.
const TRIES: u32 = 3;

pub fn run(options: Options) -> Result<()> {
    super::init_logs_quiet();
    super::run_client(async {
        let (shutdown, hurry) = (CancellationToken::new(), CancellationToken::new());
        super::cancel_on_signal(shutdown.clone(), hurry.clone())?;
        supervise(&options, shutdown, hurry).await
    })
}

async fn supervise(options: &Options, shutdown: CancellationToken, hurry: CancellationToken) -> Result<()> {
    let dir = DataDir::open(&options.data_dir)?;
    let _lock = lock(&dir)?;
    let mut processes = Processes::default();
    // Once the processes are being stopped nothing starts them again.
    let keep = CancellationToken::new();
    let started = start(options, &dir, &shutdown, &keep, &mut processes).await;
    if started.is_ok() {
        shutdown.cancelled().await;
    } else if !shutdown.is_cancelled() && processes.adopted {
        tracing::warn!("the runtime of an earlier start and its pods run on");
        processes.runtime = None;
    }
    keep.cancel();
    let stopped = stop(&dir, processes, &hurry).await;
    started.and(stopped)
}

/// What has been started so far.
#[derive(Default)]
struct Processes {
    server: Option<Kept>,
    runtime: Option<Kept>,
    node: Option<Kept>,
    /// Whether the runtime is an earlier start's.
    adopted: bool,
}

async fn start(
    options: &Options,
    dir: &DataDir,
    shutdown: &CancellationToken,
    keep: &CancellationToken,
    processes: &mut Processes,
) -> Result<()> {
    let [server, runtime, node] = programs(options, dir);
    // Only the runtime is adopted: the others hold no pod, and may be of an older version.
    node.end_leftover().await?;
    server.end_leftover().await?;
    // The server writes them anew, this file last: ports and keys may have changed.
    let written = dir.node_credentials().join("kubeconfig");
    if written.is_file() {
        std::fs::remove_file(&written).with_context(|| format!("remove {}", written.display()))?;
    }
    let now = Timestamp::now();
    let running = server.adopt_or_start().await?;
    let server = &*processes.server.insert(server.keep(running, keep.clone()));
    wait_for(shutdown, options.timeout, &[server], || async { written.is_file() }).await?;
    let running = runtime.adopt_or_start().await?;
    processes.adopted = running.adopted();
    let runtime = &*processes.runtime.insert(runtime.keep(running, keep.clone()));
    let running = node.adopt_or_start().await?;
    let node = &*processes.node.insert(node.keep(running, keep.clone()));

    let cluster = Cluster { kubeconfig: Some(dir.kubeconfig()), namespace: None };
    let (client, _) = cluster.client().await?;
    let nodes = Api::<Node>::all(client);
    wait_for(shutdown, options.timeout, &[server, runtime, node], || async {
        nodes.get(&options.node_name).await.is_ok_and(|node| is_ready(&node, now))
    })
    .await?;
    let kubeconfig = dir.kubeconfig();
    // Who does not read it is served all the same.
    let _ = writeln!(
        std::io::stdout(),
        "coracle is ready at {}; export KUBECONFIG={}",
        cluster.server().await?,
        kubeconfig.display()
    );
    Ok(())
}

fn lock(dir: &DataDir) -> Result<Flock<std::fs::File>> {
    let path = dir.lock();
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => {
            anyhow::anyhow!("another `coracle up` runs with this data directory: {} is held", path.display())
        }
        other => anyhow::anyhow!("lock {}: {}", path.display(), other.desc()),
    })
}

/// What the server is told of tuning: load balancers of profile `loopback` have the upper half of the node's /24 unless
/// another pool is given.
fn tuning(options: &Options) -> Vec<(&'static str, String)> {
    let mut tuning = options.tuning.clone();
    if let (None, "loopback", IpAddr::V4(node)) =
        (&tuning.load_balancer_cidr, options.network.as_str(), options.node_ip)
    {
        let [a, b, c, _] = node.octets();
        tuning.load_balancer_cidr = Some(format!("{a}.{b}.{c}.128/25"));
    }
    let more = [options.authentication.flags(), options.encrypting.flags(), options.auditing.flags()];
    tuning.flags().into_iter().chain(more.into_iter().flatten()).collect()
}

fn programs(options: &Options, dir: &DataDir) -> [Program; 3] {
    let shown = |path: PathBuf| path.display().to_string();
    let program = |name: &'static str, home: PathBuf, args: Vec<(&str, String)>| Program {
        name,
        home: shown(home),
        args: std::iter::once(name.to_owned())
            .chain(args.into_iter().flat_map(|(flag, value)| [format!("--{flag}"), value]))
            .collect(),
        log: dir.log(name),
        pid_file: dir.pid_file(name),
    };
    let credentials = dir.node_credentials();
    let server = program(
        "server",
        dir.server(),
        [
            vec![
                ("data-dir", shown(dir.server())),
                ("listen", options.listen.to_string()),
                ("service-cidr", options.service_cidr.to_string()),
                ("pod-cidr", options.pod_cidr.to_string()),
                ("legacy-manifests", options.legacy_manifests.to_string()),
                ("default-not-ready-toleration-seconds", options.default_toleration_seconds.to_string()),
                ("default-unreachable-toleration-seconds", options.default_toleration_seconds.to_string()),
                ("write-kubeconfig", shown(dir.kubeconfig())),
                ("local-node", format!("{}={}", options.node_name, options.node_ip)),
            ],
            tuning(options),
        ]
        .concat(),
    );
    let runtime = program(
        "runtime",
        dir.runtime(),
        [
            vec![
                ("socket", shown(dir.cri_socket())),
                ("state-dir", shown(dir.runtime())),
                ("registries", shown(credentials.join("registries.json"))),
                ("registry-config-dir", shown(options.registry_config_dir.clone())),
                ("pod-cidr", options.pod_cidr.to_string()),
                ("network", options.network.clone()),
                ("service-cidr", options.service_cidr.to_string()),
                ("oci-runtime", options.oci_runtime.clone()),
            ],
            options.otlp_endpoint.iter().map(|endpoint| ("otlp-endpoint", endpoint.clone())).collect(),
        ]
        .concat(),
    );
    let node = program(
        "node",
        dir.node(),
        [
            options.node.for_own_machine().flags(),
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
                ("cluster-dns", dns_address(options.service_cidr)),
                ("dns-port", options.dns_port.to_string()),
                ("forward-dns", options.forward_dns.to_string()),
                ("network", options.network.clone()),
                ("service-cidr", options.service_cidr.to_string()),
            ],
        ]
        .concat(),
    );
    [server, runtime, node]
}

/// The tenth address of the Service range, which is the DNS's; empty for IPv6.
fn dns_address(services: Cidr) -> String {
    let IpAddr::V4(base) = services.base else { return String::new() };
    let tenth = u32::from(base).checked_add(10);
    tenth.map(|ip| std::net::Ipv4Addr::from(ip).to_string()).unwrap_or_default()
}

/// Whether the node has said since `start` that it is ready; what it said before, it may be no longer.
fn is_ready(node: &Node, start: Timestamp) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter().any(|one| {
            let fresh =
                one.last_heartbeat_time.as_ref().is_some_and(|at| at.0.as_second() >= start.as_second());
            one.type_ == "Ready" && one.status == "True" && fresh
        })
    })
}

/// Waits until a condition is met while these processes, the last of which is to bring it about, stay up.
async fn wait_for<F: Future<Output = bool>>(
    shutdown: &CancellationToken,
    seconds: u64,
    processes: &[&Kept],
    mut met: impl FnMut() -> F,
) -> Result<()> {
    let met = async {
        while !met().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let failed = select_all(processes.iter().map(|process| Box::pin(process.ended(TRIES))));
    let late = || processes.last().map(|last| last.error(&format!("is not ready after {seconds} s")));
    tokio::select! {
        () = met => Ok(()),
        () = tokio::time::sleep(Duration::from_secs(seconds)) => Err(late().context("nothing to wait for")?),
        ((), index, _) = failed => {
            let failed = processes.get(index).context("no such process")?;
            Err(failed.error(&format!("does not stay up: it ended {TRIES} times")))
        }
        () = shutdown.cancelled() => bail!("stopped before everything was ready"),
    }
}

/// How long the runtime may take to say which containers outlive it.
const ANSWER: Duration = Duration::from_secs(5);

/// Stops the agent (so that nothing is started again), the pods, the runtime with its hosts, and the server. What does
/// not stop keeps nothing else from being stopped.
async fn stop(dir: &DataDir, processes: Processes, hurry: &CancellationToken) -> Result<()> {
    let mut done = stop_one(processes.node, Duration::from_secs(10), hurry).await;
    if processes.runtime.is_some() {
        let pods = tokio::select! {
            pods = tokio::time::timeout(POD_GRACE, stop_pods(dir)) => pods.context("stopping took too long"),
            () = hurry.cancelled() => Ok(Ok(())),
        };
        if let Err(error) = pods.and_then(|done| done) {
            tracing::warn!(error = format!("{error:#}"), "not every pod was stopped in order");
        }
        let endpoint = format!("unix://{}", dir.cri_socket().display());
        let outliving = tokio::time::timeout(ANSWER, coracle_agent::stop::outliving(&endpoint)).await;
        done = done.and(stop_one(processes.runtime, Duration::from_secs(10), hurry).await);
        done = done.and(coracle_cri::end_hosts(&dir.runtime()).await);
        // Of pods that may run, nothing is taken away.
        let outliving = outliving.context("the runtime does not answer").and_then(|pods| pods);
        done = done.and(outliving.and_then(|pods| coracle_agent::stop::let_go(&dir.node(), &pods)));
    }
    done.and(stop_one(processes.server, Duration::from_secs(20), hurry).await)
}

async fn stop_one(kept: Option<Kept>, grace: Duration, hurry: &CancellationToken) -> Result<()> {
    let Some(kept) = kept else { return Ok(()) };
    kept.released().await?.stop(grace, hurry).await
}

async fn stop_pods(dir: &DataDir) -> Result<()> {
    let channel = coracle_cri_api::connect(&format!("unix://{}", dir.cri_socket().display())).await?;
    let mut client = RuntimeServiceClient::new(channel);
    let sandboxes = client.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    let stopped = stream::iter(sandboxes).map(|sandbox| {
        let mut client = client.clone();
        async move {
            let pod_sandbox_id = sandbox.id;
            client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
            Ok(())
        }
    });
    let stopped: Vec<Result<()>> = stopped.buffer_unordered(STOPPED_AT_ONCE).collect().await;
    stopped.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_said_before_does_not_count() {
        let node = |second: i64| -> Node {
            let at = Timestamp::from_second(second).unwrap();
            let ready = serde_json::json!({"type": "Ready", "status": "True", "lastHeartbeatTime": at});
            serde_json::from_value(serde_json::json!({"metadata": {}, "status": {"conditions": [ready]}}))
                .unwrap()
        };
        let start = Timestamp::from_second(100).unwrap();
        assert!(!is_ready(&node(99), start));
        assert!(is_ready(&node(100), start));
    }
}
