//! The agent is killed at each step of a pod's life: between it and the runtime stands a proxy that knows CRI's calls.
//! Profile: loopback.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_agent::runtime::Runtime;
use coracle_e2e::nodes::Nodes;
use coracle_e2e::servers::Servers;
use coracle_e2e::{Ended, eventually, guest_file};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(30);

/// Where in a call of CRI the agent dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// It has asked; the runtime has not heard of it.
    Asked,
    /// The runtime has done it; the agent has not heard of it.
    Done,
}

type Trap = Arc<Mutex<Option<(&'static str, At)>>>;

/// Carries calls to the runtime; the call that the trap waits for is told on the channel and never answered.
struct Proxy {
    trap: Trap,
    caught: mpsc::UnboundedReceiver<()>,
}

impl Proxy {
    /// Stands before the runtime's socket from now on.
    fn before(socket: &Path, real: &Path) -> Result<Self> {
        std::fs::rename(socket, real)?;
        let _guard = tokio::runtime::Handle::current().enter();
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let (tell, caught) = mpsc::unbounded_channel();
        let trap = Trap::default();
        let (armed, real) = (trap.clone(), real.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (armed, real, tell) = (armed.clone(), real.clone(), tell.clone());
                tokio::spawn(async move {
                    let service =
                        service_fn(move |request| carry(request, real.clone(), armed.clone(), tell.clone()));
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { trap, caught })
    }

    fn set(&self, trap: Option<(&'static str, At)>) -> Result<()> {
        *self.trap.lock().map_err(|_| anyhow::anyhow!("the trap is broken"))? = trap;
        Ok(())
    }
}

async fn carry(
    request: http::Request<Incoming>,
    real: std::path::PathBuf,
    trap: Trap,
    tell: mpsc::UnboundedSender<()>,
) -> Result<http::Response<Either<Incoming, Full<Bytes>>>> {
    let path = request.uri().path().to_owned();
    // Once is enough: another agent's calls go through.
    let here = |at: At| {
        let mut trap = trap.lock().ok()?;
        trap.take_if(|(method, when)| path.ends_with(&format!("/{method}")) && *when == at)
    };
    if here(At::Asked).is_some() {
        let _ = tell.send(());
        std::future::pending::<()>().await;
    }
    let stream = UnixStream::connect(&real).await?;
    let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let (mut sender, connection) = client;
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    if here(At::Done).is_some() {
        response.into_body().collect().await?;
        let _ = tell.send(());
        std::future::pending::<()>().await;
        unreachable!("the agent is gone");
    }
    Ok(response.map(Either::Left))
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": Nodes::name(0), "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "settings"}}],
        "containers": [{"name": "main", "image": "steps:v1", "imagePullPolicy": "Always", "args": ["sleep 600000"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "c", "mountPath": "/c"}]}]}})
}

/// Calls of a pod's start, each with the moments at which the agent dies in it; then those of its end.
const STARTS: [(&str, At); 7] = [
    ("PullImage", At::Done),
    ("RunPodSandbox", At::Asked),
    ("RunPodSandbox", At::Done),
    ("CreateContainer", At::Asked),
    ("CreateContainer", At::Done),
    ("StartContainer", At::Asked),
    ("StartContainer", At::Done),
];
const ENDS: [(&str, At); 6] = [
    ("StopContainer", At::Asked),
    ("StopContainer", At::Done),
    ("StopPodSandbox", At::Asked),
    ("StopPodSandbox", At::Done),
    ("RemovePodSandbox", At::Asked),
    ("RemovePodSandbox", At::Done),
];

/// Row: node: an agent that is killed at any step of a pod's life leaves nothing behind: the pod runs once, unrestarted, and goes whole
#[test]
fn a_crash_at_each_step_of_a_pods_life() -> Result<Ended> {
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    let mut nodes = Nodes::join(Servers::start(1)?, 1)?;
    let copy = nodes.servers.dir().join("steps.wasm");
    std::fs::copy(guest_file("steps")?, &copy)?;
    nodes.servers.coracle(0, &["image", "push", &copy.display().to_string(), "steps:v1"])?;
    nodes.servers.kubectl(0, &["create", "configmap", "settings", "--from-literal=color=blue"])?;
    let (socket, real) = (nodes.socket(0), nodes.socket(0).with_extension("real"));
    let mut proxy = Proxy::before(&socket, &real)?;
    let cri = Runtime::new(&format!("unix://{}", real.display()))?;
    nodes.crash_agent(0)?;
    for (index, (method, at)) in STARTS.into_iter().enumerate() {
        let name = format!("p{index}");
        let file = nodes.servers.dir().join("pod.json");
        std::fs::write(&file, pod(&name).to_string())?;
        let create = ["create", "-f", &file.display().to_string()];
        die_at(&runtime, &mut nodes, &mut proxy, (method, at), &create)?;
        runs_once(&runtime, &nodes, &cri, &name)
            .with_context(|| format!("{method} {at:?}\n{}", nodes.logs(0)))?;
    }
    for (index, (method, at)) in ENDS.into_iter().enumerate() {
        let name = format!("p{index}");
        let delete = ["delete", "pod", &name, "--wait=false"];
        die_at(&runtime, &mut nodes, &mut proxy, (method, at), &delete)?;
        eventually("the pod is gone", SOON, || {
            let found =
                nodes.servers.kubectl(0, &["get", "pod", &name, "--ignore-not-found", "-o", "name"])?;
            Ok(found.is_empty())
        })
        .with_context(|| format!("{method} {at:?}\n{}", nodes.logs(0)))?;
    }
    nodes.servers.kubectl(0, &["delete", "pod", "--all", "--timeout=30s"])?;
    nothing_is_left(&runtime, &nodes, &cri)?;
    nodes.end()
}

/// Does something that leads to a call of CRI, and kills the agent in it.
fn die_at(
    runtime: &tokio::runtime::Runtime,
    nodes: &mut Nodes,
    proxy: &mut Proxy,
    step: (&'static str, At),
    kubectl: &[&str],
) -> Result<()> {
    proxy.set(Some(step))?;
    nodes.servers.kubectl(0, kubectl)?;
    let caught = runtime.block_on(async { tokio::time::timeout(SOON, proxy.caught.recv()).await });
    caught
        .with_context(|| format!("{step:?} never came\n{}", nodes.logs(0)))?
        .context("the proxy is gone")?;
    nodes.crash_agent(0)
}

/// One sandbox, one container, never restarted.
fn runs_once(runtime: &tokio::runtime::Runtime, nodes: &Nodes, cri: &Runtime, name: &str) -> Result<()> {
    nodes.servers.kubectl(0, &["wait", "--for=condition=Ready", "--timeout=30s", &format!("pod/{name}")])?;
    let text = nodes.servers.kubectl(0, &["get", "pod", name, "-o", "json"])?;
    let status = serde_json::from_str::<Value>(&text)?["status"]["containerStatuses"][0].take();
    ensure!(status["restartCount"] == 0 && status["lastState"] == json!({}), "{status:#}");
    let labels = HashMap::from([("io.kubernetes.pod.name".to_owned(), name.to_owned())]);
    let containers = runtime.block_on(cri.containers(labels))?;
    ensure!(containers.len() == 1 && containers.iter().all(|c| c.state == 1), "{containers:#?}");
    let all = runtime.block_on(cri.sandboxes())?;
    let own = all.iter().filter(|s| s.metadata.as_ref().is_some_and(|m| m.name == name));
    ensure!(own.count() == 1, "{all:#?}");
    Ok(())
}

/// Counted from outside: the runtime's lists, and the agent's files.
fn nothing_is_left(runtime: &tokio::runtime::Runtime, nodes: &Nodes, cri: &Runtime) -> Result<()> {
    eventually("nothing is left", SOON, || {
        let sandboxes = runtime.block_on(cri.sandboxes())?;
        let containers = runtime.block_on(cri.containers(HashMap::new()))?;
        ensure!(sandboxes.is_empty() && containers.is_empty(), "{sandboxes:#?} {containers:#?}");
        for folder in ["pods", "logs"] {
            let path = nodes.root_dir(0).join(folder);
            let left: Vec<_> = std::fs::read_dir(&path)?.flatten().map(|e| e.file_name()).collect();
            ensure!(left.is_empty(), "{} has {left:?}", path.display());
        }
        Ok(true)
    })
    .with_context(|| nodes.logs(0))
}
