//! Child processes that are kept running, across restarts of their supervisor too.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::data_dir::make_private;

/// A process that ends sooner than this is restarted with a growing delay.
const STEADY: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// How often an adopted process is looked at; children tell by themselves.
const POLL: Duration = Duration::from_millis(200);
/// A log longer than this is put aside when its process starts. Bytes.
const LONGEST_LOG: u64 = 32 << 20;
/// What of a log's end is shown. Bytes and lines.
const SHOWN: (u64, usize) = (8 << 10, 8);

/// What to run and where its output and its record go.
#[derive(Clone)]
pub struct Program {
    pub name: &'static str,
    pub args: Vec<String>,
    /// The argument that no process of another data directory has.
    pub home: String,
    pub log: PathBuf,
    pub pid_file: PathBuf,
}

/// A running process: a child, or one that an earlier supervisor started.
pub struct Running {
    pid: Pid,
    kind: Kind,
}

enum Kind {
    Child(Child),
    /// With when it started, since process numbers are used again.
    Adopted(u64),
}

/// A program that is being kept running.
pub struct Kept {
    name: &'static str,
    log: PathBuf,
    ends: watch::Receiver<u32>,
    task: JoinHandle<Running>,
}

impl Program {
    /// The process of an earlier supervisor if it runs this program with these arguments, else a new one. One that runs
    /// otherwise is ended first.
    pub async fn adopt_or_start(&self) -> Result<Running> {
        if let Some((mut running, same)) = self.find() {
            if same {
                tracing::info!(process = self.name, pid = running.pid.as_raw(), "adopted");
                return Ok(running);
            }
            running.stop(Duration::from_secs(10), &CancellationToken::new()).await?;
        }
        self.start()
    }

    /// The process of an earlier supervisor, and whether it is just what would be started now.
    fn find(&self) -> Option<(Running, bool)> {
        let text = std::fs::read_to_string(&self.pid_file).ok()?;
        let pid: i32 = text.trim().parse().ok().filter(|pid| *pid > 1)?;
        let started = start_time(pid)?;
        let found = arguments(pid)?;
        let found = found.get(1..)?;
        if found.first()? != self.name || !found.contains(&self.home) {
            return None;
        }
        let same = found == self.args && std::fs::read_link(format!("/proc/{pid}/exe")).ok() == own_file();
        Some((Running { pid: Pid::from_raw(pid), kind: Kind::Adopted(started) }, same))
    }

    /// Ends what an earlier supervisor left running, for a program that is not adopted.
    pub async fn end_leftover(&self) -> Result<()> {
        if let Some((mut running, _)) = self.find() {
            running.stop(Duration::from_secs(10), &CancellationToken::new()).await?;
        }
        Ok(())
    }

    fn start(&self) -> Result<Running> {
        for path in [&self.log, &self.pid_file] {
            if let Some(parent) = path.parent() {
                make_private(parent).with_context(|| format!("create {}", parent.display()))?;
            }
        }
        if self.log.metadata().is_ok_and(|log| log.len() > LONGEST_LOG) {
            let aside = self.log.with_extension("log.old");
            std::fs::rename(&self.log, &aside)
                .with_context(|| format!("put {} aside", self.log.display()))?;
        }
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("open {}", self.log.display()))?;
        // A file that was replaced since can still be run through /proc.
        let child = Command::new(own_file().unwrap_or_else(|| "/proc/self/exe".into()))
            .arg0("coracle")
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C reaches the supervisor alone, which ends the others in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} {}", self.name, self.args.join(" ")))?;
        let pid = i32::try_from(child.id().context("a child without a process number")?)?;
        std::fs::write(&self.pid_file, pid.to_string())
            .with_context(|| format!("write {}", self.pid_file.display()))?;
        tracing::info!(process = self.name, pid, "started");
        Ok(Running { pid: Pid::from_raw(pid), kind: Kind::Child(child) })
    }

    /// Keeps the program running until the token is cancelled.
    pub fn keep(self, running: Running, shutdown: CancellationToken) -> Kept {
        let (count, ends) = watch::channel(0);
        let (name, log) = (self.name, self.log.clone());
        Kept { name, log, ends, task: tokio::spawn(self.keep_running(running, count, shutdown)) }
    }

    async fn keep_running(
        self,
        mut running: Running,
        count: watch::Sender<u32>,
        shutdown: CancellationToken,
    ) -> Running {
        let mut delay = FIRST_DELAY;
        loop {
            let started = Instant::now();
            tokio::select! {
                () = running.ended() => {}
                () = shutdown.cancelled() => return running,
            }
            count.send_modify(|count| *count = count.saturating_add(1));
            if started.elapsed() > STEADY {
                delay = FIRST_DELAY;
            }
            running = loop {
                delay = (delay * 2).min(LONGEST_DELAY);
                tracing::debug!(process = self.name, log = %self.log.display(), ?delay, "ended; starting it again");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = shutdown.cancelled() => return running,
                }
                match self.start() {
                    Ok(next) => break next,
                    Err(error) => {
                        tracing::warn!(process = self.name, error = format!("{error:#}"), "cannot start it");
                    }
                }
            };
        }
    }
}

impl Kept {
    /// Waits until the process has ended so many times.
    pub async fn ended(&self, times: u32) {
        if self.ends.clone().wait_for(|count| *count >= times).await.is_err() {
            // Nothing keeps it any more, so it ends no more.
            std::future::pending::<()>().await;
        }
    }

    /// An error about the process, with the last words of its log.
    pub fn error(&self, what: &str) -> anyhow::Error {
        let log = self.log.display();
        match last_lines(&self.log) {
            Ok(lines) if !lines.is_empty() => {
                anyhow::anyhow!(
                    "the {} {what}; its log {log} ends with:\n  {}",
                    self.name,
                    lines.join("\n  ")
                )
            }
            _ => anyhow::anyhow!("the {} {what}; its log: {log}", self.name),
        }
    }

    /// The process, once the token that it was kept with is cancelled.
    pub async fn released(self) -> Result<Running> {
        self.task.await.with_context(|| format!("the task that keeps the {}", self.name))
    }
}

impl Running {
    /// Whether an earlier supervisor started it.
    pub fn adopted(&self) -> bool {
        matches!(self.kind, Kind::Adopted(_))
    }

    /// Waits until the process is gone.
    async fn ended(&mut self) {
        match &mut self.kind {
            // An error means that it is no child of ours any more.
            Kind::Child(child) => drop(child.wait().await),
            Kind::Adopted(_) => {
                while self.alive() {
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }

    fn alive(&mut self) -> bool {
        match &mut self.kind {
            Kind::Child(child) => matches!(child.try_wait(), Ok(None)),
            Kind::Adopted(started) => start_time(self.pid.as_raw()) == Some(*started),
        }
    }

    /// SIGTERM, then SIGKILL after `grace` or once `hurry` is cancelled.
    pub async fn stop(&mut self, grace: Duration, hurry: &CancellationToken) -> Result<()> {
        for (signal, wait) in [(Signal::SIGTERM, grace), (Signal::SIGKILL, Duration::from_secs(5))] {
            if !self.alive() {
                return Ok(());
            }
            // It may end in between; that is what was wanted.
            let _ = kill(self.pid, signal);
            tokio::select! {
                () = self.ended() => {}
                () = tokio::time::sleep(wait) => {}
                () = hurry.cancelled(), if signal == Signal::SIGTERM => {}
            }
        }
        if self.alive() {
            anyhow::bail!("process {} did not end", self.pid);
        }
        Ok(())
    }
}

/// This program's own file; `None` once it is replaced or gone.
fn own_file() -> Option<PathBuf> {
    std::env::current_exe().ok().filter(|file| file.is_file())
}

/// When a process started, in clock ticks since boot; `None` for one that is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5): the name in parentheses may hold anything; the state follows, and 19 fields later the start.
fn parse_stat(text: &str) -> Option<u64> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if ["Z", "X", "x"].contains(&state) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The command line of a process; `None` for one that is gone or a zombie.
fn arguments(pid: i32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let args: Vec<String> = text.trim_end_matches('\0').split('\0').map(String::from).collect();
    (!bytes.is_empty()).then_some(args)
}

fn last_lines(log: &Path) -> std::io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let start = file.metadata()?.len().saturating_sub(SHOWN.0);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(SHOWN.0).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    // What each try said again is told once.
    lines.dedup();
    Ok(lines.iter().skip(lines.len().saturating_sub(SHOWN.1)).map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_started() {
        let stat =
            |state: &str| format!("7 (a) b) c) {state} 1 7 7 0 -1 4 1 0 0 0 1 1 0 0 20 0 3 0 12345 99 9");
        assert_eq!(parse_stat(&stat("S")), Some(12345));
        assert_eq!(parse_stat(&stat("Z")), None);
        assert_eq!(parse_stat("7 (a"), None);
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(me).is_some());
    }

    #[test]
    fn another_process_is_not_taken_for_ours() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program {
            name: "server",
            args: vec!["server".into()],
            home: "/home".into(),
            log: dir.path().join("log"),
            pid_file: dir.path().join("pid"),
        };
        for text in ["", "x", "0", "-1", "1", &std::process::id().to_string()] {
            std::fs::write(&program.pid_file, text).unwrap();
            assert!(program.find().is_none(), "{text:?}");
        }
    }

    #[test]
    fn the_end_of_a_log_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let text: String = (0..5000).map(|number| format!("line {number}\n\n")).collect();
        std::fs::write(&log, text).unwrap();
        let lines = last_lines(&log).unwrap();
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (8, Some("line 4999")));
    }
}
