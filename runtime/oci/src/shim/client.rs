//! The CRI service's side: starting a shim, finding it again, asking it.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use coracle_streaming::{Near, frame};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::{Answer, Ask, Config, Hello, State, file, write_whole};

/// A shim that may live.
#[derive(Clone, Debug)]
pub struct Shim {
    dir: PathBuf,
}

/// Starts a shim for the bundle in `dir`; answers when the container is created.
///
/// # Errors
/// In the words of the OCI runtime when it refuses.
pub async fn spawn(dir: &Path, command: &[OsString], config: &Config) -> anyhow::Result<Shim> {
    let (program, first) = command.split_first().context("no command for shims is set")?;
    write_whole(&dir.join(file::CONFIG), &serde_json::to_vec(config)?)?;
    let log = File::create(dir.join(file::LOG))?;
    let mut command = tokio::process::Command::new(program);
    command.args(first).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command.current_dir("/").env_remove("RUST_BACKTRACE");
    // SAFETY: between fork and exec only setsid is called, which is async-signal-safe. A session of its own keeps
    // signals to our terminal and process group away from the shim.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid().map_err(std::io::Error::from)?;
            Ok(())
        });
    }
    let mut child = command.spawn().with_context(|| format!("start {program:?}"))?;
    let stdout = child.stdout.take().context("the shim has no output")?;
    // Reaps it, should it end while this process lives. It is not killed with us.
    tokio::spawn(async move { child.wait().await });
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await?;
    match serde_json::from_str(&line) {
        Ok(Hello::Created { .. }) => Ok(Shim { dir: dir.to_owned() }),
        Ok(Hello::Error(words)) => bail!("{words}"),
        Err(_) => {
            let said = std::fs::read_to_string(dir.join(file::LOG)).unwrap_or_default();
            bail!("the shim ended before the container was created: {}", said.trim())
        }
    }
}

/// What a shim wrote last, should it live no more.
pub fn read_state(dir: &Path) -> Option<State> {
    serde_json::from_slice(&std::fs::read(dir.join(file::STATE)).ok()?).ok()
}

impl Shim {
    /// The shim of the container in `dir`.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    async fn connect(&self) -> anyhow::Result<BufReader<UnixStream>> {
        // By the folder's handle: the whole path may be longer than a socket's address can be.
        let dir = File::open(&self.dir).with_context(|| format!("open {}", self.dir.display()))?;
        let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), file::SOCKET);
        let stream = UnixStream::connect(path).await.context("connect to the container's shim")?;
        Ok(BufReader::new(stream))
    }

    async fn ask(&self, ask: &Ask) -> anyhow::Result<(Answer, BufReader<UnixStream>)> {
        let mut stream = self.connect().await?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if line.is_empty() {
            bail!("the container's shim is gone");
        }
        match serde_json::from_str(&line)? {
            Answer::Error(words) => bail!("{words}"),
            answer => Ok((answer, stream)),
        }
    }

    async fn state_of(&self, ask: &Ask) -> anyhow::Result<State> {
        match self.ask(ask).await?.0 {
            Answer::State(state) => Ok(state),
            other => bail!("the shim answered {other:?}"),
        }
    }

    /// How the container is now.
    pub async fn state(&self) -> anyhow::Result<State> {
        self.state_of(&Ask::State).await
    }

    /// Starts it.
    pub async fn start(&self) -> anyhow::Result<State> {
        self.state_of(&Ask::Start).await
    }

    /// Answers when it has exited.
    pub async fn wait(&self) -> anyhow::Result<State> {
        self.state_of(&Ask::Wait).await
    }

    /// Sends a signal to its first process; one that has ended is fine.
    pub async fn kill(&self, signal: i32) -> anyhow::Result<()> {
        self.ask(&Ask::Kill { signal }).await.map(drop)
    }

    /// Goes on in a new log file of the same name.
    pub async fn reopen_log(&self) -> anyhow::Result<()> {
        self.ask(&Ask::ReopenLog).await.map(drop)
    }

    /// Attaches streams until the container ends or either side hangs up; answers how it ended, if it did.
    pub async fn attach(&self, stdin: bool, near: Near) -> anyhow::Result<Option<State>> {
        let (_, stream) = self.ask(&Ask::Attach { stdin }).await?;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let end = frame::carry(&mut reader, &mut writer, near).await?;
        Ok(end.and_then(|words| serde_json::from_slice(&words).ok()))
    }
}
