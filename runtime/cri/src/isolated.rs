//! Handler `wasm-isolated`: pods with a host process of their own.
//!
//! Such a host is the same program, with a folder of its own below `isolated/`, a filter of system calls and, where this
//! process may make one, a control group. It lives as long as its sandbox is ready: when it dies it is started anew, when
//! the service comes back it is adopted, and when the sandbox is stopped it is ended.
//!
//! Further shared hosts (see [`further`]) are kept in the same way.

mod further;
mod group;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri_api::v1;
use coracle_wasm::client::HostClient;
use coracle_wasm::protocol::{ContainerStats, Event, Measured, State};
pub use group::Group;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::host::{self, Host, Lease, Listener, Settings};
use crate::record::SandboxRecord;
use crate::service::{Service, refused};
use crate::state::Filter;

/// The runtime handler.
pub const HANDLER: &str = "wasm-isolated";
/// What the host's command line ends with.
const FLAG: &str = "--isolated";
/// The folder of all of them.
const FOLDER: &str = "isolated";
/// How many digits of a sandbox's id name its folder: paths of sockets are short.
const DIGITS: usize = 12;
/// How long an isolated host may take to answer a question that is put to all hosts.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one may take to end when it is told to, before it is killed.
const OBEY: Duration = Duration::from_secs(7);

/// Hosts of one pod each, and further shared ones, by their keys.
#[derive(Default)]
pub struct Isolated {
    hosts: Mutex<HashMap<String, Own>>,
    further: further::Further,
    /// How hosts are started; set once the service serves.
    settings: OnceLock<Settings>,
    /// Ends the supervision of all of them, not the hosts.
    stop: CancellationToken,
}

struct Own {
    host: Host,
    stop: CancellationToken,
    supervision: JoinHandle<()>,
}

/// The folder of a sandbox's own host.
pub fn folder(state_dir: &Path, sandbox: &str) -> PathBuf {
    state_dir.join(FOLDER).join(sandbox.get(..DIGITS).unwrap_or(sandbox))
}

/// The folders of the isolated and the further hosts that live, or have lived, below a state folder.
pub fn folders(state_dir: &Path) -> Vec<PathBuf> {
    let entries = [FOLDER, further::FOLDER].map(|folder| std::fs::read_dir(state_dir.join(folder)));
    entries.into_iter().flatten().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What the host of a sandbox is known by: the sandbox's id, or the number of a further shared host; `None`: it is in the
/// first shared one.
pub fn key(record: &SandboxRecord) -> Option<String> {
    match (is_isolated(record), record.host) {
        (true, _) => Some(record.id.clone()),
        (false, 0) => None,
        (false, number) => Some(further::key(number)),
    }
}

fn folder_of(state_dir: &Path, record: &SandboxRecord) -> PathBuf {
    match is_isolated(record) {
        true => folder(state_dir, &record.id),
        false => further::folder(state_dir, record.host),
    }
}

/// Whether this sandbox has a host of its own.
pub fn is_isolated(record: &SandboxRecord) -> bool {
    record.runtime_handler == HANDLER
}

impl Isolated {
    fn get(&self, sandbox: &str) -> Option<Host> {
        self.hosts.lock().get(sandbox).map(|own| own.host.clone())
    }

    fn all(&self) -> Vec<Host> {
        self.hosts.lock().values().map(|own| own.host.clone()).collect()
    }

    /// Lets go of all hosts, which live on.
    pub async fn let_go(&self) {
        self.stop.cancel();
        let all: Vec<_> = self.hosts.lock().drain().map(|(_, own)| own.supervision).collect();
        futures::future::join_all(all).await;
    }
}

/// Who hears of a host that is not the first shared one.
struct OfOne {
    service: Arc<Service>,
    key: String,
}

#[async_trait]
impl Listener for OfOne {
    async fn attached(&self, client: &HostClient) -> anyhow::Result<()> {
        self.service.bring_together(client, Some(&self.key)).await
    }

    async fn event(&self, client: &HostClient, event: Event) {
        self.service.hear(client, event).await;
    }
}

impl Service {
    /// The host that a sandbox is in.
    ///
    /// # Errors
    /// FailedPrecondition when it had one of its own, which was ended with it.
    pub fn host_of(&self, sandbox: &str) -> Result<Host, Status> {
        let Some(key) = self.state.sandbox(sandbox).as_ref().and_then(key) else {
            return Ok(self.host.clone());
        };
        let gone = || Status::failed_precondition(format!("sandbox {sandbox} is not ready"));
        self.isolated.get(&key).ok_or_else(gone)
    }

    /// Takes up the isolated hosts of ready sandboxes, and ends those that nobody remembers.
    pub async fn adopt_isolated(self: &Arc<Self>, settings: Settings, host_mappings: Option<u64>) {
        let state_dir = settings.state_dir.clone();
        let _ = self.isolated.settings.set(settings);
        let (sandboxes, _) = self.state.snapshot();
        self.isolated.further.restore(host_mappings, &sandboxes);
        // A stopped sandbox still lies in its further host, where it is removed from.
        let kept = |s: &&SandboxRecord| key(s).is_some() && (s.ready || !is_isolated(s));
        let ours: Vec<_> = sandboxes.iter().filter(kept).collect();
        let known: HashSet<PathBuf> = ours.iter().map(|s| folder_of(&state_dir, s)).collect();
        for record in ours {
            if let Err(error) = self.start_own(record) {
                tracing::error!(sandbox = record.id, "taking up an isolated host: {}", error.message());
            }
        }
        let strangers = folders(&state_dir).into_iter().filter(|dir| !known.contains(dir));
        futures::future::join_all(strangers.map(async |dir| {
            tracing::info!(folder = %dir.display(), "ending an isolated host that nobody remembers");
            clear(&dir, None).await;
        }))
        .await;
    }

    /// Has a host of its own for this sandbox from now on; it may not answer yet. Again is fine.
    pub fn start_own(self: &Arc<Self>, record: &SandboxRecord) -> Result<Host, Status> {
        let settings = self.isolated.settings.get();
        let mut settings =
            settings.cloned().ok_or_else(|| Status::unavailable("the service is being started"))?;
        let Some(key) = key(record) else { return Ok(self.host.clone()) };
        match is_isolated(record) {
            true => {
                settings.group = Group::of(record);
                settings.command.push(FLAG.into());
            }
            false => settings.command.push(further::FLAG.into()),
        }
        settings.state_dir = folder_of(&settings.state_dir, record);
        crate::server::make_dir(&settings.state_dir).map_err(|e| Status::internal(format!("{e:#}")))?;
        let mut hosts = self.isolated.hosts.lock();
        if let Some(own) = hosts.get(&key) {
            return Ok(own.host.clone());
        }
        let (host, stop) = (Host::new(), self.isolated.stop.child_token());
        let listener = Arc::new(OfOne { service: self.clone(), key: key.clone() });
        let supervision = host.clone().supervise(settings, listener, stop.clone());
        let tables = follow_table(self.clone(), host.clone(), stop.clone());
        let supervision = tokio::spawn(async move { tokio::join!(supervision, tables).0 });
        hosts.insert(key, Own { host: host.clone(), stop, supervision });
        Ok(host)
    }

    /// Before a container of an isolated sandbox may use this: the group of the host has room for it.
    pub fn make_room(
        &self,
        sandbox: &SandboxRecord,
        container: &str,
        resources: Option<&v1::LinuxContainerResources>,
    ) {
        if !is_isolated(sandbox) {
            return;
        }
        let by = Filter { sandbox_id: &sandbox.id, ..Filter::default() };
        let others = self.state.containers(&by).into_iter().filter(|other| {
            other.id != container && !other.linux && !matches!(other.state, State::Exited { .. })
        });
        let all: Vec<_> = others
            .map(|other| other.config.linux.and_then(|l| l.resources).unwrap_or_default())
            .chain([resources.cloned().unwrap_or_default()])
            .collect();
        let Some(group) = Group::of(sandbox).map(|group| group.with_room_for(all.iter())) else { return };
        if let Err(error) = group.change() {
            tracing::warn!(sandbox = sandbox.id, %error, "giving an isolated host other limits");
        }
    }

    /// Ends the host of this sandbox, with whatever runs in it, and removes its files. Again is fine.
    pub async fn end_own(&self, record: &SandboxRecord) {
        let Some(settings) = self.isolated.settings.get() else { return };
        let Some(key) = key(record) else { return };
        let own = self.isolated.hosts.lock().remove(&key);
        let host = match own {
            Some(own) => {
                own.stop.cancel();
                let _ = own.supervision.await;
                Some(own.host)
            }
            None => None,
        };
        clear(&folder_of(&settings.state_dir, record), host.as_ref()).await;
        if let Some(group) = Group::of(record).filter(|_| is_isolated(record)) {
            group.remove();
        }
    }

    /// What the containers of isolated hosts use: of these, or of all when `ids` is empty. Hosts that do not answer at once
    /// are passed over.
    pub async fn measure_isolated(&self, ids: &[String]) -> Vec<ContainerStats> {
        let asked = self.attached_isolated().await;
        let answers = asked.iter().map(|host| tokio::time::timeout(PATIENCE, host.stats(ids)));
        futures::future::join_all(answers).await.into_iter().flatten().flatten().flatten().collect()
    }

    /// What the guests of isolated hosts measure of themselves. Hosts that do not answer at once are passed over.
    pub async fn series_isolated(&self) -> Vec<Measured> {
        let asked = self.attached_isolated().await;
        let answers = asked.iter().map(|host| tokio::time::timeout(PATIENCE, host.series()));
        futures::future::join_all(answers).await.into_iter().flatten().flatten().collect()
    }

    async fn attached_isolated(&self) -> Vec<Lease> {
        let hosts = self.isolated.all();
        let clients = hosts.iter().map(|host| tokio::time::timeout(PATIENCE, host.client()));
        futures::future::join_all(clients).await.into_iter().flatten().flatten().collect()
    }
}

/// Gives a host every Service table that comes; the one that is there already it gets when it is attached.
async fn follow_table(service: Arc<Service>, host: Host, stop: CancellationToken) {
    let mut tables = service.table.subscribe();
    loop {
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let Some(table) = tables.borrow_and_update().clone() else { continue };
        let given = async {
            let client = host.client().await?;
            client.set_services((*table).clone()).await.map_err(refused)
        };
        let given = tokio::select! {
            given = given => given,
            () = stop.cancelled() => return,
        };
        if let Err(error) = given {
            tracing::error!("giving an isolated host the Service table: {}", error.message());
            tables.mark_changed();
        }
    }
}

/// Ends the host of a folder, killing it when it does not do as it is told, and removes the folder.
async fn clear(dir: &Path, host: Option<&Host>) {
    let told = tokio::time::timeout(OBEY, host::shutdown(dir, Duration::ZERO)).await;
    if let Err(words) =
        told.map_err(|_| "it does not answer".to_owned()).and_then(|r| r.map_err(|e| format!("{e:#}")))
    {
        tracing::warn!(folder = %dir.display(), "ending an isolated host: {words}");
        if let Some(host) = host {
            host.kill(dir);
        }
    }
    if !host::ended(dir).await {
        tracing::error!(folder = %dir.display(), "an isolated host does not end");
        return;
    }
    match tokio::fs::remove_dir_all(dir).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(folder = %dir.display(), %error, "removing the folder of an isolated host");
        }
        _ => {}
    }
}
