//! One more program in a container that runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use coracle_streaming::{Near, Output};
use oci_spec::runtime::Spec;
use tokio::process::Child;
use tokio::sync::mpsc;

use crate::runtime::{Runtime, plain};
use crate::shim::Pipe;

/// How long output may take to end after the program has: something that it left behind may hold its streams.
const DRAIN: Duration = Duration::from_secs(2);
/// The exit code that the OCI runtime gives when there is no such program.
const NOT_STARTED: i32 = 255;

/// Runs a program in the container `id`, whose bundle is in `dir`, and answers its exit code.
///
/// # Errors
/// When the OCI runtime cannot run it at all.
pub async fn exec(
    runtime: &Runtime,
    id: &str,
    dir: &Path,
    command: &[String],
    terminal: bool,
    near: Near,
) -> anyhow::Result<i32> {
    let scratch = Scratch::new(dir)?;
    std::fs::write(scratch.path("process.json"), process(dir, command, terminal)?)?;
    let log = scratch.path("log");
    let mut call = runtime.command();
    call.arg("--log").arg(&log).args(["--log-format", "json", "exec"]);
    call.arg("--process").arg(scratch.path("process.json"));
    call.arg("--pid-file").arg(scratch.path("pid")).arg(id);
    let Near { stdin, output, sizes } = near;
    let status = if terminal {
        run_with_terminal(call, stdin, output, sizes, &scratch).await?
    } else {
        run_with_pipes(call, stdin, output, &scratch).await?
    };
    let code = match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => NOT_STARTED,
    };
    // The runtime's own failures look like the program's, but for its log.
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    if code == NOT_STARTED && said.contains("\"level\":\"error\"") {
        bail!("{}", plain(&said));
    }
    Ok(code)
}

/// A folder for one exec, gone with it. The program is killed with it too, should it still run.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(dir: &Path) -> std::io::Result<Self> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("exec-{}-{serial}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }

    fn kill(&self) {
        let pid = std::fs::read_to_string(self.path("pid")).ok().and_then(|t| t.trim().parse().ok());
        if let Some(pid) = pid {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Kills the program when the call is dropped before it has ended.
struct Leash<'a> {
    scratch: &'a Scratch,
    ended: bool,
}

impl Drop for Leash<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.scratch.kill();
        }
    }
}

/// The container's own process with other arguments.
fn process(dir: &Path, command: &[String], terminal: bool) -> anyhow::Result<Vec<u8>> {
    let spec: Spec = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let mut process = spec.process().clone().context("the container has no process")?;
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(terminal));
    Ok(serde_json::to_vec(&process)?)
}

async fn run_with_pipes(
    mut call: tokio::process::Command,
    mut stdin: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Output>,
    scratch: &Scratch,
) -> anyhow::Result<std::process::ExitStatus> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = call.spawn().context("start the OCI runtime")?;
    let mut leash = Leash { scratch, ended: false };
    let mut input = child.stdin.take();
    let feed = tokio::spawn(async move {
        while let Some(bytes) = stdin.recv().await {
            let Some(input) = input.as_mut() else { break };
            if input.write_all(&bytes).await.is_err() {
                break;
            }
        }
        drop(input.take());
    });
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let copies = tokio::spawn(async move {
        let (mut a, mut b) = (vec![0; 32 << 10], vec![0; 32 << 10]);
        loop {
            let piece = tokio::select! {
                read = async { out.as_mut()?.read(&mut a).await.ok() }, if out.is_some() => match read {
                    Some(n) if n > 0 => Output::Stdout(Bytes::copy_from_slice(a.get(..n).unwrap_or_default())),
                    _ => { out = None; continue }
                },
                read = async { err.as_mut()?.read(&mut b).await.ok() }, if err.is_some() => match read {
                    Some(n) if n > 0 => Output::Stderr(Bytes::copy_from_slice(b.get(..n).unwrap_or_default())),
                    _ => { err = None; continue }
                },
                else => return,
            };
            if output.send(piece).await.is_err() {
                return;
            }
        }
    });
    let status = end(&mut child).await?;
    leash.ended = true;
    feed.abort();
    let _ = tokio::time::timeout(DRAIN, copies).await;
    Ok(status)
}

async fn end(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    child.wait().await.context("wait for the OCI runtime")
}

async fn run_with_terminal(
    mut call: tokio::process::Command,
    mut stdin: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Output>,
    mut sizes: mpsc::Receiver<coracle_streaming::Size>,
    scratch: &Scratch,
) -> anyhow::Result<std::process::ExitStatus> {
    let pair = nix::pty::openpty(None, None)?;
    let slave = |fd: &OwnedFd| fd.try_clone().map(|fd| Stdio::from(File::from(fd)));
    call.stdin(slave(&pair.slave)?).stdout(slave(&pair.slave)?).stderr(slave(&pair.slave)?);
    // SAFETY: setsid and ioctl are async-signal-safe. Standard input is the slave side by then; it becomes the
    // controlling terminal, so that the runtime hears of new sizes.
    unsafe {
        call.pre_exec(|| {
            nix::unistd::setsid().map_err(std::io::Error::from)?;
            if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let master = Arc::new(Pipe::new(pair.master)?);
    // A size that is known already is the program's first.
    if let Ok(size) = sizes.try_recv() {
        master.resize(size)?;
    }
    let mut child = call.spawn().context("start the OCI runtime")?;
    drop(call);
    drop(pair.slave);
    let mut leash = Leash { scratch, ended: false };
    let terminal = master.clone();
    let feed = tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(bytes) = stdin.recv() => if terminal.write_all(&bytes).await.is_err() { return },
                Some(size) = sizes.recv() => drop(terminal.resize(size)),
                else => return,
            }
        }
    });
    let copy = tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read @ 1..) = master.read(&mut buffer).await {
            let piece = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
            if output.send(Output::Stdout(piece)).await.is_err() {
                return;
            }
        }
    });
    let status = end(&mut child).await?;
    leash.ended = true;
    feed.abort();
    let _ = tokio::time::timeout(DRAIN, copy).await;
    Ok(status)
}
