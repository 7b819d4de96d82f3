//! Raft's calls to other members.

use std::future::Future;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::metrics::RaftDataMetrics;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, WatchReceiverOf};
use openraft::{BasicNode, OptionalSend};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::word::Word;
use super::{Types, Vote};
use crate::disk::snapshot::SnapshotData;
use crate::peer::client::{Body, CallError, Peers, full, read_answer};
use crate::peer::wire::{self, SnapshotHead};

/// How long entries may take to be written by a member: its disk may be slow.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a heartbeat may take: a busy member answers late, and its word still counts for the leader's lease.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(400);
/// How long a member may take to load a snapshot that it has received.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of a snapshot that are sent at a time, and how many such pieces wait for the connection.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// Makes connections to members.
pub(crate) struct Network {
    /// The ways to them; `None`: there are none.
    pub peers: Option<Arc<Peers>>,
    /// Whether snapshots are read by threads.
    pub threads: bool,
    /// What raft tells of itself, once it runs.
    pub progress: Arc<OnceLock<Progress>>,
}

type Progress = WatchReceiverOf<Types, RaftDataMetrics<Types>>;

/// A connection to one member.
pub(crate) struct Connection {
    peers: Option<Arc<Peers>>,
    target: u64,
    address: String,
    threads: bool,
    progress: Arc<OnceLock<Progress>>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        let Self { peers, threads, progress } = self;
        let (peers, progress) = (peers.clone(), progress.clone());
        Connection { peers, target, address: node.addr.clone(), threads: *threads, progress }
    }
}

fn unreachable(error: &CallError) -> Unreachable<Types> {
    Unreachable::new(error)
}

impl Connection {
    fn peers(&self) -> Result<&Arc<Peers>, CallError> {
        let alone = || CallError::Unsent("this member was opened without a way to others".into());
        self.peers.as_ref().ok_or_else(alone)
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        ask: &Q,
        timeout: Duration,
    ) -> Result<A, RPCError<Types>> {
        let called = async { self.peers()?.link(self.target, &self.address).call(path, ask, timeout).await };
        called.await.map_err(|error| RPCError::Unreachable(unreachable(&error)))
    }
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let timeout = if request.entries.is_empty() {
            option.hard_ttl().max(HEARTBEAT_TIMEOUT)
        } else {
            APPEND_TIMEOUT
        };
        let word = self.progress.get().and_then(|news| Word::of(&news.borrow_watched(), &request.vote));
        let sent = async {
            let link = self.peers()?.link(self.target, &self.address);
            link.call_with(wire::APPEND, &request, Some(Word::header(word)), timeout).await
        };
        sent.await.map_err(|error| RPCError::Unreachable(unreachable(&error)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(wire::VOTE, &request, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(wire::PRE_VOTE, &request, option.hard_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(wire::TRANSFER, &request, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let head = SnapshotHead { vote, meta: snapshot.meta };
        let sent = async {
            // Not over the connection that heartbeats need.
            let link = self.peers()?.fresh(self.target, &self.address);
            let body = snapshot_body(&head, snapshot.snapshot, self.threads).map_err(CallError::Unsent)?;
            let answer = async { read_answer(link.send(Method::POST, wire::SNAPSHOT, body).await?).await };
            let answer = tokio::time::timeout(SNAPSHOT_TIMEOUT, answer).await;
            answer.unwrap_or_else(|_| Err(CallError::Unknown("the snapshot took too long".into())))
        };
        tokio::select! {
            sent = sent => sent.map_err(|error| StreamingError::Unreachable(unreachable(&error))),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

/// A body that is made while it is sent.
fn snapshot_body(head: &SnapshotHead, data: SnapshotData, threads: bool) -> Result<Body, String> {
    let SnapshotData::View(view) = data else {
        return Err("this member does not send snapshot files".into());
    };
    let head = postcard::to_stdvec(head).map_err(|error| error.to_string())?;
    let length = u32::try_from(head.len()).map_err(|error| error.to_string())?;
    if !threads {
        let mut out = length.to_le_bytes().to_vec();
        out.extend_from_slice(&head);
        view.write(&mut out).map_err(|error| error.to_string())?;
        return Ok(full(out));
    }
    let (pieces, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces { gathered: Vec::with_capacity(PIECE), pieces };
        let written = out.write_all(&length.to_le_bytes());
        let written = written.and_then(|()| out.write_all(&head)).and_then(|()| view.write(&mut out));
        if let Err(error) = written.and_then(|()| out.flush()) {
            // An error ends the body early, so that nobody takes it for whole.
            let _ = out.pieces.blocking_send(Err(error));
        }
    });
    let frames =
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let frames = frames.map(|piece: io::Result<Bytes>| piece.map(Frame::data));
    Ok(StreamBody::new(frames).boxed_unsync())
}

/// Gathers what is written into pieces, and waits while the other side is slower.
struct Pieces {
    gathered: Vec<u8>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.gathered, Vec::with_capacity(PIECE));
        let sent = self.pieces.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the snapshot any more"))
    }
}
