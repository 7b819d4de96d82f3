//! Starts a host in a temporary directory and makes pods in it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use coracle_wasm::{
    client::{Error, HostClient},
    compile,
    host::{self, HostOptions},
    protocol::{ContainerSpec, ContainerStatus, Mount, SandboxSpec, State},
};
use http_body_util::BodyExt;

pub type Result<T = (), E = anyhow::Error> = std::result::Result<T, E>;

/// How long a test waits for what should come soon.
pub const SOON: Duration = Duration::from_secs(20);

/// A running host.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub client: HostClient,
}

/// Compiled guests are kept for the test process.
fn artifacts() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().expect("a temporary directory")).path()
}

/// A built guest, compiled once.
pub fn artifact(name: &str) -> PathBuf {
    static COMPILING: Mutex<()> = Mutex::new(());
    let _one = COMPILING.lock().unwrap_or_else(|e| e.into_inner());
    let out = artifacts().join(format!("{name}.cwasm"));
    if compile::describe(&out).is_none() {
        let built = format!("{}/../../target/guests/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
        let wasm =
            std::fs::read(&built).unwrap_or_else(|e| panic!("{built}: {e}; `cargo xtask guests` builds it"));
        compile::precompile(&wasm, &out).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    out
}

/// An address that no other test uses.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(2);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let [c, d] = (n as u16).to_be_bytes();
    Ipv4Addr::new(127, 70, (std::process::id() % 32) as u8 * 8 + c, d)
}

/// A Service address that no other test uses.
pub fn service_address() -> Ipv4Addr {
    let [_, _, c, d] = address().octets();
    Ipv4Addr::new(127, 97, c, d)
}

impl Host {
    pub async fn start() -> Result<Host> {
        let dir = tempfile::tempdir()?;
        let client = start_in(dir.path()).await?;
        Ok(Host { dir, client })
    }

    /// A pod of this name at a new address.
    pub async fn pod(&self, name: &str) -> Result<SandboxSpec> {
        let spec = self.pod_spec(name);
        self.client.create_sandbox(spec.clone()).await?;
        Ok(spec)
    }

    /// The specification of such a pod, to be changed by a test.
    pub fn pod_spec(&self, name: &str) -> SandboxSpec {
        SandboxSpec {
            id: format!("sandbox-{name}"),
            name: name.into(),
            namespace: "default".into(),
            uid: "uid".into(),
            hostname: name.into(),
            pod_ip: address(),
            netns: None,
            dns: Default::default(),
            annotations: BTreeMap::new(),
        }
    }

    pub fn log_path(&self, pod: &SandboxSpec, name: &str) -> PathBuf {
        self.dir.path().join(format!("logs/{}/{name}.log", pod.name))
    }

    /// A container's specification, to be changed by a test.
    pub fn spec(&self, pod: &SandboxSpec, name: &str, guest: &str, args: &[&str]) -> ContainerSpec {
        let mut all = vec![guest.to_owned()];
        all.extend(args.iter().map(|a| a.to_string()));
        ContainerSpec {
            id: format!("{}-{name}", pod.id),
            sandbox_id: pod.id.clone(),
            name: name.into(),
            attempt: 0,
            artifact: artifact(guest),
            args: all,
            env: vec![("POD".into(), pod.name.clone())],
            working_dir: String::new(),
            mounts: Vec::new(),
            http_ports: Vec::new(),
            log_path: self.log_path(pod, name),
            memory_limit_bytes: None,
            cpu_millis: None,
            fresh_instance: false,
            stdin: false,
            stdin_once: false,
            capabilities: Default::default(),
            links: Vec::new(),
            linked: false,
        }
    }

    pub async fn start_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, Error> {
        let id = spec.id.clone();
        self.client.create_container(spec).await?;
        self.client.start_container(&id).await
    }

    /// Runs a command to its end in a pod of its own; its state and what it printed.
    pub async fn run(&self, name: &str, args: &[&str]) -> Result<(State, String)> {
        let pod = self.pod(name).await?;
        self.run_in(&pod, self.spec(&pod, "main", "probe", args)).await
    }

    pub async fn run_in(&self, pod: &SandboxSpec, spec: ContainerSpec) -> Result<(State, String)> {
        let (id, name) = (spec.id.clone(), spec.name.clone());
        self.start_container(spec).await?;
        let state = self.ended(&id).await?;
        Ok((state, self.printed(pod, &name)?))
    }

    pub async fn state(&self, id: &str) -> Result<State> {
        let listing = self.client.list().await?;
        let found = listing.containers.into_iter().find(|c| c.spec.id == id);
        Ok(found.ok_or_else(|| anyhow::anyhow!("no container {id}"))?.state)
    }

    /// Waits for the end of a container.
    pub async fn ended(&self, id: &str) -> Result<State> {
        let wait = async {
            loop {
                let state = self.state(id).await?;
                if matches!(state, State::Exited { .. }) {
                    return Ok(state);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, wait).await?
    }

    /// Waits until a log has these words: it is written after the answer.
    pub async fn prints(&self, pod: &SandboxSpec, name: &str, words: &[&str]) -> Result {
        let end = tokio::time::Instant::now() + SOON;
        loop {
            let printed = self.printed(pod, name).unwrap_or_default();
            if words.iter().all(|word| printed.contains(word)) {
                return Ok(());
            }
            anyhow::ensure!(tokio::time::Instant::now() < end, "no {words:?} in {printed}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The content of a log without times and tags.
    pub fn printed(&self, pod: &SandboxSpec, name: &str) -> Result<String> {
        let text = std::fs::read_to_string(self.log_path(pod, name))?;
        let content = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned();
        Ok(text.lines().map(content).collect::<Vec<_>>().join("\n"))
    }
}

/// Starts a host there, and connects to it.
pub async fn start_in(dir: &Path) -> Result<HostClient> {
    let socket = dir.join("host.sock");
    let serving = tokio::spawn(host::serve(HostOptions::new(&socket, dir.join("state"))));
    for _ in 0..500 {
        if let Ok(client) = HostClient::connect(&socket).await {
            return Ok(client);
        }
        if serving.is_finished() {
            serving.await??;
            anyhow::bail!("the host ended");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the host did not listen")
}

pub fn mount(host: &Path, guest: &str, read_only: bool) -> Mount {
    Mount { host_path: host.into(), guest_path: guest.into(), read_only }
}

/// The exit code and reason of a state.
pub fn exit(state: &State) -> (i32, &str) {
    match state {
        State::Exited { exit_code, reason, .. } => (*exit_code, reason),
        _ => (-1, "not exited"),
    }
}

/// One request on a connection of its own.
pub async fn get(to: SocketAddrV4, path: &str) -> Result<(u16, String)> {
    let (status, body, _) = Connection::open(to).await?.get(path).await?;
    Ok((status, body))
}

/// A client's connection.
pub struct Connection {
    sender: hyper::client::conn::http1::SendRequest<http_body_util::Empty<bytes::Bytes>>,
}

impl Connection {
    pub async fn open(to: SocketAddrV4) -> Result<Connection> {
        let stream = tokio::net::TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let io = hyper_util::rt::TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Connection { sender })
    }

    /// Status, body, and whether the connection stays open.
    pub async fn get(&mut self, path: &str) -> Result<(u16, String, bool)> {
        let request = http::Request::get(path).header("host", "test").body(Default::default())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let open = response.headers().get("connection").is_none_or(|c| c != "close");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned(), open))
    }
}
