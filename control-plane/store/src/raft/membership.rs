//! Who belongs to the cluster, and changes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, RaftState};
use tokio::time::Instant;

use super::handle::{Handle, detached, stopped};
use super::node::REMOVED;
use super::{Types, Vote};
use crate::peer::client::{CallError, full};
use crate::peer::wire::{self, Refusal};
use crate::{Error, peer};

/// How long a new member may take to catch up, and a change to be agreed upon.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a change waits for the one before it.
const ONE_BEFORE: Duration = Duration::from_secs(5);
/// How long a member may take to say whether it has what is asked for.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of what one member is asked for.
const MOST_ASKED: usize = 1 << 20;
/// How long a member that cannot join yet waits.
const JOIN_AGAIN: Duration = Duration::from_millis(500);

type Change = ChangeMembers<u64, BasicNode>;

/// What a member that asks to be let in says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    /// It has no state yet.
    First,
    /// It was a member before. Who was put out meanwhile stays out.
    Again,
}

impl Asks {
    fn path(self) -> &'static str {
        match self {
            Self::First => wire::ADMIT,
            Self::Again => wire::READMIT,
        }
    }
}

impl Handle {
    /// The members as this one knows them.
    pub fn members(&self) -> Vec<peer::Member> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let nodes = metrics.membership_config.nodes();
        let member = |(id, node): (&u64, &BasicNode)| peer::Member {
            id: *id,
            address: node.addr.clone(),
            voter: voters.contains(id),
            leader: metrics.current_leader == Some(*id),
        };
        nodes.map(member).collect()
    }

    fn member(&self, id: u64) -> Option<peer::Member> {
        self.members().into_iter().find(|member| member.id == id)
    }

    /// Lets a member in, or notes where one is now; wherever the leader is.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it was let in before and put out again.
    pub async fn admit(&self, id: u64, address: String, who: Asks) -> Result<(), Error> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let ask = (id, address.clone());
        self.at_leader((who.path(), 1), &ask, deadline, || self.admit_here(id, &address, who)).await
    }

    /// Puts a member out; wherever the leader is.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        let deadline = Instant::now() + CHANGE_TIMEOUT;
        let removed = self.at_leader((wire::REMOVE, 1), &id, deadline, || self.remove_here(id)).await;
        // A leader may be gone before it answers.
        let unknown = matches!(removed, Err(Error::Timeout(_)));
        if unknown && self.linearizable().await.is_ok() && self.member(id).is_none() {
            return Ok(());
        }
        removed
    }

    async fn admit_here(&self, id: u64, address: &str, who: Asks) -> Result<(), Error> {
        let node = BasicNode::new(address);
        match self.member(id) {
            Some(known) if known.address != address => {
                self.change(Change::SetNodes(BTreeMap::from([(id, node.clone())]))).await?;
            }
            Some(_) => {}
            // An id is never given twice; an answer that says so may have been lost.
            None if who == Asks::Again || self.gone.lock().contains(&id) => {
                return Err(Error::Invalid(REMOVED.into()));
            }
            None => self.change(Change::AddNodes(BTreeMap::from([(id, node.clone())]))).await?,
        }
        if self.member(id).is_some_and(|known| known.voter) {
            return Ok(());
        }
        self.caught_up(id).await?;
        self.change(Change::AddVoterIds(BTreeSet::from([id]))).await?;
        tracing::info!(member = id, address, "a member joined");
        Ok(())
    }

    /// Waits until a new member has about as much of the log as this one, so that it holds up no write when it votes.
    async fn caught_up(&self, id: u64) -> Result<(), Error> {
        let listed = AtomicBool::new(false);
        let near = |metrics: &openraft::RaftMetrics<Types>| {
            if metrics.membership_config.membership().get_node(&id).is_none() {
                // Put out again, unless this is not yet told that it was let in.
                return listed.load(Ordering::Relaxed);
            }
            listed.store(true, Ordering::Relaxed);
            let Some(replication) = &metrics.replication else { return true };
            let matched = replication.get(&id).cloned().flatten().map(|log: super::LogId| log.index);
            matched.is_some_and(|index| index + 1000 >= metrics.last_log_index.unwrap_or_default())
        };
        let wait = self.raft.wait(Some(CHANGE_TIMEOUT / 2));
        let near = wait.metrics(near, "the new member catches up");
        let metrics = near.await.map_err(|_| Error::Unavailable(format!("member {id} does not catch up")))?;
        if metrics.membership_config.membership().get_node(&id).is_none() {
            return Err(Error::Invalid(REMOVED.into()));
        }
        if self.raft.is_leader() { Ok(()) } else { Err(Error::NotLeader { leader: None }) }
    }

    async fn remove_here(&self, id: u64) -> Result<(), Error> {
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.id == id) else {
            return Err(Error::Invalid(format!("there is no member {id}")));
        };
        if member.voter && members.iter().filter(|member| member.voter).count() == 1 {
            return Err(Error::Invalid("the last member cannot be removed".into()));
        }
        if member.voter {
            self.would_go_on(members.iter().filter(|left| left.voter && left.id != id))?;
        }
        if id == self.node_id {
            // It may read by a lease, and of two the one that stays would lead at once: whoever leads next puts it out.
            self.hand_over().await;
            // Who was put out may never be told what became of what was proposed at it.
            self.settle().await;
            return Err(Error::NotLeader { leader: None });
        }
        let ids = BTreeSet::from([id]);
        let change = if member.voter { Change::RemoveVoters(ids) } else { Change::RemoveNodes(ids) };
        // Before it is agreed upon, so that nobody lets it in again meanwhile.
        self.gone.lock().insert(id);
        let changed = self.change(change).await;
        if changed.as_ref().is_err_and(|error| !matches!(error, Error::Timeout(_))) {
            self.gone.lock().remove(&id);
        }
        changed?;
        tracing::info!(member = id, "a member was removed");
        Ok(())
    }

    /// Refuses to leave voters of which no majority answers: nothing could be changed any more, this neither.
    fn would_go_on<'a>(&self, left: impl Iterator<Item = &'a peer::Member>) -> Result<(), Error> {
        let (well, silent): (Vec<u64>, Vec<u64>) =
            left.map(|member| member.id).partition(|id| self.answers(*id));
        if well.len() > silent.len() {
            return Ok(());
        }
        let silent: Vec<_> = silent.iter().map(ToString::to_string).collect();
        Err(Error::Unavailable(format!(
            "without it the cluster would stop: of those left, {} answer and {} not ({}); mend or remove these first",
            well.len(),
            silent.len(),
            silent.join(", ")
        )))
    }

    /// Whether a member answered when it was last spoken to.
    fn answers(&self, id: u64) -> bool {
        id == self.node_id || self.link(id).is_some_and(|link| link.speaks().is_some())
    }

    /// Has a majority agree to a change, once the one that may be under way is done.
    async fn change(&self, change: Change) -> Result<(), Error> {
        let deadline = Instant::now() + ONE_BEFORE;
        loop {
            match self.try_change(change.clone()).await {
                Err(Error::Unavailable(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(JOIN_AGAIN / 10).await;
                }
                changed => return changed,
            }
        }
    }

    async fn try_change(&self, change: Change) -> Result<(), Error> {
        let raft = self.raft.clone();
        let changed = detached(async move { raft.change_membership(change, false).await });
        let changed = tokio::time::timeout(CHANGE_TIMEOUT / 2, changed).await;
        let changed =
            changed.map_err(|_| Error::Timeout("no majority agreed to the change in time".into()))??;
        match changed {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => Err(match error {
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                    Error::Unavailable("another change is under way; try again".into())
                }
                // Whoever was let in is put out again meanwhile.
                ChangeMembershipError::LearnerNotFound(_) => Error::Invalid(REMOVED.into()),
                error => Error::Invalid(error.to_string()),
            }),
            Err(error) => Err(stopped(error)),
        }
    }

    /// Asks members that are known to let this one in, until it votes.
    ///
    /// # Errors
    /// [`Error::Invalid`] when one says that it never will; [`Error::Unavailable`] when none did in time.
    pub async fn join(
        &self,
        mut who: Asks,
        known: &[(u64, String)],
        address: &str,
        deadline: Instant,
    ) -> Result<(), Error> {
        let peers =
            self.peers.as_ref().ok_or_else(|| Error::Invalid("joining needs a way to others".into()))?;
        let mut last = "no member is known".to_owned();
        while Instant::now() < deadline {
            for (id, at) in known {
                if self.member(self.node_id).is_some_and(|me| me.voter) {
                    return Ok(());
                }
                if self.was_let_in().await {
                    who = Asks::Again;
                }
                let ask = (self.node_id, address.to_owned());
                let link = peers.link(*id, at);
                match link.call::<_, Result<(), Refusal>>(who.path(), &ask, CHANGE_TIMEOUT).await {
                    Ok(Ok(())) => {}
                    Ok(Err(Refusal::Invalid(why))) | Err(CallError::Refused(why)) => {
                        return Err(Error::Invalid(format!("this member was not let in: {why}")));
                    }
                    Ok(Err(refusal)) => last = Error::from(refusal).to_string(),
                    Err(CallError::Unsent(why) | CallError::Unknown(why)) => last = why,
                }
            }
            tokio::time::sleep(JOIN_AGAIN).await;
        }
        Err(Error::Unavailable(format!("this member was not let in: {last}")))
    }

    /// Whether a majority has agreed, as far as is known here, that this one is a member.
    async fn was_let_in(&self) -> bool {
        let (raft, me) = (self.raft.clone(), self.node_id);
        let listed = move |state: &RaftState<Types>| {
            state.membership_state.committed().membership().get_node(&me).is_some()
        };
        detached(async move { raft.with_raft_state(listed).await })
            .await
            .is_ok_and(|listed| listed.unwrap_or_default())
    }

    /// Sees to it that the others know where this member is now.
    pub async fn announce(&self, address: &str) {
        loop {
            let known = self.member(self.node_id).map(|me| me.address);
            if known.is_none_or(|known| known == address) || self.ended.borrow().is_some() {
                return;
            }
            match self.admit(self.node_id, address.to_owned(), Asks::Again).await {
                Ok(()) => {}
                // It ends once it has asked the others, see `put_out`.
                Err(error @ Error::Invalid(_)) => {
                    tracing::error!(%error, address, "the others do not take this member's address");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, address, "the others do not know the address of this member yet");
                    tokio::time::sleep(JOIN_AGAIN).await;
                }
            }
        }
    }

    /// Whether another member says, and is sure of it, that this one was put out.
    pub async fn was_removed(&self) -> bool {
        for other in self.members().into_iter().filter(|member| member.id != self.node_id) {
            let Some(link) = self.link(other.id) else { continue };
            let asked =
                link.call::<_, Result<Vec<peer::Member>, Refusal>>(wire::MEMBERS, &(), JOIN_AGAIN * 4);
            let Ok(Ok(members)) = asked.await else { continue };
            let lists = |id| members.iter().any(|member: &peer::Member| member.id == id);
            // One that does not even list itself has not read its own state yet.
            if lists(other.id) {
                return !lists(self.node_id);
            }
        }
        false
    }

    /// Asks the others for a path that one of them may serve.
    pub async fn fetch(&self, path: &str) -> Option<BoxStream<'static, std::io::Result<Bytes>>> {
        let peers = self.peers.as_ref()?;
        for other in self.members().into_iter().filter(|member| member.id != self.node_id) {
            // What comes may be large: not over the connection that raft needs.
            let link = peers.fresh(other.id, &other.address);
            let asked = link.send(http::Method::GET, path, full(Bytes::new()));
            let Ok(Ok(response)) = tokio::time::timeout(FETCH_TIMEOUT, asked).await else { continue };
            if response.status().is_success() {
                // The connection lives as long as the way to it.
                let pieces = response.into_body().into_data_stream().map_err(std::io::Error::other);
                let kept = move |piece| {
                    let _link = &link;
                    piece
                };
                return Some(pieces.map(kept).boxed());
            }
        }
        None
    }

    /// Asks one member for a path that it serves.
    pub async fn ask_member(&self, id: u64, method: http::Method, path: &str) -> Result<Bytes, Error> {
        let link = self.link(id).ok_or_else(|| Error::Invalid(format!("there is no way to member {id}")))?;
        let asked = async {
            let response =
                link.send(method, path, full(Bytes::new())).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = axum::body::to_bytes(response.into_body(), MOST_ASKED).await;
            let body = body.map_err(|error| error.to_string())?;
            match status.is_success() {
                true => Ok(body),
                false => Err(format!("{status}: {}", String::from_utf8_lossy(&body))),
            }
        };
        let asked = tokio::time::timeout(FETCH_TIMEOUT, asked).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("member {id} does not answer")));
        asked.map_err(Error::Unavailable)
    }

    /// Hands leadership to another voter, where there is one, so that nobody waits for an election.
    pub async fn hand_over(&self) {
        if !self.raft.is_leader() {
            return;
        }
        let metrics = self.raft.metrics().borrow_watched().clone();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let others = metrics.replication.unwrap_or_default().into_iter();
        let best = others
            .filter(|(id, _)| *id != self.node_id && voters.contains(id))
            .max_by_key(|(id, log)| (self.answers(*id), *log));
        let Some((to, _)) = best else { return };
        let raft = self.raft.clone();
        let _ = detached(async move { raft.trigger().transfer_leader(to).await }).await;
        let me = self.node_id;
        let wait = self.raft.wait(Some(Duration::from_secs(1)));
        let _ = wait.metrics(|metrics| metrics.current_leader.is_some_and(|id| id != me), "hand over").await;
    }

    /// The leader as this member knows it, and the term. One that was not heard for long is none.
    pub fn leader(&self) -> (Option<u64>, u64) {
        let adrift = self.is_adrift();
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let vote: Vote = metrics.vote;
        (metrics.current_leader.filter(|_| !adrift), vote.leader_id.term)
    }
}
