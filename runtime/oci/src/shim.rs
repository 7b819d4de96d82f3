//! The process that stands between a container and the CRI service: one a container. It starts it, writes its log, keeps
//! its input and terminal, waits for its end, and outlives the CRI service, which finds it again by its socket.
//!
//! On the socket: one line of JSON asks, one line answers; after `attach` frames follow (see [`coracle_streaming::frame`]).

mod client;
mod log;
mod pipe;
mod serve;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use client::{Shim, read_state, spawn};
pub(crate) use pipe::Pipe;
pub use serve::main;

/// The files in a container's folder.
pub mod file {
    /// What the shim is told.
    pub const CONFIG: &str = "shim.json";
    /// What became of the container.
    pub const STATE: &str = "state.json";
    /// Where the shim is asked.
    pub const SOCKET: &str = "shim.sock";
    /// What the shim itself has to say.
    pub const LOG: &str = "shim.log";
    /// What the OCI runtime says.
    pub const RUNTIME_LOG: &str = "runtime.log";
    /// The container's first process.
    pub const PID: &str = "pid";
    /// The shim's own process.
    pub const SHIM_PID: &str = "shim.pid";
}

/// What a shim is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub id: String,
    /// The OCI runtime's program and where it keeps its state.
    pub runtime: PathBuf,
    pub root: PathBuf,
    /// Where the log goes; `None`: nowhere.
    pub log_path: Option<PathBuf>,
    pub terminal: bool,
    pub stdin: bool,
    /// The input ends with the first one who gave any.
    pub stdin_once: bool,
    /// The container's control group.
    pub cgroup: String,
}

/// Where a container is in its life. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum State {
    Created,
    Running { started_at_ns: i64 },
    Exited { started_at_ns: i64, finished_at_ns: i64, exit_code: i32, reason: String, message: String },
}

impl State {
    /// Whether nothing comes after it.
    pub fn is_final(&self) -> bool {
        matches!(self, State::Exited { .. })
    }
}

/// What a shim is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "camelCase")]
enum Ask {
    State,
    Start,
    Kill {
        signal: i32,
    },
    /// Answers when the container has exited.
    Wait,
    ReopenLog,
    Attach {
        stdin: bool,
    },
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    State(State),
    Done,
    Error(String),
}

/// What a new shim says once, on its standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Hello {
    Created { pid: i32 },
    Error(String),
}

/// Now, in nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Writes a file beside and renames it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
