//! What a member is asked, by its own process and by the others, and who it asks in turn.
//!
//! Only the leader proposes. Who is asked elsewhere passes the question on and waits until it has applied the answer
//! itself, so that reads and watches of the one who asked see it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::raft::VoteRequest;
use openraft::{Raft, ReadPolicy};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::state_machine::StateMachine;
use super::word::{Heard, Word};
use super::{Request, Types};
use crate::clock::Clock;
use crate::lease::Lessor;
use crate::metrics::Stats;
use crate::mvcc::Command;
use crate::peer::client::{CallError, Link, Peers};
use crate::peer::wire::{self, Proposed, Refusal};
use crate::{Error, TxnResponse, Versions};

/// How long a write may take, an election included.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a read may wait for the leader's word.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the answer of a leader that was replaced is waited for once the next one's entries come: it may be on its way.
const LATE: Duration = Duration::from_millis(500);
/// How long a member that ends waits for the answers of what was proposed at it.
const DRAIN: Duration = Duration::from_secs(2);
/// How long is waited before a question that nobody took is asked again, unless the leader changes before.
const RETRY: Duration = Duration::from_millis(100);
/// A member that for so long knew of no majority that it belongs to is adrift: others that can have replaced the leader
/// have done so long ago.
const ADRIFT: Duration = Duration::from_secs(5);

/// A running raft node; clones share it.
#[derive(Clone)]
pub(crate) struct Handle {
    pub raft: Raft<Types, StateMachine>,
    pub node_id: u64,
    /// The ways to the others; `None`: there are none.
    pub peers: Option<Arc<Peers>>,
    pub stats: Arc<Stats>,
    /// When this member last belonged to a majority: heard of one by its leader, or led it. Raft itself remembers who
    /// led, not whether it still does.
    pub heard: Arc<watch::Sender<Heard>>,
    /// What time it is.
    pub clock: Clock,
    /// The proposals that are made here and not answered yet.
    pub proposals: TaskTracker,
    /// Why raft ended, once it has.
    pub ended: watch::Receiver<Option<String>>,
    /// What this member speaks.
    pub versions: Versions,
    /// Counts the time of leases where this member leads.
    pub lessor: Arc<Lessor>,
    /// Until then it votes for nobody, see [`Self::may_vote`].
    pub sworn: Instant,
    /// Whom this member has put out as the leader.
    pub gone: Arc<Mutex<BTreeSet<u64>>>,
}

impl Handle {
    /// Refuses a vote where this member may have sworn another just before it was started: that one reads by a lease that it
    /// has of a majority, and what this member knew of it is gone.
    ///
    /// # Errors
    /// Until when.
    pub fn may_vote(&self, ask: &VoteRequest<Types>) -> Result<(), String> {
        let left = self.sworn.saturating_duration_since(Instant::now());
        if left.is_zero() || ask.leadership_transfer {
            return Ok(());
        }
        Err(format!("member {} has just started; it may vote in {} ms", self.node_id, left.as_millis()))
    }

    /// Proposes a command, wherever the leader is; returns when it is on disk of a majority and applied here.
    pub async fn propose(&self, command: Command) -> Result<Option<TxnResponse>, Error> {
        self.check_touch()?;
        let started = Instant::now();
        let done = self.propose_until(Arc::new(command), started + WRITE_TIMEOUT).await;
        self.stats.wrote(started.elapsed(), done.is_ok());
        done
    }

    async fn propose_until(
        &self,
        command: Arc<Command>,
        deadline: Instant,
    ) -> Result<Option<TxnResponse>, Error> {
        let here = || self.propose_here(command.clone());
        let path = (wire::PROPOSE, command.version());
        let proposed = self.at_leader(path, &command, deadline, here).await?;
        if !proposed.here {
            self.applied(proposed.log_id.index, deadline).await?;
        }
        Ok(proposed.response)
    }

    /// Proposes a command, which only works where this member leads.
    pub async fn propose_here(&self, command: Arc<Command>) -> Result<Proposed, Error> {
        let _open = self.proposals.token();
        if self.proposals.is_closed() {
            return Err(Error::NotLeader { leader: None });
        }
        self.check_versions(command.version())?;
        let (responder, answer) = ProgressResponder::complete_only();
        let (raft, request) = (self.raft.clone(), Request(command));
        detached(async move { raft.client_write_ff(request, Some(responder)).await })
            .await?
            .map_err(stopped)?;
        let answer = tokio::time::timeout(WRITE_TIMEOUT, self.unless_ended(answer)).await;
        let answer = answer.map_err(|_| Error::Timeout("no majority of the members answered".into()))??;
        match answer {
            Ok(Ok(response)) => {
                Ok(Proposed { response: response.data.0, log_id: response.log_id, here: true })
            }
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: forward.leader_id })
            }
            Ok(Err(error @ ClientWriteError::LogEntryDiscarded(_))) => Err(Error::Timeout(error.to_string())),
            Ok(Err(error)) => Err(stopped(error)),
            Err(_) => Err(Error::Stopped("raft ended".into())),
        }
    }

    /// Fails where a member would not understand what is proposed. Once it has been said, no member of before can come any more.
    fn check_versions(&self, needed: u64) -> Result<(), Error> {
        if needed <= self.lessor.version() {
            return Ok(());
        }
        let behind = |who: String| {
            Err(Error::Unavailable(format!("version {needed} is needed, and {who}; upgrade it")))
        };
        if self.versions.newest < needed {
            return behind(format!("this member speaks {}", self.versions));
        }
        for member in self.members().iter().filter(|member| member.id != self.node_id) {
            match self.link(member.id).and_then(|link| link.speaks()) {
                Some(speaks) if speaks >= needed => {}
                Some(speaks) => return behind(format!("member {} speaks version {speaks}", member.id)),
                None => return behind(format!("member {} has not said what it speaks", member.id)),
            }
        }
        Ok(())
    }

    /// The time to live of a lease and what is left of it, in milliseconds, given anew if asked; wherever the leader is.
    pub async fn lease(&self, id: u64, renew: bool) -> Result<Option<(u64, u64)>, Error> {
        self.check_touch()?;
        let deadline = Instant::now() + READ_TIMEOUT;
        self.at_leader((wire::LEASE, 2), &(id, renew), deadline, || self.lease_here(id, renew)).await
    }

    /// The same where this member leads.
    pub async fn lease_here(&self, id: u64, renew: bool) -> Result<Option<(u64, u64)>, Error> {
        // Nobody else counts, and what was granted before is known here.
        let index = self.read_index_here().await?;
        self.applied(index, Instant::now() + READ_TIMEOUT).await?;
        let term = self.raft.server_metrics().borrow_watched().vote.leader_id.term;
        Ok(self.lessor.look(id, renew, term))
    }

    /// Takes no more proposals, and waits for a bounded time until those that were made here are answered.
    pub async fn drain(&self) {
        self.proposals.close();
        if tokio::time::timeout(DRAIN, self.proposals.wait()).await.is_err() {
            tracing::warn!(open = self.proposals.len(), "proposals are left without an answer");
        }
    }

    /// Returns when what is in memory is the newest state.
    pub async fn linearizable(&self) -> Result<(), Error> {
        if self.is_alone() {
            // No other member can lead, and every write is applied here before it is answered.
            return Ok(());
        }
        self.check_touch()?;
        let deadline = Instant::now() + READ_TIMEOUT;
        loop {
            let asked = self.at_leader((wire::READ_INDEX, 1), &(), deadline, || self.read_index_here()).await;
            match asked {
                // It changes nothing: the next leader may be asked.
                // Not at once: what fails at once would be asked again without end.
                Err(Error::Timeout(_)) if Instant::now() + RETRY < deadline => {
                    tokio::time::sleep(RETRY).await;
                }
                index => return self.applied(index?, deadline).await,
            }
        }
    }

    /// The entry that a read has to see, as this member knows it if it leads.
    pub async fn read_index_here(&self) -> Result<u64, Error> {
        let raft = self.raft.clone();
        let read = detached(async move { raft.get_read_log_id(ReadPolicy::LeaseRead).await }).await?;
        read.map(|(id, _)| id.index()).map_err(read_error)
    }

    /// Returns when this member has applied what its leader knew as committed at most so long ago. Nobody is asked.
    pub async fn fresh_within(&self, age: Duration) -> Result<(), Error> {
        let asked = Instant::now();
        let deadline = asked + READ_TIMEOUT;
        let mut heard = self.heard.subscribe();
        loop {
            self.check_touch()?;
            if self.raft.is_leader() {
                // By its lease it knows that nobody else leads.
                match self.read_index_here().await {
                    Ok(index) => return self.applied(index, deadline).await,
                    Err(Error::NotLeader { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            let last = *heard.borrow_and_update();
            if let Some(committed) =
                last.committed.filter(|_| asked.saturating_duration_since(last.at) <= age)
            {
                return self.applied(committed, deadline).await;
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable(format!("no word of a leader came within {age:?}")));
            }
            let news = tokio::time::timeout(RETRY, self.unless_ended(heard.changed())).await;
            if let Ok(Err(error)) = news {
                return Err(error);
            }
        }
    }

    /// Has a question answered by the leader, which has to speak a version: here or by a call. Questions that were surely
    /// not heard are asked again.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the leader does not understand it, or none could be reached;
    /// [`Error::Timeout`] where the leader may have heard it, and did not answer in time or before another led.
    pub(super) async fn at_leader<Q, A, F>(
        &self,
        (path, needed): (&str, u64),
        ask: &Q,
        deadline: Instant,
        here: impl Fn() -> F,
    ) -> Result<A, Error>
    where
        Q: Serialize + Sync,
        A: DeserializeOwned + Send,
        F: Future<Output = Result<A, Error>>,
    {
        loop {
            let mut news = self.raft.server_metrics();
            let leader = news.borrow_watched().current_leader;
            let answer = match leader {
                Some(id) if id == self.node_id => here().await,
                Some(id) => match self.link(id) {
                    Some(link) if link.speaks().is_some_and(|speaks| speaks < needed) => {
                        let what = format!("version {needed} is needed, and {link} leads; upgrade it");
                        return Err(Error::Unavailable(what));
                    }
                    Some(link) => tokio::select! {
                        answer = ask_there(link, path, ask, deadline) => answer,
                        () = self.replaced(id) => Err(Error::Timeout(format!("member {id} no longer leads"))),
                    },
                    None => Err(Error::NotLeader { leader }),
                },
                None => Err(Error::NotLeader { leader }),
            };
            let Err(Error::NotLeader { leader }) = answer else { return answer };
            if self.peers.is_none() {
                return Err(Error::NotLeader { leader });
            }
            if Instant::now() + RETRY > deadline {
                return Err(Error::Unavailable("no leader could be reached in time".into()));
            }
            if let Some(reason) = self.ended.borrow().clone() {
                return Err(Error::Stopped(reason));
            }
            let changed = tokio::time::timeout(RETRY, news.changed()).await;
            if changed.is_ok() {
                // Who has just been elected may not know it yet.
                tokio::time::sleep(RETRY / 10).await;
            }
        }
    }

    /// Returns a little after an entry of another leader than this was applied here: what became of this one's is settled then.
    async fn replaced(&self, leader: u64) {
        let mut news = self.raft.server_metrics();
        let next = loop {
            let now = news.borrow_watched().clone();
            if now.current_leader.is_some_and(|id| id != leader) {
                break now.vote.leader_id;
            }
            if news.changed().await.is_err() {
                return std::future::pending().await;
            }
        };
        let of_next = |id: &Option<super::LogId>| id.as_ref().is_some_and(|id| id.leader_id >= next);
        if self.raft.watch_apply_progress().wait_until(of_next).await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(LATE).await;
    }

    /// Waits until what was proposed here is answered, for as long as a member waits that ends.
    pub(super) async fn settle(&self) {
        let deadline = Instant::now() + DRAIN;
        while !self.proposals.is_empty() && Instant::now() < deadline {
            tokio::time::sleep(RETRY / 10).await;
        }
    }

    /// The way to another member.
    pub fn link(&self, id: u64) -> Option<Arc<Link>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let address = metrics.membership_config.membership().get_node(&id)?.addr.clone();
        Some(self.peers.as_ref()?.link(id, &address))
    }

    /// Waits until this member has applied an entry.
    async fn applied(&self, index: u64, deadline: Instant) -> Result<(), Error> {
        let mut progress = self.raft.watch_apply_progress();
        let reached = |id: &Option<super::LogId>| id.as_ref().is_some_and(|id| id.index >= index);
        if reached(&progress.get()) {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, self.unless_ended(progress.wait_until(reached))).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(error))) => Err(stopped(error)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout("this member is behind the others".into())),
        }
    }

    /// Waits for raft's answer or its end: a request that is sent while raft ends may never be answered.
    pub(super) async fn unless_ended<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let mut ended = self.ended.clone();
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            reason = ended.wait_for(Option::is_some) => {
                let reason = reason.ok().and_then(|reason| reason.clone());
                Err(Error::Stopped(reason.unwrap_or_else(|| "raft ended".into())))
            }
        }
    }

    /// Whether this member has lost touch with the majority for so long that others may lead and write without it.
    pub fn is_adrift(&self) -> bool {
        if self.peers.is_none() || self.is_alone() {
            return false;
        }
        if self.raft.is_leader() {
            let vote = self.raft.server_metrics().borrow_watched().vote;
            if let Some(word) = Word::of(&self.raft.data_metrics().borrow_watched(), &vote) {
                // Nobody waits for its own word.
                self.heard.send_if_modified(|heard| {
                    heard.take(Instant::now(), word);
                    false
                });
            }
        }
        self.heard.borrow().at.elapsed() >= ADRIFT
    }

    /// Fails at once where waiting for a leader has long been in vain: the caller may go elsewhere.
    fn check_touch(&self) -> Result<(), Error> {
        match self.is_adrift() {
            false => Ok(()),
            true => {
                Err(Error::Unavailable("this member has lost touch with the majority of the others".into()))
            }
        }
    }

    pub fn is_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        // Not the last one beside it: a leader that was put out of two is told of no other.
        metrics.current_leader == Some(self.node_id)
            && metrics.membership_config.voter_ids().eq([self.node_id])
    }
}

/// Boxed: the types of connections are too deep for the futures of whole calls.
fn ask_there<'a, Q: Serialize + Sync, A: DeserializeOwned + Send + 'a>(
    link: Arc<Link>,
    path: &'a str,
    ask: &'a Q,
    deadline: Instant,
) -> BoxFuture<'a, Result<A, Error>> {
    let left = deadline.saturating_duration_since(Instant::now());
    Box::pin(async move {
        match link.call::<Q, Result<A, Refusal>>(path, ask, left).await {
            Ok(answer) => answer.map_err(Error::from),
            Err(CallError::Unsent(why)) => {
                tracing::debug!(path, why, "the leader did not hear a question");
                Err(Error::NotLeader { leader: None })
            }
            Err(CallError::Refused(why)) => Err(Error::Unavailable(why)),
            Err(CallError::Unknown(why)) => Err(Error::Timeout(why)),
        }
    })
}

/// Runs a call of raft to its end even if the caller goes away: those that wait for raft's end must not be dropped
/// meanwhile, or the others that wait for it panic (openraft 0.10.0-alpha.37, `join_core_task`).
pub(crate) async fn detached<T: Send + 'static>(
    call: impl Future<Output = T> + Send + 'static,
) -> Result<T, Error> {
    let mut call = Box::pin(call);
    match futures::poll!(call.as_mut()) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => tokio::spawn(call).await.map_err(stopped),
    }
}

pub(super) fn stopped(error: impl std::fmt::Display) -> Error {
    Error::Stopped(error.to_string())
}

pub(super) fn read_error(error: RaftError<Types, LinearizableReadError<Types>>) -> Error {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            Error::NotLeader { leader: forward.leader_id }
        }
        // It may lead no more without knowing.
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => Error::NotLeader { leader: None },
        error @ RaftError::Fatal(_) => stopped(error),
    }
}
