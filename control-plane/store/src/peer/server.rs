//! What a member does for the others.

use std::future::Future;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt;
use http::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use openraft::type_config::alias::SnapshotOf;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::wire::{self, MAX_BODY, Refusal, SnapshotHead};
use super::{Peering, VERSIONS, Versions, Way};
use crate::Error;
use crate::disk::snapshot::{SnapshotData, private_file};
use crate::disk::unblock;
use crate::metrics::Stats;
use crate::mvcc::Command;
use crate::raft::handle::{Handle, detached};
use crate::raft::membership::Asks;
use crate::raft::word::{self, Word};
use crate::raft::{Entry, Types};

const MAX_CONNECTIONS: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a sender of a snapshot may say nothing.
const SNAPSHOT_IDLE: Duration = Duration::from_secs(30);
/// How long the connections may take to end when the member does.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
const MAX_HEAD: usize = 1 << 20;

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    member: Handle,
    cluster: Arc<str>,
    /// One snapshot arrives at a time.
    incoming: Arc<tokio::sync::Mutex<Incoming>>,
}

/// Where a snapshot goes that arrives.
pub(crate) struct Incoming {
    pub path: PathBuf,
    /// Whether it is written by threads.
    pub threads: bool,
}

/// Serves the other members until the future is ready. What is returned ends once all that was answered has left, or soon.
pub(crate) fn serve(
    peering: Peering,
    member: Handle,
    incoming: Incoming,
    versions: Versions,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<Option<JoinHandle<()>>, Error> {
    let shared = Shared {
        member,
        cluster: peering.cluster.into(),
        incoming: Arc::new(tokio::sync::Mutex::new(incoming)),
    };
    let stats = shared.member.stats.clone();
    let router = router(shared, versions, peering.routes);
    let (listener, acceptor) = match peering.way {
        Way::Simulated(transport) => {
            transport.serve(&peering.address, router);
            return Ok(None);
        }
        Way::Sockets { listener, tls, .. } => (listener, TlsAcceptor::from(tls.server_config()?)),
    };
    let serving = tokio::spawn(async move {
        let open = GracefulShutdown::new();
        // Connections end with this set.
        let mut connections = tokio::task::JoinSet::new();
        tokio::select! {
            () = accept(listener, acceptor, router, &stats, (&open, &mut connections)) => {}
            () = stop => {}
        }
        // What was answered still leaves.
        let _ = tokio::time::timeout(LAST_WORDS, open.shutdown()).await;
    });
    Ok(Some(serving))
}

fn router(shared: Shared, versions: Versions, others: Router) -> Router {
    let check = shared.cluster.clone();
    let since_version_2 = Router::new().route(wire::LEASE, post(lease)).with_state(shared.clone());
    let since_version_2 = if versions.newest >= 2 { since_version_2 } else { Router::new() };
    Router::new()
        .route(wire::APPEND, post(append))
        .route(wire::VOTE, post(vote))
        .route(wire::PRE_VOTE, post(pre_vote))
        .route(wire::TRANSFER, post(transfer))
        .route(wire::SNAPSHOT, post(snapshot))
        .route(wire::PROPOSE, post(propose))
        .route(wire::READ_INDEX, post(read_index))
        .route(wire::ADMIT, post(admit))
        .route(wire::READMIT, post(readmit))
        .route(wire::REMOVE, post(remove))
        .route(wire::MEMBERS, post(members))
        .with_state(shared)
        .merge(since_version_2)
        .merge(others)
        .layer(axum::middleware::from_fn(move |request: Request<Body>, next: axum::middleware::Next| {
            let check = check.clone();
            async move {
                let named = request.headers().get(wire::CLUSTER).map(http::HeaderValue::as_bytes);
                let mut response = if named != Some(check.as_bytes()) {
                    (StatusCode::MISDIRECTED_REQUEST, "this is a member of another cluster").into_response()
                } else if let Err(why) = versions.check(Versions::read(request.headers())) {
                    (StatusCode::UPGRADE_REQUIRED, why).into_response()
                } else {
                    next.run(request).await
                };
                if let Some(versions) = versions.header() {
                    response.headers_mut().insert(VERSIONS, versions);
                }
                response
            }
        }))
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    stats: &Arc<Stats>,
    (open, connections): (&GracefulShutdown, &mut tokio::task::JoinSet<()>),
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept from a member");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
        let (open, stats) = (open.watcher(), stats.clone());
        connections.spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => {
                    stats.strangers.fetch_add(1, Ordering::Relaxed);
                    return tracing::warn!(%peer, %error, "refused: not a member");
                }
                Err(_) => return,
            };
            let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(2 << 20)
                .initial_connection_window_size(8 << 20)
                .serve_connection(TokioIo::new(tls), service);
            if let Err(error) = open.watch(served).await {
                tracing::debug!(%peer, %error, "connection of a member");
            }
        });
    }
}

/// Whether a member that speaks these versions can read an entry.
fn is_known(entry: &Entry, versions: Versions) -> bool {
    match &entry.payload {
        EntryPayload::Normal(request) => request.0.version() <= versions.newest,
        _ => true,
    }
}

/// Reads a question, has it answered, writes the answer.
async fn answer<Q, A, F>(request: Request<Body>, work: impl FnOnce(Q) -> F) -> Response
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = Result<A, String>>,
{
    answer_known(request, |_| true, work).await
}

/// The same for questions that may be of a newer version than those that this member can read.
async fn answer_known<Q, A, F>(
    request: Request<Body>,
    known: impl FnOnce(&Q) -> bool,
    work: impl FnOnce(Q) -> F,
) -> Response
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = Result<A, String>>,
{
    let body = match axum::body::to_bytes(request.into_body(), MAX_BODY).await {
        Ok(body) => body,
        Err(error) => return (StatusCode::PAYLOAD_TOO_LARGE, error.to_string()).into_response(),
    };
    let question = match postcard::from_bytes(&body) {
        Ok(question) => question,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    if !known(&question) {
        return (StatusCode::BAD_REQUEST, "this member does not know what it is asked").into_response();
    }
    let answered = work(question).await.and_then(|a| postcard::to_stdvec(&a).map_err(|e| e.to_string()));
    match answered {
        Ok(bytes) => bytes.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

async fn append(State(shared): State<Shared>, mut request: Request<Body>) -> Response {
    let (came, said) = (Instant::now(), request.headers_mut().remove(word::HEADER));
    let versions = shared.member.versions;
    let known =
        move |ask: &AppendEntriesRequest<Types>| ask.entries.iter().all(|entry| is_known(entry, versions));
    answer_known(request, known, |ask: AppendEntriesRequest<Types>| async move {
        let word = Word::read(said.as_ref(), &ask.vote, ask.leader_commit);
        let answer = shared.member.raft.append_entries(ask).await.map_err(|error| error.to_string())?;
        // One of an earlier term is refused.
        let word = word.filter(|_| !matches!(answer, AppendEntriesResponse::HigherVote(_)));
        if let Some(word) = word {
            shared.member.heard.send_if_modified(|heard| heard.take(came, word));
        }
        Ok(answer)
    })
    .await
}

async fn vote(State(shared): State<Shared>, request: Request<Body>) -> Response {
    answer(request, |ask: VoteRequest<Types>| async move {
        shared.member.may_vote(&ask)?;
        shared.member.raft.vote(ask).await.map_err(|error| error.to_string())
    })
    .await
}

async fn pre_vote(State(shared): State<Shared>, request: Request<Body>) -> Response {
    answer(request, |ask: VoteRequest<Types>| async move {
        shared.member.may_vote(&ask)?;
        shared.member.raft.pre_vote(ask).await.map_err(|error| error.to_string())
    })
    .await
}

async fn transfer(State(shared): State<Shared>, request: Request<Body>) -> Response {
    answer(request, |ask| async move {
        shared.member.raft.handle_transfer_leader(ask).await.map_err(|error| error.to_string())
    })
    .await
}

async fn propose(State(shared): State<Shared>, request: Request<Body>) -> Response {
    let versions = shared.member.versions;
    let known = move |command: &Command| command.version() <= versions.newest;
    answer_known(request, known, |mut command: Command| async move {
        if let Command::Txn { now_ms, txn } = &mut command {
            if let Err(error) = txn.check() {
                return Ok(Err(Refusal::from(error)));
            }
            // One clock for all that expires: the leader's.
            *now_ms = shared.member.clock.now_ms();
        }
        Ok(shared.member.propose_here(Arc::new(command)).await.map_err(Refusal::from))
    })
    .await
}

async fn read_index(State(shared): State<Shared>, request: Request<Body>) -> Response {
    answer(request, |(): ()| async move { Ok(shared.member.read_index_here().await.map_err(Refusal::from)) })
        .await
}

async fn admit(State(shared): State<Shared>, request: Request<Body>) -> Response {
    let_in(shared, request, Asks::First).await
}

async fn readmit(State(shared): State<Shared>, request: Request<Body>) -> Response {
    let_in(shared, request, Asks::Again).await
}

async fn let_in(shared: Shared, request: Request<Body>, who: Asks) -> Response {
    let theirs = Versions::read(request.headers());
    answer(request, |(id, address): (u64, String)| async move {
        // What is in use may not have come here yet, and whoever leads sees the version of who passes this on.
        if let Err(error) = shared.member.linearizable().await {
            return Ok(Err(Refusal::from(error)));
        }
        let ours = shared.member.lessor.version();
        if theirs.newest < ours {
            let what =
                format!("this cluster uses version {ours}, the new member speaks {theirs}: upgrade it");
            return Ok(Err(Refusal::Invalid(what)));
        }
        Ok(shared.member.admit(id, address, who).await.map_err(Refusal::from))
    })
    .await
}

async fn remove(State(shared): State<Shared>, request: Request<Body>) -> Response {
    answer(request, |id: u64| async move { Ok(shared.member.remove(id).await.map_err(Refusal::from)) }).await
}

async fn lease(State(shared): State<Shared>, request: Request<Body>) -> Response {
    answer(request, |(id, renew): (u64, bool)| async move {
        Ok(shared.member.lease_here(id, renew).await.map_err(Refusal::from))
    })
    .await
}

async fn members(State(shared): State<Shared>, request: Request<Body>) -> Response {
    answer(request, |(): ()| async move {
        let read = shared.member.linearizable().await;
        Ok(read.map(|()| shared.member.members()).map_err(Refusal::from))
    })
    .await
}

async fn snapshot(State(shared): State<Shared>, request: Request<Body>) -> Response {
    // Whoever comes second finds what the first one brought.
    let Ok(incoming) = shared.incoming.clone().try_lock_owned() else {
        return (StatusCode::CONFLICT, "another snapshot is arriving").into_response();
    };
    let raft = shared.member.raft.clone();
    // To its end even if the sender goes: the file is read by its name, which the next snapshot takes.
    let installed = detached(async move {
        let installed = async {
            let head = receive(request.into_body(), &incoming).await?;
            let data = SnapshotData::File(incoming.path.clone());
            let snapshot = SnapshotOf::<Types, SnapshotData> { meta: head.meta, snapshot: data };
            raft.install_full_snapshot(head.vote, snapshot).await.map_err(io::Error::other)
        };
        let installed = installed.await;
        let path = incoming.path.clone();
        let _ = unblock(incoming.threads, || std::fs::remove_file(path)).await;
        installed
    });
    let installed = installed.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    let answered = installed.and_then(|answer| postcard::to_stdvec(&answer).map_err(io::Error::other));
    match answered {
        Ok(bytes) => bytes.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Writes what arrives into a file; returns what went before it.
async fn receive(body: Body, incoming: &Incoming) -> io::Result<SnapshotHead> {
    let mut chunks = body.into_data_stream();
    let mut next = async || match tokio::time::timeout(SNAPSHOT_IDLE, chunks.next()).await {
        Ok(chunk) => chunk.transpose().map_err(io::Error::other),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the snapshot does not go on")),
    };
    let mut start = Vec::new();
    let (head, rest) = loop {
        if let Some((length, tail)) = start.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            if length > MAX_HEAD {
                return Err(io::Error::other("the head of the snapshot is too long"));
            }
            if let Some((head, rest)) = tail.split_at_checked(length) {
                break (postcard::from_bytes(head).map_err(io::Error::other)?, rest.to_vec());
            }
        }
        let Some(chunk) = next().await? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        start.extend_from_slice(&chunk);
    };
    let mut file = private_file(&incoming.path)?;
    if !incoming.threads {
        file.write_all(&rest)?;
        while let Some(chunk) = next().await? {
            file.write_all(&chunk)?;
        }
        return Ok(head);
    }
    let mut file = tokio::fs::File::from_std(file);
    file.write_all(&rest).await?;
    while let Some(chunk) = next().await? {
        file.write_all(&chunk).await?;
    }
    // Installing it reads it through its name; what raft keeps is the database that it goes into.
    file.flush().await?;
    Ok(head)
}
