//! The sandboxes and containers of a host, and what each request does to them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use parking_lot::RwLock;
use tokio::sync::broadcast;

use super::{HostOptions, done};
use crate::{
    container::{Container, now_ns},
    engine,
    network::PodNetwork,
    protocol::{
        ContainerSpec, ContainerStatus, ErrorCode, Event, HostError, HostInfo, Listing, Measured, Request,
        Response, SandboxSpec,
    },
    routes::Ranges,
    sandbox::Sandbox,
    services::Services,
};

/// The most containers of a host.
const MAX_CONTAINERS: usize = 20_000;

/// Everything that a host process holds.
pub(super) struct Registry {
    sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
    containers: RwLock<HashMap<String, Arc<Container>>>,
    pub services: Services,
    pub events: broadcast::Sender<Event>,
    ranges: Ranges,
    started_at_ns: i64,
    pooling: bool,
}

impl Registry {
    pub fn new(options: &HostOptions, pooling: bool) -> Registry {
        Registry {
            sandboxes: RwLock::default(),
            containers: RwLock::default(),
            services: Services::new(
                options.state_dir.join("services"),
                options.ranges,
                !options.isolated && !options.further,
            ),
            events: broadcast::channel(4096).0,
            ranges: options.ranges,
            started_at_ns: now_ns(),
            pooling,
        }
    }

    /// Does what a client asks.
    pub async fn call(&self, request: Request) -> Result<Response, HostError> {
        match request {
            Request::Inspect => Ok(Response::Info(self.info())),
            Request::CreateSandbox(spec) => self.create_sandbox(spec).map(|()| done()),
            Request::StopSandbox { id } => {
                self.stop_sandbox(&id).await?;
                Ok(done())
            }
            Request::RemoveSandbox { id } => {
                self.remove_sandbox(&id).await;
                Ok(done())
            }
            Request::CreateContainer(spec) => self.create_container(spec).await.map(Response::Created),
            Request::StartContainer { id } => self.start(&id).await.map(Response::Container),
            Request::StopContainer { id, grace_ms } => {
                let container = self.container(&id)?;
                container.stop(Duration::from_millis(grace_ms)).await;
                Ok(Response::Container(container.status()))
            }
            Request::RemoveContainer { id } => {
                self.remove_container(&id).await;
                Ok(done())
            }
            Request::List => Ok(Response::Listing(self.list())),
            Request::Stats { ids } => {
                let ids: HashSet<String> = ids.into_iter().collect();
                let asked = |c: &&Arc<Container>| ids.is_empty() || ids.contains(&c.spec().id);
                let all = self.all();
                let running = all.iter().filter(asked).filter(|c| c.runs());
                Ok(Response::Stats(running.map(|c| c.stats()).collect()))
            }
            Request::Series => {
                let all = self.all();
                let running = all.iter().filter(|c| c.runs());
                let series =
                    running.map(|c| (c.spec().id.clone(), c.series())).filter(|(_, s)| !s.is_empty());
                let mut measured = Measured { series: series.collect(), ..Measured::default() };
                measured.fit(Measured::MAX_BYTES);
                Ok(Response::Series(measured))
            }
            Request::ReopenLog { id } => {
                self.container(&id)?.reopen_log().await?;
                Ok(done())
            }
            Request::UpdateContainer { id, memory_limit_bytes, cpu_millis } => {
                self.container(&id)?.update(memory_limit_bytes, cpu_millis)?;
                Ok(done())
            }
            Request::SetServices(table) => Ok(Response::Services(self.services.set(table).await)),
            Request::Subscribe => Ok(done()),
            Request::Exec { .. } | Request::Attach { .. } => {
                Err(HostError::new(ErrorCode::Invalid, "streams need a connection of their own"))
            }
            Request::Shutdown { grace_ms } => {
                self.shutdown(Duration::from_millis(grace_ms)).await;
                Ok(done())
            }
        }
    }

    fn info(&self) -> HostInfo {
        HostInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            engine_fingerprint: engine::engine_fingerprint(),
            started_at_ns: self.started_at_ns,
            services_generation: self.services.directory.load().generation,
            pooling: self.pooling,
            mappings: mappings(),
            max_mappings: max_mappings(),
        }
    }

    fn create_sandbox(&self, spec: SandboxSpec) -> Result<(), HostError> {
        let invalid = |words: String| Err(HostError::new(ErrorCode::Invalid, words));
        // In 127/8 an address outside the range is the host's own. Elsewhere a CNI configuration may choose its own range.
        let loopback = spec.pod_ip.is_loopback() || self.ranges.pods.base.is_loopback();
        if loopback && !self.ranges.pods.contains(spec.pod_ip) {
            return invalid(format!(
                "the address {} of pod {}/{} is outside the pod range {}",
                spec.pod_ip, spec.namespace, spec.name, self.ranges.pods
            ));
        }
        let mut sandboxes = self.sandboxes.write();
        if sandboxes.contains_key(&spec.id) {
            let words = format!("sandbox {} is there already", spec.id);
            return Err(HostError::new(ErrorCode::AlreadyExists, words));
        }
        let holder = sandboxes.values().find(|s| s.spec.pod_ip == spec.pod_ip && !s.stopped());
        if let Some(holder) = holder {
            return invalid(format!("the address {} is pod {}'s", spec.pod_ip, holder.pod()));
        }
        let network =
            PodNetwork::new(&spec, self.ranges, self.services.directory.clone()).map_err(|error| {
                let words = format!("the network namespace of pod {}/{}: {error}", spec.namespace, spec.name);
                HostError::new(ErrorCode::Internal, words)
            })?;
        let id = spec.id.clone();
        sandboxes.insert(id, Arc::new(Sandbox::new(spec, network, now_ns())));
        Ok(())
    }

    async fn stop_sandbox(&self, id: &str) -> Result<(), HostError> {
        let sandbox = self.sandbox(id)?;
        sandbox.stop();
        join_all(self.containers_of(id).iter().map(|c| c.stop(Duration::ZERO))).await;
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) {
        if self.stop_sandbox(id).await.is_ok() {
            self.containers.write().retain(|_, c| c.spec().sandbox_id != id);
            self.sandboxes.write().remove(id);
        }
    }

    async fn create_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, HostError> {
        let sandbox = self.sandbox(&spec.sandbox_id)?;
        if sandbox.stopped() {
            let words = format!("the sandbox of pod {} is stopped", sandbox.pod());
            return Err(HostError::new(ErrorCode::FailedPrecondition, words));
        }
        if self.containers.read().len() >= MAX_CONTAINERS {
            let words = format!("the host holds {MAX_CONTAINERS} containers, which is its limit");
            return Err(HostError::new(ErrorCode::ResourceExhausted, words));
        }
        let taken =
            |id: &str| HostError::new(ErrorCode::AlreadyExists, format!("container {id} is there already"));
        if self.containers.read().contains_key(&spec.id) {
            return Err(taken(&spec.id));
        }
        let id = spec.id.clone();
        let container = Arc::new(Container::create(spec, sandbox).await?);
        let status = container.status();
        let mut containers = self.containers.write();
        if containers.contains_key(&id) {
            return Err(taken(&id));
        }
        containers.insert(id, container);
        Ok(status)
    }

    async fn start(&self, id: &str) -> Result<ContainerStatus, HostError> {
        let container = self.container(id)?;
        let _turn = container.turn.lock().await;
        let (events, spec) = (self.events.clone(), container.spec());
        let (id, sandbox_id) = (spec.id.clone(), spec.sandbox_id.clone());
        let stopped = move |state| {
            let _ = events.send(Event::ContainerStopped { id, sandbox_id, state });
        };
        container.start(&self.services.handlers, stopped).await?;
        Ok(container.status())
    }

    async fn remove_container(&self, id: &str) {
        if let Ok(container) = self.container(id) {
            container.stop(Duration::ZERO).await;
            self.containers.write().remove(id);
        }
    }

    /// Stops every container within the grace.
    pub async fn shutdown(&self, grace: Duration) {
        for sandbox in self.sandboxes.read().values() {
            sandbox.stop();
        }
        join_all(self.all().iter().map(|c| c.stop(grace))).await;
    }

    fn list(&self) -> Listing {
        let sandboxes = self.sandboxes.read().values().map(|s| s.status()).collect();
        let containers = self.containers.read().values().map(|c| c.status()).collect();
        Listing { sandboxes, containers }
    }

    fn all(&self) -> Vec<Arc<Container>> {
        self.containers.read().values().cloned().collect()
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let containers = self.containers.read();
        containers.values().filter(|c| c.spec().sandbox_id == sandbox).cloned().collect()
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, HostError> {
        let found = self.sandboxes.read().get(id).cloned();
        found.ok_or_else(|| HostError::new(ErrorCode::NotFound, format!("no sandbox {id}")))
    }

    pub fn container(&self, id: &str) -> Result<Arc<Container>, HostError> {
        let found = self.containers.read().get(id).cloned();
        found.ok_or_else(|| HostError::new(ErrorCode::NotFound, format!("no container {id}")))
    }
}

/// How many memory mappings this process has; a pooled instance takes about six.
fn mappings() -> u64 {
    use std::io::Read;
    let Ok(mut maps) = std::fs::File::open("/proc/self/maps") else { return 0 };
    let (mut buffer, mut count) = (vec![0; 64 << 10], 0);
    while let Ok(read) = maps.read(&mut buffer) {
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
        count += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    count
}

/// How many the kernel allows a process; its default where it does not say.
fn max_mappings() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_530)
}
