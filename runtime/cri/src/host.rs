//! Keeps a wasm host at hand: adopts the one that lives, starts one where none does, and brings both sides together
//! before anyone else may speak to it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use coracle_wasm::client::{Error as HostFailure, Events, HostClient};
use coracle_wasm::protocol::{Event, State};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long a new host may take until it answers.
const START: Duration = Duration::from_secs(30);
/// How long a call waits for a host that is being started or adopted.
const PATIENCE: Duration = Duration::from_secs(20);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// The socket of the host below a state folder.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("wasm-host.sock")
}

/// What happens when a host comes, speaks and goes.
#[async_trait]
pub trait Listener: Send + Sync {
    /// A host answers; nobody else speaks to it until this returns.
    async fn attached(&self, client: &HostClient) -> anyhow::Result<()>;
    /// It says something. Called in order.
    async fn event(&self, client: &HostClient, event: Event);
}

/// A client that stays usable while this is held: the next host is not brought in before.
pub struct Lease(OwnedRwLockReadGuard<Option<HostClient>, HostClient>);

impl std::ops::Deref for Lease {
    type Target = HostClient;

    fn deref(&self) -> &HostClient {
        &self.0
    }
}

/// The way to the host. Clones share it.
#[derive(Clone)]
pub struct Host {
    slot: Arc<RwLock<Option<HostClient>>>,
    attached: watch::Sender<bool>,
    /// Where it listens; known once one was attached.
    path: Arc<std::sync::OnceLock<PathBuf>>,
    /// The process that was attached last; 0: none yet.
    pid: Arc<AtomicU32>,
}

/// Where the host is and how it is started.
#[derive(Clone, Debug)]
pub struct Settings {
    pub state_dir: PathBuf,
    /// What `--socket S --state-dir D` is appended to.
    pub command: Vec<OsString>,
    /// The control group that a new host is put into; none: the one of this process.
    pub group: Option<crate::isolated::Group>,
}

impl Host {
    /// A way to a host that is not there yet.
    pub fn new() -> Self {
        Self {
            slot: Arc::default(),
            attached: watch::Sender::new(false),
            path: Arc::default(),
            pid: Arc::default(),
        }
    }

    /// Whether a host is attached now.
    pub fn is_attached(&self) -> bool {
        *self.attached.borrow()
    }

    /// The socket of the host that is attached, for a connection of one's own.
    pub fn socket(&self) -> Option<PathBuf> {
        self.path.get().filter(|_| self.is_attached()).cloned()
    }

    /// Kills the process that was attached last, unless it has ended already. Nothing in it is stopped in order.
    pub fn kill(&self, state_dir: &Path) {
        let pid = nix::unistd::Pid::from_raw(self.pid.load(Ordering::Relaxed).cast_signed());
        // Who holds the life line is the process that was attached, as long as nobody starts another one.
        if pid.as_raw() > 0 && lives(state_dir) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// The host's client; waits a while for one.
    pub async fn client(&self) -> Result<Lease, Status> {
        let wait = async {
            let mut attached = self.attached.subscribe();
            loop {
                let guard = self.slot.clone().read_owned().await;
                if let Ok(mapped) = OwnedRwLockReadGuard::try_map(guard, Option::as_ref) {
                    return Lease(mapped);
                }
                // The sender lives in `self`, so that this cannot fail.
                let _ = attached.wait_for(|a| *a).await;
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.map_err(|_| {
            Status::unavailable(
                "the wasm host process does not answer; see wasm-host.log in the state folder",
            )
        })
    }

    /// Keeps a host attached until cancelled. The host itself goes on when this ends.
    pub async fn supervise(self, settings: Settings, listener: Arc<dyn Listener>, stop: CancellationToken) {
        let mut backoff = Duration::from_millis(50);
        let _ = self.path.set(socket(&settings.state_dir));
        loop {
            let attach = async {
                let (client, mut events, pid) = connect_or_spawn(&settings).await?;
                self.pid.store(pid, Ordering::Relaxed);
                let mut slot = self.slot.write().await;
                listener.attached(&client).await?;
                *slot = Some(client.clone());
                drop(slot);
                self.attached.send_replace(true);
                let since = tokio::time::Instant::now();
                while let Some(event) = events.next().await {
                    listener.event(&client, event).await;
                }
                tracing::warn!("the wasm host process is gone, or hung up");
                anyhow::Ok(since.elapsed())
            };
            let result = tokio::select! {
                result = attach => result,
                () = stop.cancelled() => return,
            };
            self.attached.send_replace(false);
            self.slot.write().await.take();
            match result {
                Ok(lasted) if lasted > Duration::from_secs(10) => backoff = Duration::from_millis(50),
                Ok(_) => {}
                Err(error) => tracing::error!("attaching a wasm host: {error:#}"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = stop.cancelled() => return,
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

async fn connect_or_spawn(settings: &Settings) -> anyhow::Result<(HostClient, Events, u32)> {
    let client = match HostClient::connect(&socket(&settings.state_dir)).await {
        Ok(client) if is_outdated(&client).await? => {
            tracing::info!("the wasm host that lives has another engine and runs nothing: replacing it");
            shutdown(&settings.state_dir, Duration::ZERO).await?;
            start(settings).await?
        }
        Ok(client) => client,
        Err(error @ HostFailure::Version { pid, .. }) => {
            tracing::warn!(
                %error,
                pid,
                "the wasm host that lives is of another build, whose protocol this one does not speak: it is ended, and its \
                 containers with it, and another one is started"
            );
            end_stranger(&settings.state_dir, pid).await?;
            start(settings).await?
        }
        Err(error) => {
            tracing::info!(%error, "no wasm host lives: starting one");
            start(settings).await?
        }
    };
    let info = client.inspect().await?;
    tracing::info!(pid = info.pid, version = info.version, "wasm host attached");
    let events = client.subscribe().await?;
    Ok((client, events, info.pid))
}

/// Ends a host that cannot be spoken to: by SIGTERM, which stops its containers in order, and then by force.
async fn end_stranger(state_dir: &Path, pid: Option<i32>) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill};
    let pid = pid.filter(|pid| *pid > 0).context("the kernel does not say which process it is")?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // Who holds the life line is the process that listens.
        if lives(state_dir) {
            let _ = kill(nix::unistd::Pid::from_raw(pid), signal);
        }
        for _ in 0..2 {
            if ended(state_dir).await {
                return Ok(());
            }
        }
    }
    anyhow::bail!("process {pid}, a wasm host of another build, does not end")
}

/// Whether a host of another engine can be replaced without stopping anything.
async fn is_outdated(client: &HostClient) -> anyhow::Result<bool> {
    let (theirs, own) =
        (client.inspect().await?.engine_fingerprint, coracle_wasm::engine::engine_fingerprint());
    if theirs == own {
        return Ok(false);
    }
    let containers = client.list().await?.containers;
    let idle = containers.iter().all(|c| matches!(c.state, State::Exited { .. }));
    if !idle {
        tracing::warn!(
            theirs,
            own,
            "the wasm host that lives has another engine: what runs goes on, new containers fail until all have ended \
             and the service is started again"
        );
    }
    Ok(idle)
}

async fn start(settings: &Settings) -> anyhow::Result<HostClient> {
    spawn(settings, &socket(&settings.state_dir))?;
    wait_for(&settings.state_dir).await
}

fn spawn(settings: &Settings, socket: &Path) -> anyhow::Result<()> {
    let alive = life_line(&settings.state_dir).context("opening wasm-host.alive")?;
    match alive.try_lock() {
        Ok(()) => {}
        // One is being started already, by a service that was killed meanwhile.
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(error).context("locking wasm-host.alive"),
    }
    let (program, first) = settings.command.split_first().context("no command for the wasm host is set")?;
    let log = settings.state_dir.join("wasm-host.log");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .with_context(|| format!("opening {}", log.display()))?;
    let mut command = tokio::process::Command::new(program);
    command.args(first).arg("--socket").arg(socket).arg("--state-dir").arg(&settings.state_dir);
    command.stdin(alive).stdout(log.try_clone()?).stderr(log).current_dir("/");
    // A trap's text goes into the guest's log: the host's own stack and paths do not belong there.
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    let entries = settings.group.as_ref().map(crate::isolated::Group::make).unwrap_or_default();
    // SAFETY: between fork and exec only setsid and write are called, which are async-signal-safe. A session of its own
    // keeps signals to our terminal and process group away from the host.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid().map_err(std::io::Error::from)?;
            // Into its control groups, before it takes any memory.
            entries.iter().try_for_each(|group| nix::unistd::write(group, b"0").map(drop))?;
            Ok(())
        });
    }
    let mut child = command.spawn().with_context(|| format!("starting {program:?}"))?;
    drop(command);
    // Reaps it, should it end while this process lives. It is not killed with us.
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) => tracing::warn!(%status, "the wasm host process ended"),
            Err(error) => tracing::warn!(%error, "waiting for the wasm host process"),
        }
    });
    Ok(())
}

async fn wait_for(state_dir: &Path) -> anyhow::Result<HostClient> {
    let socket = socket(state_dir);
    let deadline = tokio::time::Instant::now() + START;
    let mut pause = Duration::from_millis(5);
    loop {
        match HostClient::connect(&socket).await {
            Ok(client) => return Ok(client),
            Err(error) if !lives(state_dir) => {
                return Err(error).context("the wasm host ended before it listened; see wasm-host.log");
            }
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error).context("the wasm host did not start within 30 s; see wasm-host.log");
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// The lock that a host inherits as its stdin, and so holds from the moment it exists until it ends.
fn life_line(state_dir: &Path) -> std::io::Result<File> {
    let path = state_dir.join("wasm-host.alive");
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether a host lives; it may not listen yet.
pub fn lives(state_dir: &Path) -> bool {
    life_line(state_dir).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Waits until the host of this state folder has ended; false: it has not within 5 s.
pub async fn ended(state_dir: &Path) -> bool {
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    while lives(state_dir) {
        if tokio::time::Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// Stops every container within `grace` and then the host of this state folder. Fine when none lives.
pub async fn shutdown(state_dir: &Path, grace: Duration) -> anyhow::Result<()> {
    let Ok(state_dir) = state_dir.canonicalize() else { return Ok(()) };
    let socket = socket(&state_dir);
    let client = match HostClient::connect(&socket).await {
        Ok(client) => client,
        Err(HostFailure::Version { pid, .. }) => return end_stranger(&state_dir, pid).await,
        Err(_) if lives(&state_dir) => wait_for(&state_dir).await?,
        Err(_) => return Ok(()),
    };
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    match client.shutdown(grace_ms).await {
        Ok(()) | Err(coracle_wasm::client::Error::Disconnected) => {}
        Err(error) => return Err(error.into()),
    }
    tokio::time::timeout(grace + Duration::from_secs(5), client.closed())
        .await
        .context("the wasm host did not end within its grace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_that_cannot_be_spoken_to_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let alive = life_line(dir.path()).unwrap();
        alive.lock().unwrap();
        let mut stranger = std::process::Command::new("sleep").arg("600").stdin(alive).spawn().unwrap();
        assert!(lives(dir.path()));
        assert!(end_stranger(dir.path(), None).await.is_err());
        end_stranger(dir.path(), Some(stranger.id().cast_signed())).await.unwrap();
        assert!(!lives(dir.path()));
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(stranger.wait().unwrap().signal(), Some(nix::sys::signal::Signal::SIGTERM as i32));
    }
}
