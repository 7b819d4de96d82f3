//! The body of the wasm-host process: it owns the sandboxes and outlives the CRI service that made them.

mod confine;
mod registry;
mod streams;

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, broadcast, mpsc},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{self, Abi},
    frame,
    protocol::{Call, ErrorCode, Event, HostError, Message, Request, Response},
    routes::Ranges,
};
use registry::Registry;

/// The most requests of one client that are worked on at once.
const MAX_CALLS: usize = 256;
/// How long containers may take to stop when the process is asked to end by a signal.
const SIGNAL_GRACE: Duration = Duration::from_secs(5);

/// How a host process runs.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The unix socket to listen on (mode 0600); a stale one is replaced.
    pub socket: PathBuf,
    /// Where the host keeps the Service table and its lock; mode 0700.
    pub state_dir: PathBuf,
    /// Which addresses are pods and Services.
    pub ranges: Ranges,
    /// The host of one pod: it gives up the system calls that guests do not take, and opens no listeners of Services, so
    /// that nobody else's connections end with it.
    pub isolated: bool,
    /// One more host beside the shared one, which has the listeners of Services.
    pub further: bool,
    /// The collector that spans of guests go to (OTLP over HTTP), `http://host:port`.
    pub otlp_endpoint: Option<String>,
}

impl HostOptions {
    /// A host with the ranges of the loopback profile.
    pub fn new(socket: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> HostOptions {
        let (socket, state_dir) = (socket.into(), state_dir.into());
        HostOptions {
            socket,
            state_dir,
            ranges: Ranges::default(),
            isolated: false,
            further: false,
            otlp_endpoint: None,
        }
    }
}

/// Serves clients until one asks for shutdown, or SIGTERM does. SIGINT and SIGHUP, which a terminal sends to all that
/// was started from it, are ignored: the host outlives its parents.
pub async fn serve(options: HostOptions) -> anyhow::Result<()> {
    raise_descriptor_limit();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&options.state_dir)
        .with_context(|| format!("making {}", options.state_dir.display()))?;
    let _lock = lock(&options.state_dir.join("lock"))?;
    // The other one is made when somebody needs it: it is as large.
    let shared = engine::running(Abi::Sync).map_err(|e| anyhow::anyhow!("making a wasm engine: {e:#}"))?;
    engine::start_ticking();
    if let Some(endpoint) = &options.otlp_endpoint {
        crate::hosts::observe::start(endpoint).map_err(anyhow::Error::msg)?;
    }
    if options.isolated {
        confine::confine()?;
    }
    let registry = Arc::new(Registry::new(&options, shared.pooling));
    registry.services.restore().await;
    let listener = listen(&options.socket)?;
    let end = CancellationToken::new();
    tokio::spawn(signals(registry.clone(), end.clone()));
    tracing::info!(socket = %options.socket.display(), "wasm host ready");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(client(stream, registry.clone(), end.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a client");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    let _ = std::fs::remove_file(&options.socket);
    // The last answer is on its way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// One host a state directory; the lock ends with the process.
fn lock(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("another wasm host holds {}", path.display()))?;
    Ok(file)
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("another process serves {}", path.display());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the stale {}", path.display()));
        }
        _ => {}
    }
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Each connection is a descriptor: the soft limit of 1024 would be a limit on clients.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    if let Err(error) = raised {
        tracing::warn!(%error, "raising the limit of open files");
    }
}

async fn signals(registry: Arc<Registry>, end: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let streams =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut term), Ok(mut int), Ok(mut hup)) = streams else { return };
    loop {
        tokio::select! {
            _ = term.recv() => {
                registry.shutdown(SIGNAL_GRACE).await;
                end.cancel();
                return;
            }
            _ = int.recv() => {}
            _ = hup.recv() => {}
        }
    }
}

/// Serves one client. When it goes, everything it made stays.
async fn client(mut stream: UnixStream, registry: Arc<Registry>, end: CancellationToken) {
    if let Err(error) = frame::handshake(&mut stream).await {
        tracing::warn!(%error, "a client of the wasm host");
        return;
    }
    let (mut reader, mut writer) = stream.into_split();
    let mut first = match frame::read::<Call>(&mut reader).await {
        Ok(Some(Call { id, request: request @ (Request::Exec { .. } | Request::Attach { .. }) })) => {
            let streaming = streams::serve(&registry, id, request, &mut reader, &mut writer);
            tokio::select! {
                result = streaming => if let Err(error) = result {
                    tracing::debug!(%error, "streams of a container");
                },
                () = end.cancelled() => {}
            }
            return;
        }
        Ok(Some(call)) => Some(call),
        _ => return,
    };
    let (send, outbox) = mpsc::channel(1024);
    let gone = CancellationToken::new();
    tokio::spawn(write(writer, outbox, gone.clone()));
    let calls = Arc::new(Semaphore::new(MAX_CALLS));
    loop {
        let call = match first.take() {
            Some(call) => Ok(Some(call)),
            None => tokio::select! {
                call = frame::read::<Call>(&mut reader) => call,
                () = gone.cancelled() => break,
                () = end.cancelled() => break,
            },
        };
        let call = match call {
            Ok(Some(call)) => call,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "a client of the wasm host");
                break;
            }
        };
        if let Request::Subscribe = call.request {
            tokio::spawn(push(registry.events.subscribe(), send.clone(), gone.clone()));
        }
        let Ok(permit) = calls.clone().acquire_owned().await else { break };
        let (registry, send, end) = (registry.clone(), send.clone(), end.clone());
        tokio::spawn(async move {
            let last = matches!(call.request, Request::Shutdown { .. });
            let result = registry.call(call.request).await;
            let _ = send.send(Message::Response { id: call.id, result }).await;
            drop(permit);
            if last {
                end.cancel();
            }
        });
    }
    gone.cancel();
}

/// A message as a frame. An answer that is too long is an error to who asked: the connection is others' too.
fn encoded(message: Message) -> io::Result<Vec<u8>> {
    match (frame::encode(&message), message) {
        (Err(error), Message::Response { id, .. }) => {
            let result = Err(HostError::new(ErrorCode::ResourceExhausted, format!("the answer: {error}")));
            frame::encode(&Message::Response { id, result })
        }
        (encoded, _) => encoded,
    }
}

async fn write(mut writer: OwnedWriteHalf, mut outbox: mpsc::Receiver<Message>, gone: CancellationToken) {
    while let Some(message) = outbox.recv().await {
        let Ok(frame) = encoded(message) else { break };
        if writer.write_all(&frame).await.is_err() {
            break;
        }
    }
    gone.cancel();
}

/// Passes events on to a subscriber; one that is too slow is told that it missed some.
async fn push(mut events: broadcast::Receiver<Event>, send: mpsc::Sender<Message>, gone: CancellationToken) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = gone.cancelled() => return,
        };
        let event = match event {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => Event::Lagged,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if send.send(Message::Event(event)).await.is_err() {
            return;
        }
    }
}

/// The answer of requests that return nothing.
fn done() -> Response {
    Response::Done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Listing, MAX_FRAME};

    #[test]
    fn an_answer_that_is_too_long_is_an_error_to_who_asked() {
        let long = Err(HostError::new(ErrorCode::Internal, "x".repeat(MAX_FRAME)));
        let frame = encoded(Message::Response { id: 7, result: long }).unwrap();
        let Ok(Message::Response { id: 7, result: Err(error) }) = postcard::from_bytes(&frame[4..]) else {
            panic!("{} bytes", frame.len());
        };
        assert_eq!(error.code, ErrorCode::ResourceExhausted);
        let short = Message::Response { id: 7, result: Ok(Response::Listing(Listing::default())) };
        assert!(encoded(short).unwrap().len() < 64);
    }
}
