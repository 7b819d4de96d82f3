//! A real cluster of real processes for a test, with the clients that drive it.
//!
//! Profile `loopback`: every process runs as an unprivileged user where the test itself runs as root. Each cluster has
//! address ranges of its own, so that tests may run beside each other. Profile `routed`: every process runs as root in
//! network namespaces that the test makes.

pub mod ended;
pub mod layout;
pub mod left;
pub mod load;
pub mod machines;
pub mod netns;
pub mod nodes;
pub mod program;
pub mod servers;
pub mod slot;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

pub use ended::Ended;
use left::{Place, Ranges, Traces};
use netns::{Host, Network};
use slot::Slot;

/// The user that clusters run as (`nobody`).
pub(crate) const USER: u32 = 65534;

/// Who runs the processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// Loopback addresses, no privilege.
    Loopback,
    /// Loopback addresses, as the user of the test.
    LoopbackAsIs,
    /// Ordinary addresses, as root, on one host of a [`Network`].
    Routed,
}

/// A cluster made by `coracle up`.
pub struct Cluster {
    up: Option<Child>,
    dir: TempDir,
    profile: Profile,
    slot: Option<Slot>,
    bin: PathBuf,
    network: Option<Network>,
    more: Vec<String>,
    /// In order, and not started again since.
    stopped: bool,
    traces: Traces,
}

impl Cluster {
    /// Starts `coracle up` in a new directory and waits for its ready line.
    pub fn start(profile: Profile) -> Result<Self> {
        Self::start_with(profile, &[])
    }

    /// The same with more flags.
    pub fn start_with(profile: Profile, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coracle-e2e-").tempdir()?;
        let bin = program::coracle()?;
        let (slot, network) = match profile {
            Profile::Routed => (None, Some(Network::new(1)?)),
            _ => (Some(Slot::take()?), None),
        };
        let more = flags.iter().map(ToString::to_string).collect();
        let traces = Traces::new(dir.path())?;
        let mut cluster = Self { up: None, dir, profile, slot, bin, network, more, stopped: false, traces };
        if cluster.unprivileged() {
            std::os::unix::fs::chown(cluster.dir.path(), Some(USER), Some(USER))?;
        }
        cluster.up()?;
        let data = cluster.data_dir().canonicalize()?;
        let ranges = cluster.slot.as_ref().map_or_else(Ranges::routed, Ranges::of);
        let host = cluster.host().cloned();
        cluster.traces.add(Place::new(data.join("node"), data.join("runtime"), ranges, host)?)?;
        Ok(cluster)
    }

    fn unprivileged(&self) -> bool {
        self.profile == Profile::Loopback && nix::unistd::geteuid().is_root()
    }

    fn flags(&self) -> Vec<String> {
        let mut flags = self.slot.as_ref().map(Slot::flags).unwrap_or_default();
        flags.extend(self.more.iter().cloned());
        flags.push(match self.host() {
            Some(host) => format!("--listen={}:6443", host.address),
            None => "--listen=127.0.0.1:0".into(),
        });
        if let Some(host) = self.host() {
            flags.extend(
                ["--network=routed", "--pod-cidr=10.244.0.0/16", "--service-cidr=10.96.0.0/16"]
                    .map(String::from),
            );
            flags.push(format!("--node-ip={}", host.address));
        }
        flags
    }

    /// The host that it runs on, in profile `routed`.
    pub fn host(&self) -> Option<&Host> {
        self.network.as_ref().and_then(|network| network.hosts.first())
    }

    /// The body of a page as the cluster's host gets it.
    pub fn curl(&self, url: &str) -> Result<String> {
        self.host().map_or_else(|| curl(url), |host| host.curl(url))
    }

    /// The program that the cluster runs.
    pub fn program(&self) -> &Path {
        &self.bin
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts `up` over the data directory; returns when it says that it is ready.
    pub fn up(&mut self) -> Result<()> {
        let data = self.data_dir();
        let mut command = self.command(&self.bin);
        command.arg("up").arg("--data-dir").arg(&data).args(self.flags());
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let child = self.up.insert(command.spawn().context("start coracle up")?);
        self.stopped = false;
        let mut line = String::new();
        let stdout = child.stdout.take().context("stdout of coracle up")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        if !line.contains("coracle is ready") {
            bail!("coracle up said {line:?} instead of that it is ready; {}", self.logs());
        }
        Ok(())
    }

    /// A program that runs as the cluster's user, in its directory and without the test's environment.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let mut command = if self.unprivileged() {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()]);
            command.arg(program);
            command
        } else if let Some(host) = self.host() {
            host.command(program)
        } else {
            Command::new(program)
        };
        command
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.data_dir().join("kubeconfig"))
            .env("KUBECACHEDIR", self.dir.path().join("kubecache"))
            .stdin(Stdio::null());
        command
    }

    /// Runs the coracle client; its standard output.
    pub fn coracle(&self, args: &[&str]) -> Result<String> {
        succeed(self.command(&self.bin).args(args))
    }

    /// Runs the exact kubectl; its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        succeed(self.command(kubectl()?).args(args))
    }

    /// Runs kubectl, which is to fail; what it said.
    pub fn kubectl_fails(&self, args: &[&str]) -> Result<String> {
        let out = self.command(kubectl()?).args(args).output()?;
        if out.status.success() {
            bail!("kubectl {} succeeded: {}", args.join(" "), shown(&out));
        }
        Ok(shown(&out))
    }

    /// An object or list as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Writes a file that the cluster's user can read, and returns its path.
    pub fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Pushes a guest under a name.
    pub fn push(&self, guest: &str, tag: &str) -> Result<()> {
        let built = guest_file(guest)?;
        let copy = self.dir.path().join(format!("{guest}.wasm"));
        std::fs::copy(built, &copy)?;
        self.coracle(&["image", "push", &copy.display().to_string(), tag]).map(drop)
    }

    /// The id of one of the supervised processes: `server`, `node` or `runtime`.
    pub fn pid(&self, process: &str) -> Result<i32> {
        let path = self.data_dir().join("run").join(process);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().parse()?)
    }

    /// Kills a supervised process (SIGKILL) and waits until its supervisor has started another.
    pub fn kill(&self, process: &str) -> Result<()> {
        let before = self.pid(process)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(before), nix::sys::signal::Signal::SIGKILL)?;
        eventually(&format!("{process} is started again"), Duration::from_secs(20), || {
            Ok(self.pid(process)? != before)
        })
    }

    /// Kills `up` itself (SIGKILL).
    pub fn kill_up(&mut self) -> Result<()> {
        let mut child = self.up.take().context("up does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM to `up`; it must end by itself, successfully. Nothing is left then, and nothing was left before of pods that
    /// were gone. Where `up` was killed, the next one adopts what it left, and is ended.
    pub fn stop(&mut self) -> Result<Ended> {
        if !self.stopped {
            self.adopt()?;
            let counted = self.nothing_is_left_of_pods();
            self.end()?;
            counted?;
            self.traces.of_the_cluster(true)?;
        }
        Ok(Ended::well())
    }

    fn adopt(&mut self) -> Result<()> {
        if self.up.is_some() { Ok(()) } else { self.up().context("adopt what a killed up left") }
    }

    /// Ends what runs, whatever is left then.
    fn clear(&mut self) -> Result<()> {
        if self.stopped {
            return Ok(());
        }
        self.adopt()?;
        self.end()
    }

    fn nothing_is_left_of_pods(&self) -> Result<()> {
        self.traces.of_gone_pods(&[0], |path| {
            Ok(serde_json::from_str(&self.kubectl(&["get", "--request-timeout=10s", "--raw", path])?)?)
        })
    }

    fn end(&mut self) -> Result<()> {
        let Some(mut child) = self.up.take() else { return Ok(()) };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let mut status = None;
        eventually("up ends after SIGTERM", Duration::from_secs(60), || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })?;
        match status {
            Some(status) if status.success() => {
                self.stopped = true;
                Ok(())
            }
            other => bail!("up ended with {other:?}; {}", self.logs()),
        }
    }

    /// The end of each process's log, for a failure.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for process in ["server", "node", "runtime"] {
            let path = self.data_dir().join("logs").join(format!("{process}.log"));
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(15).collect();
            text += &format!("\n--- {process}\n");
            for line in lines.into_iter().rev() {
                text += line;
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.stopped {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.clear() {
            eprintln!("end the cluster: {error:#}");
        }
        if self.profile == Profile::Routed {
            netns::clear_containers(self.dir.path());
        }
    }
}

/// The repository root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A built program: `$variable`, or a path below the repository root.
pub(crate) fn binary(variable: &str, default: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| root().join(default), PathBuf::from);
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask test`, or set {variable}", path.display());
    }
    Ok(path)
}

/// The exact kubectl that `cargo xtask kubectl` installs.
pub fn kubectl() -> Result<PathBuf> {
    let path =
        std::env::var_os("CORACLE_KUBECTL").context("CORACLE_KUBECTL is not set: run `cargo xtask test`")?;
    Ok(PathBuf::from(path))
}

/// A built guest program.
pub fn guest_file(name: &str) -> Result<PathBuf> {
    binary("CORACLE_GUEST_FILE", &format!("target/guests/{name}.wasm"))
}

/// Runs a command that has to succeed; its standard output.
pub fn succeed(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("start {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}", shown(&out));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// What a program said, both ways.
pub fn shown(out: &Output) -> String {
    format!(
        "{}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// How long anything may take that a test waits for and does not measure: machines are busy.
pub const SOON: Duration = Duration::from_secs(60);

/// Waits until a condition holds. An error counts as "not yet" and is told at the end.
pub fn eventually(what: &str, limit: Duration, mut met: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let last = met();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("not within {limit:?}: {what} ({last:?})");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The body of a page, by curl.
pub fn curl(url: &str) -> Result<String> {
    succeed(Command::new("curl").args(["--silent", "--show-error", "--fail", "--max-time", "10", url]))
}
