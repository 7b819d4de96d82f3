//! Child processes that are kept running, across restarts of their supervisor too.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

/// A process that ends sooner than this is restarted with a growing delay.
const STEADY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// What to run and where its output and its record go.
#[derive(Clone)]
pub struct Program {
    pub name: &'static str,
    pub args: Vec<String>,
    pub log: PathBuf,
    pub pid_file: PathBuf,
}

/// A running process: a child, or one that an earlier supervisor started.
pub struct Running {
    pid: Pid,
    child: Option<std::process::Child>,
}

impl Program {
    /// The process of an earlier supervisor if it still runs with these arguments, else a new one.
    pub fn adopt_or_start(&self) -> Result<Running> {
        match self.find() {
            Some(running) => {
                tracing::info!(process = self.name, pid = running.pid.as_raw(), "adopted");
                Ok(running)
            }
            None => self.start(),
        }
    }

    fn find(&self) -> Option<Running> {
        let text = std::fs::read_to_string(&self.pid_file).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        (arguments(pid)?.get(1..)? == self.args).then(|| Running { pid: Pid::from_raw(pid), child: None })
    }

    /// Ends what an earlier supervisor left running, for a program that is not adopted.
    pub async fn end_leftover(&self) -> Result<()> {
        if let Some(mut running) = self.find() {
            running.stop(Duration::from_secs(10)).await?;
        }
        Ok(())
    }

    fn start(&self) -> Result<Running> {
        let me = std::env::current_exe().context("find this program's own file")?;
        for path in [&self.log, &self.pid_file] {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            }
        }
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("open {}", self.log.display()))?;
        let child = Command::new(me)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C reaches the supervisor alone, which ends the others in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} {}", self.name, self.args.join(" ")))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        std::fs::write(&self.pid_file, pid.to_string())?;
        tracing::info!(process = self.name, pid = pid.as_raw(), "started");
        Ok(Running { pid, child: Some(child) })
    }

    /// Keeps the program running until the token is cancelled; the process is then still running and is returned.
    pub async fn keep(self, mut running: Running, shutdown: CancellationToken) -> Result<Running> {
        let mut delay = Duration::from_millis(100);
        loop {
            let started = Instant::now();
            tokio::select! {
                () = running.ended() => {}
                () = shutdown.cancelled() => return Ok(running),
            }
            delay = if started.elapsed() > STEADY {
                Duration::from_millis(100)
            } else {
                (delay * 2).min(LONGEST_DELAY)
            };
            tracing::warn!(process = self.name, log = %self.log.display(), ?delay, "ended; starting it again");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => return Ok(running),
            }
            running = self.start()?;
        }
    }
}

impl Running {
    /// Waits until the process is gone.
    async fn ended(&mut self) {
        while self.alive() {
            tokio::time::sleep(POLL).await;
        }
    }

    fn alive(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => arguments(self.pid.as_raw()).is_some(),
        }
    }

    /// SIGTERM, then SIGKILL after `grace`.
    pub async fn stop(&mut self, grace: Duration) -> Result<()> {
        for (signal, wait) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, Duration::from_secs(5))] {
            if !self.alive() {
                return Ok(());
            }
            // It may end in between; that is what was wanted.
            let _ = kill(self.pid, signal);
            let _ = tokio::time::timeout(wait, self.ended()).await;
        }
        if self.alive() {
            anyhow::bail!("process {} did not end", self.pid);
        }
        Ok(())
    }
}

/// The command line of a process that runs; `None` for one that is gone or a zombie.
fn arguments(pid: i32) -> Option<Vec<String>> {
    let bytes = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let args: Vec<String> = text.trim_end_matches('\0').split('\0').map(String::from).collect();
    (!bytes.is_empty()).then_some(args)
}
