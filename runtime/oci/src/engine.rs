//! Pods and containers of Linux images, put together: what the CRI service calls.

mod pods;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use coracle_cri_api::v1;
use coracle_streaming::Near;
use oci_spec::image::ImageConfiguration;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::bundle::{self, Parts};
use crate::cgroup::{self, Usage};
use crate::pause;
use crate::rootfs;
use crate::runtime::Runtime;
use crate::shim::{self, Config, Shim, State, now_ns, read_state};

/// How long a container may take to be gone after SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// How Linux containers are run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where pods, containers and the OCI runtime keep their files.
    pub dir: PathBuf,
    /// The OCI runtime: a program on the PATH, or a path.
    pub runtime: PathBuf,
    /// Starts a shim when the container's folder is appended: `[self, "oci-shim"]`.
    pub shim_command: Vec<OsString>,
    /// Folders of CDI specifications besides the usual ones.
    pub cdi_dirs: Vec<PathBuf>,
}

pub use pods::Pod;

/// A container to be made.
pub struct Container<'a> {
    pub id: &'a str,
    pub sandbox_id: &'a str,
    pub config: &'a v1::ContainerConfig,
    pub sandbox: &'a v1::PodSandboxConfig,
    pub image: &'a ImageConfiguration,
    /// Folders of the image's layers, lowest first.
    pub layers: Vec<PathBuf>,
    pub log_path: Option<PathBuf>,
}

/// Runs Linux containers. One a state folder.
pub struct Engine {
    settings: Settings,
    runtime: Runtime,
    /// Ends that were seen: (container, last state).
    ended: mpsc::UnboundedSender<(String, State)>,
    /// Folders of layers that containers use.
    layers: Mutex<BTreeMap<String, Vec<PathBuf>>>,
}

impl Engine {
    /// An engine; how containers end is told on the channel.
    ///
    /// # Errors
    /// Where Linux containers cannot be run at all, in words that say what is missing.
    pub async fn open(
        mut settings: Settings,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<(String, State)>)> {
        if !nix::unistd::geteuid().is_root() {
            bail!("Linux containers need root");
        }
        if let Some(words) = cgroup::missing() {
            bail!("Linux containers need control groups: {words}");
        }
        for sub in ["pods", "containers", "runtime"] {
            let dir = settings.dir.join(sub);
            std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let containers = settings.dir.join("containers");
        names(&containers).iter().for_each(|id| crate::checkpoint::forget(&containers.join(id)));
        let own = std::mem::take(&mut settings.cdi_dirs);
        settings.cdi_dirs = bundle::cdi::DEFAULT_DIRS.iter().map(PathBuf::from).chain(own).collect();
        let runtime = Runtime::find(&settings.runtime, &settings.dir.join("runtime")).await?;
        let (ended, ends) = mpsc::unbounded_channel();
        Ok((Self { settings, runtime, ended, layers: Mutex::default() }, ends))
    }

    fn container_dir(&self, id: &str) -> PathBuf {
        self.settings.dir.join("containers").join(id)
    }

    /// Makes a container, ready to be started.
    ///
    /// # Errors
    /// For what cannot be done and what the OCI runtime refuses; nothing is left then.
    pub async fn create(&self, wanted: Container<'_>) -> anyhow::Result<()> {
        let dir = self.container_dir(wanted.id);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let made = self.create_in(&dir, &wanted).await;
        match made {
            Ok(()) => {
                self.layers.lock().insert(wanted.id.to_owned(), wanted.layers);
                self.watch(wanted.id);
                Ok(())
            }
            Err(error) => {
                let _ = self.runtime.delete(wanted.id).await;
                let _ = self.clear(wanted.id).await;
                Err(error)
            }
        }
    }

    async fn create_in(&self, dir: &Path, wanted: &Container<'_>) -> anyhow::Result<()> {
        let (place, layers) = (dir.to_owned(), wanted.layers.clone());
        let mounted = tokio::task::spawn_blocking(move || rootfs::mount_overlay(&place, &layers));
        let rootfs = mounted.await?.context("mount the image (overlayfs)")?;
        let mut shared = self.shared(wanted.sandbox_id, wanted.sandbox);
        shared.pid = self.processes(wanted.sandbox_id, wanted.config);
        let spec = bundle::spec(&Parts {
            id: wanted.id,
            rootfs: &rootfs,
            image: wanted.image,
            config: wanted.config,
            sandbox: wanted.sandbox,
            shared: &shared,
            cdi_dirs: &self.settings.cdi_dirs,
            huge_pages: cgroup::counts_huge_pages(),
            swap: cgroup::counts_swap(&shared.cgroup),
            unified: cgroup::unified(),
        })?;
        shim::write_whole(&dir.join("config.json"), &serde_json::to_vec(&spec)?)?;
        std::fs::write(dir.join("layers.json"), serde_json::to_vec(&wanted.layers)?)?;
        let config = Config {
            id: wanted.id.to_owned(),
            runtime: self.runtime.program().to_owned(),
            root: self.runtime.root().to_owned(),
            log_path: wanted.log_path.clone(),
            terminal: wanted.config.tty,
            stdin: wanted.config.stdin,
            stdin_once: wanted.config.stdin_once,
            cgroup: shared.cgroup_of(wanted.id),
        };
        shim::spawn(dir, &self.settings.shim_command, &config).await?;
        Ok(())
    }

    /// The process namespace that a container shares: its pod's, or that of the container that it is to look into.
    fn processes(&self, sandbox: &str, config: &v1::ContainerConfig) -> Option<PathBuf> {
        let security = config.linux.as_ref()?.security_context.as_ref()?;
        let options = security.namespace_options.as_ref()?;
        let own = || pause::namespace(&self.pod_dir(sandbox)).filter(|path| path.exists());
        match options.pid() {
            v1::NamespaceMode::Pod => own(),
            v1::NamespaceMode::Target => self.target(&options.target_id),
            _ => None,
        }
    }

    fn target(&self, target: &str) -> Option<PathBuf> {
        // Ids come from outside: one that is no file name names nothing.
        let known = self.layers.lock().contains_key(target);
        let pid = std::fs::read_to_string(self.container_dir(target).join(shim::file::PID))
            .ok()
            .filter(|_| known)?;
        let path = PathBuf::from(format!("/proc/{}/ns/pid", pid.trim().parse::<u32>().ok()?));
        path.exists().then_some(path)
    }

    /// Follows a container to its end, which is told on the channel.
    fn watch(&self, id: &str) {
        let (shim, ended, id) = (Shim::at(&self.container_dir(id)), self.ended.clone(), id.to_owned());
        let (dir, runtime) = (self.container_dir(&id), self.runtime.clone());
        tokio::spawn(async move {
            let state = match shim.wait().await {
                Ok(state) => state,
                Err(_) => {
                    let state = last_words(&dir);
                    // Without its shim nobody would learn how it ends, or read what it writes.
                    if let Err(error) = runtime.delete(&id).await {
                        tracing::warn!(container = id, "removing what a lost shim left: {error:#}");
                    }
                    state
                }
            };
            let _ = ended.send((id, state));
        });
    }

    /// Takes a container over that was made by an earlier service; answers how it is now. Its end will be told.
    pub async fn adopt(&self, id: &str) -> Option<State> {
        let dir = self.container_dir(id);
        if !dir.is_dir() {
            return None;
        }
        let layers =
            std::fs::read(dir.join("layers.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
        self.layers.lock().insert(id.to_owned(), layers.unwrap_or_default());
        match Shim::at(&dir).state().await {
            Ok(state) => {
                if !state.is_final() {
                    self.watch(id);
                }
                Some(state)
            }
            Err(_) => {
                let state = last_words(&dir);
                // What the shim left, should it have been killed.
                if let Err(error) = self.runtime.delete(id).await {
                    tracing::warn!(container = id, "removing what a lost shim left: {error:#}");
                }
                Some(state)
            }
        }
    }

    /// Starts a created container.
    pub async fn start(&self, id: &str) -> anyhow::Result<State> {
        Shim::at(&self.container_dir(id)).start().await
    }

    /// Stops a container: a signal, then, after the grace, the end. Answers how it ended.
    pub async fn stop(&self, id: &str, signal: i32, grace: Duration) -> anyhow::Result<State> {
        let dir = self.container_dir(id);
        let shim = Shim::at(&dir);
        let wait = async {
            match shim.wait().await {
                Ok(state) => state,
                Err(_) => last_words(&dir),
            }
        };
        tokio::pin!(wait);
        if !grace.is_zero() {
            let _ = shim.kill(signal).await;
            if let Ok(state) = tokio::time::timeout(grace, &mut wait).await {
                return Ok(state);
            }
        }
        let _ = shim.kill(libc::SIGKILL).await;
        tokio::time::timeout(KILL_GRACE, wait).await.with_context(|| format!("container {id} does not end"))
    }

    /// Removes a container that has ended, or kills it; again is fine.
    pub async fn remove(&self, id: &str) -> anyhow::Result<()> {
        let dir = self.container_dir(id);
        if !dir.is_dir() {
            return Ok(());
        }
        if read_state(&dir).is_some_and(|s| !s.is_final()) {
            let _ = self.stop(id, libc::SIGKILL, Duration::ZERO).await;
        }
        self.runtime.delete(id).await?;
        self.clear(id).await
    }

    async fn clear(&self, id: &str) -> anyhow::Result<()> {
        let dir = self.container_dir(id);
        let place = dir.clone();
        tokio::task::spawn_blocking(move || {
            rootfs::unmount_overlay(&place)?;
            std::fs::remove_dir_all(&place)
        })
        .await?
        .with_context(|| format!("remove {}", dir.display()))?;
        self.layers.lock().remove(id);
        Ok(())
    }

    /// Ids of containers that have a folder here.
    pub fn containers(&self) -> Vec<String> {
        names(&self.settings.dir.join("containers"))
    }

    /// Folders of layers that containers use.
    pub fn layers_in_use(&self) -> std::collections::BTreeSet<PathBuf> {
        self.layers.lock().values().flatten().cloned().collect()
    }

    /// Runs one more program in a container, with streams; answers its exit code.
    pub async fn exec(
        &self,
        id: &str,
        command: &[String],
        terminal: bool,
        near: Near,
    ) -> anyhow::Result<i32> {
        crate::exec::exec(&self.runtime, id, &self.container_dir(id), command, terminal, near).await
    }

    /// Writes a checkpoint of a running container to a new file; it runs on. Dropped before its end, it leaves nothing.
    ///
    /// # Errors
    /// In the words of the OCI runtime, which needs CRIU for it; when the file is there.
    pub async fn checkpoint(&self, id: &str, location: &Path) -> anyhow::Result<()> {
        crate::checkpoint::write(&self.runtime, id, &self.container_dir(id), location).await
    }

    /// Attaches streams to a running container.
    pub async fn attach(&self, id: &str, stdin: bool, near: Near) -> anyhow::Result<Option<State>> {
        Shim::at(&self.container_dir(id)).attach(stdin, near).await
    }

    /// Goes on in a new log file of the same name.
    pub async fn reopen_log(&self, id: &str) -> anyhow::Result<()> {
        Shim::at(&self.container_dir(id)).reopen_log().await
    }

    /// What a container uses; `None` when it does not run.
    pub fn usage(&self, id: &str) -> Option<Usage> {
        cgroup::usage(&self.config(id).ok()?.cgroup)
    }

    fn config(&self, id: &str) -> anyhow::Result<Config> {
        let path = self.container_dir(id).join(shim::file::CONFIG);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
    }

    /// The folder of what a container has changed of its files.
    pub fn written_to(&self, id: &str) -> PathBuf {
        self.container_dir(id).join("upper")
    }

    /// Changes the limits of a container.
    pub async fn update(&self, id: &str, asked: &v1::LinuxContainerResources) -> anyhow::Result<()> {
        let mut limits = bundle::limits(asked, cgroup::counts_swap(&self.config(id)?.cgroup));
        if let Some(map) = limits.as_object_mut() {
            map.remove("pids");
        }
        let path = self.container_dir(id).join("limits.json");
        std::fs::write(&path, serde_json::to_vec(&limits)?)?;
        let args: [&std::ffi::OsStr; 4] =
            ["update".as_ref(), "--resources".as_ref(), path.as_ref(), id.as_ref()];
        self.runtime.run(args).await
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// What is known of a container whose shim does not answer.
fn last_words(dir: &Path) -> State {
    let started_at_ns = match read_state(dir) {
        Some(state) if state.is_final() => return state,
        Some(State::Running { started_at_ns }) => started_at_ns,
        _ => 0,
    };
    State::Exited {
        started_at_ns,
        finished_at_ns: now_ns(),
        exit_code: 137,
        reason: "Error".into(),
        message: "the process that ran it is gone".into(),
    }
}
