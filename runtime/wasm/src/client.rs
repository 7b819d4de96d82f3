//! The client of a wasm-host process: one connection, many calls in flight, events as a stream.
//!
//! A connection that breaks fails every call with [`Error::Disconnected`]; connecting again is the caller's business.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
};

use crate::{
    frame,
    protocol::{
        Call, ContainerSpec, ContainerStats, ContainerStatus, Ended, ErrorCode, Event, HostError, HostInfo,
        ListenerError, Listing, Measured, Message, PREAMBLE, Request, Response, SandboxSpec, ServiceTable,
    },
};

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connecting to the wasm host at {path}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    /// A host of another build, to which this one cannot speak.
    #[error("the wasm host at {path} speaks version {theirs} of the protocol, this build {own}", own = PREAMBLE[3])]
    Version { path: PathBuf, theirs: u8, pid: Option<i32> },
    #[error("the connection to the wasm host is gone")]
    Disconnected,
    /// The host understood and refused.
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("a call of the wasm host: {0}")]
    TooLong(io::Error),
    #[error("the wasm host answered {0} with something else")]
    Mismatch(&'static str),
}

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Response, HostError>>>>>>;

/// A handle on a connection; clones share it.
#[derive(Clone)]
pub struct HostClient {
    /// Calls as frames.
    calls: mpsc::Sender<Vec<u8>>,
    next_id: Arc<AtomicU64>,
    waiting: Waiting,
    events: broadcast::Sender<Event>,
    closed: tokio_util::sync::CancellationToken,
    /// The version of the protocol that the host speaks.
    version: u8,
}

/// From this version on the series of guests are as they are now.
const SERIES_SINCE: u8 = 0x0b;

/// A connection, and the version that is spoken on it.
async fn open(path: &Path) -> Result<(UnixStream, u8), Error> {
    frame::connect(path).await.map_err(|source| {
        let stranger = source.get_ref().and_then(|e| e.downcast_ref::<frame::Stranger>());
        match stranger.filter(|s| s.theirs[..3] == PREAMBLE[..3]) {
            Some(other) => Error::Version { path: path.into(), theirs: other.theirs[3], pid: other.pid },
            None => Error::Connect { path: path.into(), source },
        }
    })
}

impl HostClient {
    /// Connects to the socket of a host and checks that it speaks this protocol, or an older version that serves.
    pub async fn connect(path: &Path) -> Result<HostClient, Error> {
        let (stream, version) = open(path).await?;
        let (mut reader, mut writer) = stream.into_split();
        let (calls, mut outbox) = mpsc::channel::<Vec<u8>>(64);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, _) = broadcast::channel(1024);
        let closed = tokio_util::sync::CancellationToken::new();

        let (done, inbox, announce) = (closed.clone(), waiting.clone(), events.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = frame::read::<Message>(&mut reader).await {
                match message {
                    Message::Event(event) => drop(announce.send(event)),
                    Message::Response { id, result } => {
                        if let Some(asker) = inbox.lock().as_mut().and_then(|w| w.remove(&id)) {
                            let _ = asker.send(result);
                        }
                    }
                }
            }
            // Dropping the senders tells every caller that no answer will come.
            inbox.lock().take();
            done.cancel();
        });
        let done = closed.clone();
        tokio::spawn(async move {
            loop {
                let call = tokio::select! {
                    call = outbox.recv() => call,
                    () = done.cancelled() => None,
                };
                let Some(call) = call else { break };
                if writer.write_all(&call).await.is_err() {
                    break;
                }
            }
        });
        Ok(HostClient { calls, next_id: Arc::default(), waiting, events, closed, version })
    }

    /// Ends when the connection is gone.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    async fn call(&self, request: Request) -> Result<Response, Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // One that is too long fails alone: the connection is others' too.
        let call = frame::encode(&Call { id, request }).map_err(Error::TooLong)?;
        let (tell, answer) = oneshot::channel();
        self.waiting.lock().as_mut().ok_or(Error::Disconnected)?.insert(id, tell);
        if self.calls.send(call).await.is_err() {
            return Err(Error::Disconnected);
        }
        Ok(answer.await.map_err(|_| Error::Disconnected)??)
    }

    async fn done(&self, request: Request, name: &'static str) -> Result<(), Error> {
        match self.call(request).await? {
            Response::Done => Ok(()),
            _ => Err(Error::Mismatch(name)),
        }
    }

    /// Which host this is: version, process, engine.
    pub async fn inspect(&self) -> Result<HostInfo, Error> {
        match self.call(Request::Inspect).await? {
            Response::Info(info) => Ok(info),
            _ => Err(Error::Mismatch("Inspect")),
        }
    }

    /// Makes a sandbox, ready for containers.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<(), Error> {
        self.done(Request::CreateSandbox(spec), "CreateSandbox").await
    }

    /// Stops a sandbox and its containers at once; again is fine.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        self.done(Request::StopSandbox { id: id.into() }, "StopSandbox").await
    }

    /// Removes a sandbox and its containers; of one that is not there: fine.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        self.done(Request::RemoveSandbox { id: id.into() }, "RemoveSandbox").await
    }

    /// Loads the code and checks what can be checked before it runs: mounts, ports of its pod, kind.
    pub async fn create_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, Error> {
        match self.call(Request::CreateContainer(spec)).await? {
            Response::Created(status) => Ok(status),
            _ => Err(Error::Mismatch("CreateContainer")),
        }
    }

    /// Starts a created container: a handler listens when this answers.
    pub async fn start_container(&self, id: &str) -> Result<ContainerStatus, Error> {
        match self.call(Request::StartContainer { id: id.into() }).await? {
            Response::Container(status) => Ok(status),
            _ => Err(Error::Mismatch("StartContainer")),
        }
    }

    /// Stops a container within `grace_ms` and answers its last state; again is fine.
    pub async fn stop_container(&self, id: &str, grace_ms: u64) -> Result<ContainerStatus, Error> {
        match self.call(Request::StopContainer { id: id.into(), grace_ms }).await? {
            Response::Container(status) => Ok(status),
            _ => Err(Error::Mismatch("StopContainer")),
        }
    }

    /// Removes a container, stopping it at once if it runs; of one that is not there: fine.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        self.done(Request::RemoveContainer { id: id.into() }, "RemoveContainer").await
    }

    /// Every sandbox and container that the host holds.
    pub async fn list(&self) -> Result<Listing, Error> {
        match self.call(Request::List).await? {
            Response::Listing(listing) => Ok(listing),
            _ => Err(Error::Mismatch("List")),
        }
    }

    /// Use of running containers: of these, or of all when `ids` is empty.
    pub async fn stats(&self, ids: &[String]) -> Result<Vec<ContainerStats>, Error> {
        match self.call(Request::Stats { ids: ids.to_vec() }).await? {
            Response::Stats(stats) => Ok(stats),
            _ => Err(Error::Mismatch("Stats")),
        }
    }

    /// What the guests of running containers measure of themselves.
    pub async fn series(&self) -> Result<Measured, Error> {
        // An older host's have another shape: they are left out as long as it lives.
        if self.version < SERIES_SINCE {
            return Ok(Measured::default());
        }
        match self.call(Request::Series).await? {
            Response::Series(measured) => Ok(measured),
            _ => Err(Error::Mismatch("Series")),
        }
    }

    /// Opens the container's log path anew, after a rotation.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.done(Request::ReopenLog { id: id.into() }, "ReopenLog").await
    }

    /// Gives a container other limits: bytes of linear memory and thousandths of a CPU, `None` for none.
    pub async fn update_container(
        &self,
        id: &str,
        memory_limit_bytes: Option<u64>,
        cpu_millis: Option<u32>,
    ) -> Result<(), Error> {
        let request = Request::UpdateContainer { id: id.into(), memory_limit_bytes, cpu_millis };
        self.done(request, "UpdateContainer").await
    }

    /// Replaces the Service table; listeners that could not be opened are answered as data.
    pub async fn set_services(&self, table: ServiceTable) -> Result<Vec<ListenerError>, Error> {
        match self.call(Request::SetServices(table)).await? {
            Response::Services(errors) => Ok(errors),
            _ => Err(Error::Mismatch("SetServices")),
        }
    }

    /// The events from now on. [`Event::Lagged`] asks the caller to list again; the stream ends with the connection.
    pub async fn subscribe(&self) -> Result<Events, Error> {
        let events = self.events.subscribe();
        self.done(Request::Subscribe, "Subscribe").await?;
        Ok(Events { events, closed: self.closed.clone() })
    }

    /// Stops every container within the grace, and then the process.
    pub async fn shutdown(&self, grace_ms: u64) -> Result<(), Error> {
        self.done(Request::Shutdown { grace_ms }, "Shutdown").await
    }
}

/// Runs a program in a container with these streams; answers its exit code. On a connection of its own. `artifact` is
/// compiled code that is run instead of what the container has.
pub async fn exec(
    path: &Path,
    id: &str,
    args: Vec<String>,
    tty: bool,
    artifact: Option<PathBuf>,
    near: coracle_streaming::Near,
) -> Result<i32, Error> {
    stream(path, Request::Exec { id: id.into(), args, tty, artifact }, near).await
}

/// Joins a container with these streams; answers its exit code when it has ended. On a connection of its own.
pub async fn attach(path: &Path, id: &str, stdin: bool, near: coracle_streaming::Near) -> Result<i32, Error> {
    stream(path, Request::Attach { id: id.into(), stdin }, near).await
}

async fn stream(path: &Path, request: Request, near: coracle_streaming::Near) -> Result<i32, Error> {
    let fail = |source| Error::Connect { path: path.into(), source };
    let (stream, _) = open(path).await?;
    let (mut reader, mut writer) = stream.into_split();
    frame::write(&mut writer, &Call { id: 0, request }).await.map_err(fail)?;
    match frame::read::<Message>(&mut reader).await.map_err(fail)? {
        Some(Message::Response { result, .. }) => drop(result?),
        _ => return Err(Error::Disconnected),
    }
    let ended = coracle_streaming::frame::carry(&mut reader, &mut writer, near).await.map_err(fail)?;
    let ended: Ended =
        ended.and_then(|words| serde_json::from_slice(&words).ok()).ok_or(Error::Disconnected)?;
    match ended.error {
        None => Ok(ended.exit_code),
        Some(words) => Err(HostError::new(ErrorCode::Internal, words).into()),
    }
}

/// Events of one subscription.
pub struct Events {
    events: broadcast::Receiver<Event>,
    closed: tokio_util::sync::CancellationToken,
}

impl Events {
    /// The next event; `None` when the connection is gone.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Ok(event) => Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Lagged),
                Err(broadcast::error::RecvError::Closed) => None,
            },
            () = self.closed.cancelled() => None,
        }
    }

    /// The same as a `Stream`.
    pub fn into_stream(self) -> impl futures::Stream<Item = Event> + Send {
        futures::stream::unfold(
            self,
            |mut events| async move { events.next().await.map(|event| (event, events)) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncReadExt, net::UnixListener};

    /// A host that speaks this version alone, and knows one question.
    fn host(dir: &Path, version: u8) -> PathBuf {
        let path = dir.join(format!("{version}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let words = [b'C', b'W', b'H', version];
                stream.write_all(&words).await.unwrap();
                let mut theirs = [0; 4];
                if stream.read_exact(&mut theirs).await.is_err() || theirs != words {
                    continue;
                }
                let (mut reader, mut writer) = stream.into_split();
                while let Ok(Some(call)) = frame::read::<Call>(&mut reader).await {
                    assert!(matches!(call.request, Request::List), "{:?}", call.request);
                    let answer =
                        Message::Response { id: call.id, result: Ok(Response::Listing(Listing::default())) };
                    frame::write(&mut writer, &answer).await.unwrap();
                }
            }
        });
        path
    }

    #[tokio::test]
    async fn an_older_host_is_spoken_to_in_its_version_and_a_stranger_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for version in [PREAMBLE[3], crate::protocol::OLDEST] {
            let client = HostClient::connect(&host(dir.path(), version)).await.unwrap();
            assert_eq!(client.version, version);
            assert_eq!(client.list().await.unwrap(), Listing::default());
        }
        let old =
            HostClient::connect(&dir.path().join(format!("{}.sock", crate::protocol::OLDEST))).await.unwrap();
        assert_eq!(old.series().await.unwrap(), Measured::default(), "not asked");
        for version in [crate::protocol::OLDEST - 1, PREAMBLE[3] + 1] {
            match HostClient::connect(&host(dir.path(), version)).await {
                Err(Error::Version { theirs, pid, .. }) => {
                    assert_eq!((theirs, pid), (version, Some(std::process::id().cast_signed())));
                }
                other => panic!("{:?}", other.map(drop)),
            }
        }
    }
}
