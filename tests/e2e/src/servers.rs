//! A control plane of several servers, each a process of its own with an address of its own. Profile `loopback`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::ended::Ended;
use crate::left::Traces;
use crate::program;
use crate::slot::Slot;
use crate::{SOON, USER, eventually, kubectl, shown, succeed};

/// Servers of one cluster.
pub struct Servers {
    running: Vec<Option<Child>>,
    dir: TempDir,
    slot: Slot,
    bin: PathBuf,
    more: Vec<String>,
    /// By [`Self::end`].
    finished: bool,
    pub(crate) traces: Traces,
}

impl Servers {
    /// Starts a server that makes a cluster, and others that join it.
    pub fn start(count: usize) -> Result<Self> {
        Self::start_with(count, &[])
    }

    /// As [`Self::start`], with more flags for each.
    pub fn start_with(count: usize, more: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coracle-e2e-").tempdir()?;
        let bin = program::coracle()?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(USER), Some(USER))?;
        }
        let more = more.iter().map(ToString::to_string).collect();
        let traces = Traces::new(dir.path())?;
        let mut servers =
            Self { running: Vec::new(), dir, slot: Slot::take()?, bin, more, finished: false, traces };
        for _ in 0..count {
            servers.add()?;
        }
        Ok(servers)
    }

    /// Other flags than those of [`Self::start_with`], for servers that are started from now on.
    pub fn set_flags(&mut self, more: &[&str]) {
        self.more = more.iter().map(ToString::to_string).collect();
    }

    /// One more server; it joins the first that runs. Returns its index.
    pub fn add(&mut self) -> Result<usize> {
        let index = self.running.len();
        let other = self.running.iter().position(Option::is_some);
        let mut flags = self.slot.ranges().to_vec();
        if let Some(other) = other {
            let token = self.coracle(other, &["member", "token"])?;
            flags.push(format!("--join={}", self.url(other)));
            flags.push(format!("--token={}", token.trim()));
        }
        self.running.push(None);
        self.spawn_with(index, &flags)?;
        self.wait_ready(index)?;
        Ok(index)
    }

    /// Starts a server again, without any flag that says where it belongs; returns when it is ready.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        self.spawn(index)?;
        self.wait_ready(index)
    }

    /// As [`Self::restart`], without waiting: it cannot be ready before a majority runs.
    pub fn spawn(&mut self, index: usize) -> Result<()> {
        self.spawn_with(index, &[])
    }

    fn spawn_with(&mut self, index: usize, flags: &[String]) -> Result<()> {
        let log = |kind: &str| File::options().create(true).append(true).open(self.log_file(index, kind));
        let _ = std::fs::remove_file(self.log_file(index, "out"));
        let mut command = self.command(&self.bin);
        command.arg("server").arg("--data-dir").arg(self.data_dir(index));
        command.arg("--listen").arg(self.address(index));
        command.arg("--write-kubeconfig").arg(self.kubeconfig(index)).args(flags).args(&self.more);
        command.stdout(log("out")?).stderr(log("log")?);
        let child = command.spawn().context("start coracle server")?;
        *self.running.get_mut(index).context("no such server")? = Some(child);
        Ok(())
    }

    /// Waits until a server says that it is ready.
    pub fn wait_ready(&mut self, index: usize) -> Result<()> {
        let out = self.log_file(index, "out");
        let child = self.running.get_mut(index).and_then(Option::as_mut).context("it does not run")?;
        let mut ended = None;
        let ready = eventually(&format!("server {index} is ready"), SOON, || {
            ended = child.try_wait()?;
            Ok(ended.is_some() || std::fs::read_to_string(&out)?.contains("is ready"))
        });
        if ended.is_some()
            && let Some(slot) = self.running.get_mut(index)
        {
            // The caller is told.
            *slot = None;
        }
        match (ready, ended) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(status)) => bail!("server {index} ended with {status}; {}", self.logs()),
            (Err(error), _) => Err(error.context(self.logs())),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let mut child = self.running.get_mut(index).and_then(Option::take).context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM; the server must end by itself, successfully.
    pub fn stop(&mut self, index: usize) -> Result<()> {
        let mut child = self.running.get_mut(index).and_then(Option::take).context("it does not run")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        let mut status = None;
        eventually(&format!("server {index} ends after SIGTERM"), Duration::from_secs(30), || {
            status = child.try_wait()?;
            Ok(status.is_some())
        })?;
        match status {
            Some(status) if status.success() => Ok(()),
            other => bail!("server {index} ended with {other:?}; {}", self.logs()),
        }
    }

    /// Kills those that run, of which none may have ended by itself. Nothing is left of them then.
    pub fn end(&mut self) -> Result<Ended> {
        for index in self.live() {
            ensure!(!self.ended(index)?, "server {index} has ended by itself");
            self.kill(index)?;
        }
        self.traces.of_the_cluster(false)?;
        self.finished = true;
        Ok(Ended::well())
    }

    /// Whether a server has ended by itself.
    pub fn ended(&mut self, index: usize) -> Result<bool> {
        let slot = self.running.get_mut(index).context("no such server")?;
        let Some(child) = slot else { return Ok(true) };
        let ended = child.try_wait()?.is_some();
        if ended {
            *slot = None;
        }
        Ok(ended)
    }

    /// The indexes of those that run.
    pub fn live(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|index| matches!(self.running.get(*index), Some(Some(_)))).collect()
    }

    /// The directory of the test; the cluster's user owns it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its slot, for addresses of nodes.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.bin
    }

    /// A server's data directory.
    pub fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("server-{index}"))
    }

    /// The administrator's kubeconfig that points at a server.
    pub fn kubeconfig(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("kubeconfig-{index}"))
    }

    /// `host:port` of a server.
    pub fn address(&self, index: usize) -> String {
        format!("{}:6443", self.slot.server(index))
    }

    /// `https://host:port` of a server.
    pub fn url(&self, index: usize) -> String {
        format!("https://{}", self.address(index))
    }

    fn log_file(&self, index: usize, kind: &str) -> PathBuf {
        self.dir.path().join(format!("server-{index}.{kind}"))
    }

    /// A program that runs as the cluster's user, in the test's directory.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.env("KUBECACHEDIR", self.dir.path().join("kubecache")).stdin(Stdio::null());
        command
    }

    /// Runs the coracle client against a server; its standard output.
    pub fn coracle(&self, index: usize, args: &[&str]) -> Result<String> {
        succeed(self.command(&self.bin).args(args).env("KUBECONFIG", self.kubeconfig(index)))
    }

    /// Runs the exact kubectl against a server; its standard output.
    pub fn kubectl(&self, index: usize, args: &[&str]) -> Result<String> {
        succeed(self.command(kubectl()?).args(args).env("KUBECONFIG", self.kubeconfig(index)))
    }

    /// Runs kubectl, which is to fail; what it said.
    pub fn kubectl_fails(&self, index: usize, args: &[&str]) -> Result<String> {
        let out = self.command(kubectl()?).args(args).env("KUBECONFIG", self.kubeconfig(index)).output()?;
        if out.status.success() {
            bail!("kubectl {} succeeded: {}", args.join(" "), shown(&out));
        }
        Ok(shown(&out))
    }

    /// The end of each server's log, for a failure.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for index in 0..self.running.len() {
            let log = std::fs::read_to_string(self.log_file(index, "log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(25).collect();
            text += &format!("\n--- server {index}\n");
            for line in lines.into_iter().rev() {
                text += line;
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if !self.finished {
            eprintln!("{}", self.logs());
        }
        for mut child in self.running.iter_mut().filter_map(Option::take) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
