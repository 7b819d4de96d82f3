//! The messages between the CRI service and a wasm-host process: plain serialisable data, nothing that acts.
//!
//! On the wire (a unix socket): each side first writes [`PREAMBLE`]; then frames, each a big-endian `u32` length of at
//! most [`MAX_FRAME`] bytes and a postcard body. The client sends [`Call`]s, the host sends [`Message`]s.

mod series;
mod services;

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};
pub use series::{Measured, Number, Series, SeriesKind};
pub use services::{
    Block, Dns, ListenerError, Name, Policy, Ports, Rule, ServiceEntry, ServiceTable, Srv, Transport,
};

/// What each side writes first; the last byte is the version of this protocol. A change that an older host would not
/// understand makes a new version, and what [`crate::client`] still does with a host of an older one is written there.
pub const PREAMBLE: [u8; 4] = *b"CWH\x0b";

/// The oldest version of a host that a client of this one speaks to.
pub const OLDEST: u8 = 0x0a;

/// The longest frame that either side accepts, in bytes.
pub const MAX_FRAME: usize = 16 << 20;

/// A pod: what its containers share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Unique among the sandboxes of a host process.
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub hostname: String,
    /// The pod's address; in the loopback profile one inside 127.64.0.0/11.
    pub pod_ip: Ipv4Addr,
    /// The file of the pod's network namespace, when it has one: its sockets are made there. `None`: among the host's own.
    pub netns: Option<PathBuf>,
    pub dns: DnsConfig,
    pub annotations: BTreeMap<String, String>,
}

/// What a Linux pod would find in `/etc/resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    /// Suffixes tried, in order, for a name with fewer dots than the option `ndots` asks (1 without it).
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// One container: a precompiled component and what it is granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique among the containers of a host process.
    pub id: String,
    pub sandbox_id: String,
    pub name: String,
    pub attempt: u32,
    /// Precompiled code (`.cwasm`), written by [`crate::compile::precompile`].
    pub artifact: PathBuf,
    /// With `args[0]` the program's name; when empty, the container's name is used.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// The guest path that a component starts in; empty for the root.
    pub working_dir: String,
    pub mounts: Vec<Mount>,
    /// The ports on which a wasi:http handler is served; when empty, 8080 (the guest is told by `PORT`).
    pub http_ports: Vec<u16>,
    /// The file that receives stdout and stderr in the CRI log format.
    pub log_path: PathBuf,
    /// Linear memory of all instances of the container together, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u32>,
    /// A new instance for each request, instead of pooled ones.
    pub fresh_instance: bool,
    /// A command has a standard input, which those who attach feed.
    pub stdin: bool,
    /// It ends with the first of them.
    pub stdin_once: bool,
    pub capabilities: Capabilities,
    /// Other containers of the pod, by name, whose exports satisfy imports of this one.
    pub links: Vec<String>,
    /// Others of the pod import what this one exports.
    pub linked: bool,
}

/// What a container is granted beyond WASI: nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// wasi:nn, with these devices to itself (their ids; there may be none).
    pub inference: Option<Vec<String>>,
    /// wasi:config, from the files of the volume that is mounted at this path of the container.
    pub config: Option<String>,
    /// wasi:keyvalue.
    pub keyvalue: Option<KeyValue>,
    /// coracle:observe.
    pub observe: bool,
}

/// Where the buckets of wasi:keyvalue lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyValue {
    /// In memory, as long as the container lives.
    Memory,
    /// In the volume that is mounted at this path of the container.
    Volume(String),
}

/// A directory or file of the host that a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Of a place in a volume that a container may write to: the volume, `/./`, and the place, which is looked up beneath it.
    pub host_path: PathBuf,
    pub guest_path: String,
    pub read_only: bool,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Created,
    /// Nanoseconds since the Unix epoch.
    Running {
        started_at_ns: i64,
    },
    /// Times are nanoseconds since the Unix epoch; `reason` is `Completed`, `Error` or `OOMKilled`.
    Exited {
        started_at_ns: i64,
        finished_at_ns: i64,
        exit_code: i32,
        reason: String,
        message: String,
    },
}

/// What a component exports, and so how it is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Exports a wasi:http handler: served on its ports.
    HttpHandler,
    /// Exports wasi:cli/run: runs to its end.
    Command,
    /// Exports neither, but interfaces that other containers of its pod import: there until it is stopped.
    Library,
}

/// A sandbox as the host knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    pub spec: SandboxSpec,
    /// False once stopped.
    pub ready: bool,
    /// Nanoseconds since the Unix epoch.
    pub created_at_ns: i64,
}

/// A container as the host knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub spec: ContainerSpec,
    pub kind: Kind,
    pub state: State,
    /// Nanoseconds since the Unix epoch.
    pub created_at_ns: i64,
}

/// Everything that a host process holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub sandboxes: Vec<SandboxStatus>,
    pub containers: Vec<ContainerStatus>,
}

/// What a container has used and holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    pub id: String,
    pub sandbox_id: String,
    /// When it was measured, in nanoseconds since the Unix epoch.
    pub timestamp_ns: i64,
    /// CPU time since the container was started, in nanoseconds.
    pub cpu_nanos: u64,
    /// Linear memory held now, in bytes.
    pub memory_bytes: u64,
    /// Live instances.
    pub instances: u32,
    /// Requests served (handlers).
    pub requests: u64,
    /// Of these, those that waited for a new instance.
    pub cold_starts: u64,
    pub latency: Latency,
}

/// Upper bounds of the buckets of [`Latency`], in milliseconds; beyond the last there is one more.
pub const LATENCY_BOUNDS_MS: [u64; 13] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// How long requests took from their arrival to the head of their response (handlers; empty for others).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many fell into each bucket, not summed up.
    pub counts: Vec<u64>,
    pub sum_micros: u64,
}

/// Which host this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    pub version: String,
    pub pid: u32,
    /// What [`crate::engine::engine_fingerprint`] answers there: only artifacts of this fingerprint load.
    pub engine_fingerprint: String,
    pub started_at_ns: i64,
    /// The generation of the Service table in use; 0 when none was given yet.
    pub services_generation: u64,
    /// Sandbox instances come from a pool of reserved address space.
    pub pooling: bool,
    /// Memory mappings of the process, and how many the kernel allows it (`vm.max_map_count`).
    pub mappings: u64,
    pub max_mappings: u64,
}

/// A question with the id that its answer repeats.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    pub id: u64,
    pub request: Request,
}

/// What a client may ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    Inspect,
    CreateSandbox(SandboxSpec),
    /// Stops its containers at once; again is fine.
    StopSandbox {
        id: String,
    },
    /// Removes it and its containers; of one that is not there: fine.
    RemoveSandbox {
        id: String,
    },
    CreateContainer(ContainerSpec),
    StartContainer {
        id: String,
    },
    /// Answers when the container has stopped; one that has already is fine.
    StopContainer {
        id: String,
        grace_ms: u64,
    },
    /// Stops it at once if it runs; of one that is not there: fine.
    RemoveContainer {
        id: String,
    },
    List,
    /// Of the containers that run; all of them when `ids` is empty.
    Stats {
        ids: Vec<String>,
    },
    /// What the guests of the containers that run measure of themselves.
    Series,
    ReopenLog {
        id: String,
    },
    /// Gives a container other limits; `None`: none.
    UpdateContainer {
        id: String,
        memory_limit_bytes: Option<u64>,
        cpu_millis: Option<u32>,
    },
    SetServices(ServiceTable),
    /// Runs the container's own program, an applet, or `artifact` in the container. As the first call of a connection only: after
    /// [`Response::Done`] the connection carries frames of [`coracle_streaming::frame`], the last of which is an [`Ended`].
    Exec {
        id: String,
        args: Vec<String>,
        tty: bool,
        /// A command of the image that lies beside its program, as compiled code.
        artifact: Option<PathBuf>,
    },
    /// Shows what the container writes from now on, and feeds its input. As the first call of a connection only, like
    /// [`Request::Exec`].
    Attach {
        id: String,
        stdin: bool,
    },
    /// From now on events are pushed on this connection.
    Subscribe,
    /// Stops every container within the grace, then the process.
    Shutdown {
        grace_ms: u64,
    },
}

/// The answer to each [`Request`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    Done,
    Info(HostInfo),
    /// To CreateContainer.
    Created(ContainerStatus),
    /// To StartContainer and StopContainer.
    Container(ContainerStatus),
    Listing(Listing),
    Stats(Vec<ContainerStats>),
    Series(Measured),
    /// To SetServices; empty when every listener is open.
    Services(Vec<ListenerError>),
}

/// How a program that was run by [`Request::Exec`] ended, or the container of [`Request::Attach`]: JSON in the last frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub exit_code: i32,
    /// Why it could not be run, if so.
    pub error: Option<String>,
}

/// What the host says without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    ContainerStopped {
        id: String,
        sandbox_id: String,
        state: State,
    },
    /// The subscriber was too slow and missed events: it has to List.
    Lagged,
}

/// One frame from the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "one lives at a time a connection")]
pub enum Message {
    Response { id: u64, result: Result<Response, HostError> },
    Event(Event),
}

/// Why a request failed, in words for a pod's status and in a code for a caller's branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    pub code: ErrorCode,
    pub message: String,
}

/// The classes of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    NotFound,
    AlreadyExists,
    /// The specification is wrong, and will be wrong again.
    Invalid,
    /// A port of the pod is taken.
    PortInUse,
    /// In this state of the object it cannot be done.
    FailedPrecondition,
    /// A limit of the host is reached.
    ResourceExhausted,
    Internal,
}

impl HostError {
    /// An error of this class in these words.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        HostError { code, message: message.into() }
    }
}
