//! The shim's own side.

mod attach;
mod create;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};

use super::log::{Lines, Log};
use super::{Answer, Ask, Config, Hello, Pipe, State, file, now_ns, write_whole};
use crate::cgroup;
use crate::runtime::Runtime;

/// How many pieces of output someone who is attached may be behind.
const BEHIND: usize = 256;
/// The longest line that asks.
const MAX_ASK: u64 = 64 << 10;
/// How long output may take to end after the container has.
const DRAIN: Duration = Duration::from_secs(5);
/// How long those who wait get to hear of the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// The body of the shim process for the container in `dir`: returns when the container has ended.
///
/// # Errors
/// When the container cannot be made; the same words go to who started it.
pub fn main(dir: &Path) -> anyhow::Result<()> {
    std::env::set_current_dir(dir).with_context(|| format!("enter {}", dir.display()))?;
    // What the OCI runtime leaves behind becomes our child, so that its end can be waited for.
    nix::sys::prctl::set_child_subreaper(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        ignore_signals()?;
        let config: Config = serde_json::from_slice(&std::fs::read(file::CONFIG)?)?;
        let (shim, io) = match create::create(config).await {
            Ok(made) => made,
            Err(error) => {
                hello(&Hello::Error(format!("{error:#}")))?;
                return Err(error);
            }
        };
        let listener = UnixListener::bind(file::SOCKET).context("listen")?;
        record(&State::Created)?;
        write_whole(Path::new(file::SHIM_PID), std::process::id().to_string().as_bytes())?;
        hello(&Hello::Created { pid: shim.pid })?;
        shim.serve(listener, io).await
    })
}

/// A terminal's hang-up and interrupts are not meant for containers.
fn ignore_signals() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind)?;
        tokio::spawn(async move { while signals.recv().await.is_some() {} });
    }
    Ok(())
}

/// Says the one line that who started us waits for, and closes the standard output.
fn hello(words: &Hello) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(words)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    io::Write::write_all(&mut out, &line)?;
    io::Write::flush(&mut out)?;
    let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(nowhere)?;
    Ok(())
}

fn record(state: &State) -> anyhow::Result<()> {
    write_whole(Path::new(file::STATE), &serde_json::to_vec(state)?).context("record the state")
}

/// Waits for a child's end: its exit code, or 128 more than the signal that ended it. Blocking.
fn wait(pid: i32) -> io::Result<i32> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let options = rustix::process::WaitOptions::empty();
    let ended = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), options))?;
    let code = ended.and_then(|(_, status)| {
        // Real-time signals too, which have no names.
        status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
    });
    code.ok_or_else(|| io::Error::other(format!("{ended:?}")))
}

/// The streams of the container, as the shim holds them.
struct Streams {
    stdout: Arc<Pipe>,
    /// With a terminal there is one stream only.
    stderr: Option<Pipe>,
}

struct ShimProcess {
    config: Config,
    runtime: Runtime,
    pid: i32,
    state: watch::Sender<State>,
    output: broadcast::Sender<(bool, Bytes)>,
    stdin: Mutex<Option<Arc<Pipe>>>,
    terminal: Option<Arc<Pipe>>,
    log: Mutex<Option<Log>>,
    progress: Mutex<Progress>,
}

/// What decides between a start and an end that cross each other.
#[derive(Default)]
struct Progress {
    /// When it was told to start, in nanoseconds since the Unix epoch; 0: not yet.
    started_at_ns: i64,
    /// Its end is recorded: nothing comes after it.
    ended: bool,
}

impl ShimProcess {
    async fn serve(self: Arc<Self>, listener: UnixListener, streams: Streams) -> anyhow::Result<()> {
        let mut copies = vec![tokio::spawn(self.clone().copy(streams.stdout, "stdout"))];
        if let Some(stderr) = streams.stderr {
            copies.push(tokio::spawn(self.clone().copy(Arc::new(stderr), "stderr")));
        }
        let pid = self.pid;
        let waiting = tokio::task::spawn_blocking(move || wait(pid));
        let answering = tokio::spawn(self.clone().answer_all(listener));
        let ended = waiting.await?;
        // In a process namespace of its own nothing is left. In a shared one others would live on, and hold its output.
        cgroup::kill(&self.config.cgroup);
        let _ = tokio::time::timeout(DRAIN, futures::future::join_all(copies)).await;
        let state = {
            let mut progress = self.progress.lock();
            progress.ended = true;
            let state = self.ending(ended, progress.started_at_ns);
            record(&state)?;
            state
        };
        if let Err(error) = self.runtime.delete(&self.config.id).await {
            eprintln!("removing the container: {error:#}");
        }
        self.state.send_replace(state);
        tokio::time::sleep(FAREWELL).await;
        answering.abort();
        let _ = std::fs::remove_file(file::SOCKET);
        Ok(())
    }

    fn ending(&self, ended: io::Result<i32>, started_at_ns: i64) -> State {
        let (exit_code, mut message) = match ended {
            Ok(code) => (code, String::new()),
            Err(error) => (255, format!("how it ended is not known: {error}")),
        };
        let killed = exit_code != 0 && cgroup::oom_kills(&self.config.cgroup) > 0;
        let reason = match exit_code {
            0 => "Completed",
            _ if killed => "OOMKilled",
            _ => "Error",
        };
        if killed {
            message = "the container went over its memory limit".into();
        }
        State::Exited { started_at_ns, finished_at_ns: now_ns(), exit_code, reason: reason.into(), message }
    }

    /// Copies one stream to the log and to those who are attached, until it ends.
    async fn copy(self: Arc<Self>, from: Arc<Pipe>, stream: &'static str) {
        let mut lines = Lines::new(stream);
        let mut buffer = vec![0; 32 << 10];
        loop {
            let read = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => buffer.get(..read).unwrap_or_default(),
            };
            if let Some(log) = self.log.lock().as_mut()
                && let Err(error) = lines.write(log, read)
            {
                eprintln!("lines of the log are lost: {error}");
            }
            if self.output.receiver_count() > 0 {
                let _ = self.output.send((stream == "stderr", Bytes::copy_from_slice(read)));
            }
        }
        if let Some(log) = self.log.lock().as_mut() {
            let _ = lines.flush(log);
        }
    }

    async fn answer_all(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let shim = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = shim.answer(stream).await {
                            eprintln!("answering: {error:#}");
                        }
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn answer(&self, stream: UnixStream) -> anyhow::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            let mut limited = tokio::io::AsyncReadExt::take(&mut stream, MAX_ASK);
            if limited.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let ask: Ask = serde_json::from_str(&line)?;
            let attach = matches!(ask, Ask::Attach { .. });
            let stdin = matches!(ask, Ask::Attach { stdin: true });
            // From here on nothing is missed, also while the answer is on its way.
            let output = attach.then(|| self.output.subscribe());
            let answer = self.act(ask).await.unwrap_or_else(|e| Answer::Error(format!("{e:#}")));
            let mut bytes = serde_json::to_vec(&answer)?;
            bytes.push(b'\n');
            stream.write_all(&bytes).await?;
            if let (Some(output), Answer::Done) = (output, &answer) {
                return self.attached(stream, output, stdin).await;
            }
        }
    }

    async fn act(&self, ask: Ask) -> anyhow::Result<Answer> {
        match ask {
            Ask::State => Ok(Answer::State(self.state.borrow().clone())),
            Ask::Start => {
                if *self.state.borrow() != State::Created {
                    bail!("it was started before");
                }
                // Known before: it may have ended when the runtime says that it was started.
                let started_at_ns = now_ns();
                self.progress.lock().started_at_ns = started_at_ns;
                if let Err(error) = self.runtime.run(["start", &self.config.id]).await {
                    self.progress.lock().started_at_ns = 0;
                    return Err(error);
                }
                let state = State::Running { started_at_ns };
                let progress = self.progress.lock();
                if !progress.ended {
                    record(&state)?;
                    self.state.send_replace(state.clone());
                }
                Ok(Answer::State(state))
            }
            Ask::Kill { signal } => {
                // The process is our child: as long as it has not been waited for, the number is its own.
                if !self.state.borrow().is_final() {
                    // SAFETY: kill touches no memory. Real-time signals have no name in nix.
                    let sent = nix::errno::Errno::result(unsafe { libc::kill(self.pid, signal) });
                    match sent {
                        Ok(_) | Err(nix::errno::Errno::ESRCH) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(Answer::Done)
            }
            Ask::Wait => {
                let mut state = self.state.subscribe();
                let last = state.wait_for(State::is_final).await?.clone();
                Ok(Answer::State(last))
            }
            Ask::ReopenLog => {
                if let Some(log) = self.log.lock().as_mut() {
                    log.reopen()?;
                }
                Ok(Answer::Done)
            }
            Ask::Attach { .. } => Ok(Answer::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_code() {
        for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -40 $$", 168), ("kill -64 $$", 192)]
        {
            let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().expect("a shell");
            assert_eq!(wait(i32::try_from(child.id()).expect("a number")).ok(), Some(code), "{script}");
            child.wait().expect_err("waited for before");
        }
    }
}
