//! Three servers, each on a machine of its own with a small disk of its own, and one machine for clients.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_e2e::netns::{Host, Network};
use coracle_e2e::{eventually, program, succeed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::clock;

/// Servers of a cluster.
pub const SERVERS: usize = 3;
const START: Duration = Duration::from_secs(60);
/// How long a server may take to tell its clients another time.
const MOVED: Duration = Duration::from_secs(15);
/// The size of a server's disk.
const DISK: &str = "192m";

/// Servers as processes.
pub struct Cluster {
    running: Vec<Option<Child>>,
    dir: TempDir,
    bin: PathBuf,
    network: Network,
    mounts: Vec<PathBuf>,
}

impl Cluster {
    /// Starts the first server and has the others join it.
    ///
    /// # Errors
    /// Without root, or when a server does not start.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coracle-faults-").tempdir()?;
        let network = Network::new(SERVERS + 1)?;
        let running = (0..SERVERS).map(|_| None).collect();
        let mut cluster = Self { running, dir, bin: program::coracle()?, network, mounts: Vec::new() };
        for index in 0..SERVERS {
            let disk = cluster.disk(index);
            std::fs::create_dir(&disk)?;
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "coracle-faults"]).arg(&disk);
            succeed(&mut mount)?;
            cluster.mounts.push(disk);
        }
        for index in 0..SERVERS {
            let mut flags = vec!["--pod-cidr=10.244.0.0/16".to_owned(), "--service-cidr=10.96.0.0/16".into()];
            if index > 0 {
                let token = cluster.client(0, &["member", "token"])?;
                flags.push(format!("--join={}", cluster.url(0)?));
                flags.push(format!("--token={}", token.trim()));
            }
            cluster.spawn_with(index, &flags)?;
            cluster.wait_ready(index)?;
        }
        Ok(cluster)
    }

    fn disk(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("disk-{index}"))
    }

    fn log(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("server-{index}.log"))
    }

    fn ready_file(&self, index: usize) -> PathBuf {
        self.disk(index).join("data/node/kubeconfig")
    }

    /// The administrator's kubeconfig that points at a server.
    pub fn kubeconfig(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("kubeconfig-{index}"))
    }

    /// The machine of a server.
    ///
    /// # Errors
    /// There is no such server.
    pub fn host(&self, index: usize) -> Result<&Host> {
        self.network.host(index)
    }

    /// The machine of the clients.
    ///
    /// # Errors
    /// None.
    pub fn clients(&self) -> Result<&Host> {
        self.network.host(SERVERS)
    }

    fn url(&self, index: usize) -> Result<String> {
        Ok(format!("https://{}:6443", self.host(index)?.address))
    }

    /// Runs the `coracle` client against a server.
    ///
    /// # Errors
    /// When it fails.
    pub fn client(&self, index: usize, args: &[&str]) -> Result<String> {
        let mut command = self.clients()?.command(&self.bin);
        command.current_dir(self.dir.path()).env("HOME", self.dir.path());
        succeed(command.env("KUBECONFIG", self.kubeconfig(index)).args(args).stdin(Stdio::null()))
    }

    fn spawn_with(&mut self, index: usize, flags: &[String]) -> Result<()> {
        let _ = std::fs::remove_file(self.ready_file(index));
        let log = File::options().create(true).append(true).open(self.log(index))?;
        let address = self.host(index)?.address.clone();
        let mut command = self.host(index)?.command(&self.bin);
        command.arg("server").arg("--data-dir").arg(self.disk(index).join("data"));
        command.arg(format!("--listen={address}:6443")).arg(format!("--local-node=nobody={address}"));
        command.arg("--write-kubeconfig").arg(self.kubeconfig(index)).args(flags);
        command.current_dir(self.dir.path()).env("HOME", self.dir.path()).env_remove("RUST_BACKTRACE");
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        *self.running.get_mut(index).context("no such server")? = Some(child);
        Ok(())
    }

    /// Starts a server again; returns at once.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self, index: usize) -> Result<()> {
        self.spawn_with(index, &[])
    }

    /// Waits until a server says that it is ready.
    ///
    /// # Errors
    /// When it ends or takes too long; with the end of its log.
    pub fn wait_ready(&mut self, index: usize) -> Result<()> {
        let file = self.ready_file(index);
        let mut ended = false;
        eventually(&format!("server {index} is ready"), START, || {
            ended = !self.runs(index)?;
            Ok(ended || file.is_file())
        })
        .with_context(|| self.logs())?;
        if ended {
            bail!("server {index} ended; {}", self.logs());
        }
        Ok(())
    }

    /// Whether the process of a server lives.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn runs(&mut self, index: usize) -> Result<bool> {
        match self.running.get_mut(index) {
            Some(Some(child)) => Ok(child.try_wait()?.is_none()),
            _ => Ok(false),
        }
    }

    /// Whether a server goes on: it is ready again, or has ended, which takes a moment after what it cannot go on with.
    ///
    /// # Errors
    /// When it neither ends nor becomes ready.
    pub fn goes_on(&mut self, index: usize) -> Result<bool> {
        let url = format!("{}/readyz", self.url(index)?);
        let mut runs = true;
        eventually(&format!("server {index} is ready again or ends"), START, || {
            runs = self.runs(index)?;
            let mut ask = self.clients()?.command("curl");
            Ok(!runs || succeed(ask.args(["-skf", "-m", "2", "-o", "/dev/null", &url])).is_ok())
        })
        .with_context(|| self.logs())?;
        Ok(runs)
    }

    /// Sends a signal to a server.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        let child = self.running.get(index).and_then(Option::as_ref).context("it does not run")?;
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }

    /// Moves a server's time of day to so many seconds from the right one. One that is ahead has to say so to its clients; the
    /// date of its answers does not go back.
    ///
    /// # Errors
    /// When it does not run, or its clock cannot be moved.
    pub fn set_clock(&self, index: usize, seconds: i64) -> Result<()> {
        let child = self.running.get(index).and_then(Option::as_ref).context("it does not run")?;
        clock::set_offset(child.id(), seconds)?;
        if seconds <= 0 {
            return Ok(());
        }
        let url = format!("{}/livez", self.url(index)?);
        eventually(&format!("server {index} tells a time {seconds} s ahead"), MOVED, || {
            let mut ask = self.clients()?.command("curl");
            let said = succeed(ask.args(["-sk", "-m", "2", "-o", "/dev/null", "-D", "-", &url]))?;
            let date = said.lines().find_map(|line| line.strip_prefix("date: ")).context("no date")?;
            let told = jiff::fmt::rfc2822::parse(date.trim())?.timestamp();
            let ahead = told.duration_since(jiff::Timestamp::now()).as_secs();
            // One that was further ahead before goes on telling that.
            Ok(ahead >= seconds - 5)
        })
    }

    /// Ends a server with this signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn end(&mut self, index: usize, signal: Signal) -> Result<()> {
        let Some(mut child) = self.running.get_mut(index).and_then(Option::take) else { return Ok(()) };
        let _ = kill(Pid::from_raw(i32::try_from(child.id())?), signal);
        let ended = eventually(&format!("server {index} ends"), Duration::from_secs(30), || {
            Ok(child.try_wait()?.is_some())
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ended.with_context(|| self.logs())
    }

    /// The index of the server that leads, as any of them says.
    pub fn leader(&self) -> Option<usize> {
        (0..SERVERS).find_map(|index| self.leader_at(index))
    }

    fn leader_at(&self, index: usize) -> Option<usize> {
        let mut command = self.clients().ok()?.command("timeout");
        command.arg("3").arg(&self.bin).args(["member", "list"]);
        command.env("KUBECONFIG", self.kubeconfig(index)).env("HOME", self.dir.path()).stdin(Stdio::null());
        let listed = succeed(&mut command).ok()?;
        let line = listed.lines().find(|line| line.contains("leader"))?;
        (0..SERVERS).find(|at| self.host(*at).is_ok_and(|host| line.contains(&format!("{}:", host.address))))
    }

    /// Takes what is left of a server's disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn fill(&self, index: usize) -> Result<()> {
        let mut file = File::create(self.disk(index).join("filler"))?;
        let piece = vec![1; 1 << 20];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        Ok(())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn empty(&self, index: usize) -> Result<()> {
        Ok(std::fs::remove_file(self.disk(index).join("filler"))?)
    }

    /// The end of each server's log.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for index in 0..SERVERS {
            let log = std::fs::read_to_string(self.log(index)).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(30).collect();
            text += &format!("\n--- server {index}\n");
            text += &lines.into_iter().rev().collect::<Vec<_>>().join("\n");
        }
        text
    }

    /// Where everything of the run lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Lines of the servers' logs that no fault explains.
    pub fn complaints(&self) -> Vec<String> {
        let odd = ["panicked", "damaged", "checksum", "ERROR"];
        let mut found = Vec::new();
        for index in 0..SERVERS {
            let log = std::fs::read_to_string(self.log(index)).unwrap_or_default();
            let lines = log.lines().filter(|line| odd.iter().any(|word| line.contains(word)));
            found.extend(lines.map(|line| format!("server {index}: {line}")));
        }
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for mut child in self.running.iter_mut().filter_map(Option::take) {
            let _ = child.kill();
            let _ = child.wait();
        }
        for mount in &self.mounts {
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}
