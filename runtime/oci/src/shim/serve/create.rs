//! Making the container: its pipes or terminal, and the OCI runtime's `create`.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, watch};

use super::{BEHIND, Config, Log, Pipe, ShimProcess, State, Streams, file};
use crate::runtime::{Runtime, plain};

/// Makes the container of a configuration, in the current folder.
pub(super) async fn create(config: Config) -> anyhow::Result<(Arc<ShimProcess>, Streams)> {
    let log = match &config.log_path {
        Some(path) => Some(Log::open(path).with_context(|| format!("open the log {}", path.display()))?),
        None => None,
    };
    let runtime = Runtime::known(config.runtime.clone(), config.root.clone());
    let mut command = runtime.command();
    command.args(["--log", file::RUNTIME_LOG, "--log-format", "json"]);
    command.args(["create", "--bundle", ".", "--pid-file", file::PID]);
    let console = config.terminal.then(|| UnixListener::bind("console.sock")).transpose()?;
    let mut pipes = None;
    if console.is_some() {
        command.args(["--console-socket", "console.sock"]).stdout(Stdio::null()).stderr(Stdio::null());
    } else {
        let (out, err) = (nix::unistd::pipe()?, nix::unistd::pipe()?);
        for end in [&out.0, &err.0] {
            close_on_exec(end)?;
        }
        command.stdout(Stdio::from(out.1)).stderr(Stdio::from(err.1));
        let mut stdin = None;
        if config.stdin {
            let (reader, writer) = nix::unistd::pipe()?;
            close_on_exec(&writer)?;
            command.stdin(Stdio::from(reader));
            stdin = Some(writer);
        }
        pipes = Some((out.0, err.0, stdin));
    }
    command.arg(&config.id);
    let mut child = command.spawn().with_context(|| format!("start {}", config.runtime.display()))?;
    // Our copies of the container's ends go with the command.
    drop(command);
    let master = match &console {
        Some(console) => tokio::select! {
            master = receive(console) => Some(master?),
            status = child.wait() => bail!("{}", failure(status?)),
        },
        None => None,
    };
    let status = child.wait().await?;
    if !status.success() {
        bail!("{}", failure(status));
    }
    let pid = std::fs::read_to_string(file::PID)?.trim().parse().context("read the process id")?;
    let terminal = master.map(|fd| Pipe::new(fd).map(Arc::new)).transpose()?;
    let (streams, stdin) = match (&terminal, pipes) {
        (Some(terminal), _) => {
            (Streams { stdout: terminal.clone(), stderr: None }, config.stdin.then(|| terminal.clone()))
        }
        (None, Some((out, err, stdin))) => {
            let stdin = stdin.map(|fd| Pipe::new(fd).map(Arc::new)).transpose()?;
            (Streams { stdout: Arc::new(Pipe::new(out)?), stderr: Some(Pipe::new(err)?) }, stdin)
        }
        (None, None) => bail!("the container has no streams"),
    };
    let shim = ShimProcess {
        runtime,
        pid,
        state: watch::Sender::new(State::Created),
        output: broadcast::Sender::new(BEHIND),
        stdin: Mutex::new(stdin),
        terminal,
        log: Mutex::new(log),
        progress: Mutex::default(),
        config,
    };
    Ok((Arc::new(shim), streams))
}

fn close_on_exec(fd: &OwnedFd) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

fn failure(status: std::process::ExitStatus) -> String {
    match std::fs::read_to_string(file::RUNTIME_LOG) {
        Ok(log) if !log.trim().is_empty() => plain(&log),
        _ => format!("the OCI runtime ended with {status}"),
    }
}

/// The master side of the terminal that the OCI runtime has made.
async fn receive(listener: &UnixListener) -> anyhow::Result<OwnedFd> {
    let (stream, _) = listener.accept().await?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 4096];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control
                && let Some(fd) = fds.first()
            {
                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
        bail!("the OCI runtime sent no terminal")
    })
    .await?
}
