//! Leases, as clients ask for them; after etcd's.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};

use super::{Engine, Store};
use crate::mvcc::{Command, MAX_LEASES};
use crate::{Error, Lease};

/// The shortest and the longest time to live of a lease.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(9_000_000_000);

/// How many leases whose time has come are revoked each time that they are looked for, and how many side by side.
const MOST_ENDED: usize = 4096;
const ENDED_AT_ONCE: usize = 64;

impl Store {
    /// Makes a lease and returns its id: the one that is given, or one that is free. Keys are put under it with
    /// [`Op::PutLeased`](crate::Op::PutLeased), and all are deleted under one revision when it ends: when it is revoked, or
    /// was not kept alive for its time to live, from one second to 9,000,000,000.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another time, an id that is taken or 0; [`Error::Unavailable`] while a member does not know leases yet;
    /// as [`Self::txn`].
    pub async fn grant_lease(&self, id: Option<u64>, ttl: Duration) -> Result<u64, Error> {
        if ttl < SHORTEST || ttl > LONGEST || id == Some(0) {
            return Err(Error::Invalid(format!(
                "a lease has an id from 1 and lives for 1 to {} s",
                LONGEST.as_secs()
            )));
        }
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        // One that was asked for again after a lost answer finds an id that is taken.
        for n in 0..8 {
            let wanted = id.unwrap_or_else(|| self.free_lease_id(n));
            let granted = self.propose(Command::Grant { id: wanted, ttl_ms }).await?;
            if granted.is_some_and(|granted| granted.succeeded) {
                return Ok(wanted);
            }
            if id.is_some() {
                break;
            }
        }
        Err(Error::Invalid(match id {
            Some(id) if self.machine.state.read().granted(id).is_some() => {
                format!("there is a lease {id} already")
            }
            _ => format!("there are too many leases; {MAX_LEASES} at a time are allowed"),
        }))
    }

    /// An id that depends on when and where it is asked for, so that hardly two agree on one.
    fn free_lease_id(&self, n: u64) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        let member = match &*self.engine {
            Engine::Memory(_) => 0,
            Engine::Raft(node) => node.handle.node_id,
        };
        let id = RandomState::new().hash_one((self.clock.now_ms(), self.revision(), member, n));
        // Positive where it is read as a signed number, as etcd's are.
        (id >> 1).max(1)
    }

    /// Gives a lease its whole time to live again, which it returns.
    ///
    /// # Errors
    /// [`Error::NoLease`] when it has ended; as [`Self::linearizable`].
    pub async fn keep_alive(&self, id: u64) -> Result<Duration, Error> {
        let (ttl_ms, _) = self.ask_lease(id, true).await?;
        Ok(Duration::from_millis(ttl_ms))
    }

    /// A lease, with its keys and the time that is left to it.
    ///
    /// # Errors
    /// As [`Self::keep_alive`].
    pub async fn lease(&self, id: u64) -> Result<Lease, Error> {
        let (ttl_ms, remaining_ms) = self.ask_lease(id, false).await?;
        // Who leads knows it, this member perhaps not yet.
        self.linearizable().await?;
        let keys = self.machine.state.read().lease_keys(id).ok_or(Error::NoLease { lease: id })?;
        let (ttl, remaining) = (Duration::from_millis(ttl_ms), Duration::from_millis(remaining_ms));
        Ok(Lease { id, ttl, remaining, keys })
    }

    /// The ids of all leases, in order, as this member knows them.
    pub fn leases(&self) -> Vec<u64> {
        self.machine.state.read().leases().map(|(id, _)| id).collect()
    }

    /// Ends a lease: its keys are deleted, under the revision that is returned.
    ///
    /// # Errors
    /// [`Error::NoLease`]; as [`Self::txn`].
    pub async fn revoke_lease(&self, id: u64) -> Result<u64, Error> {
        match self.propose(Command::Revoke { id }).await? {
            Some(revoked) if revoked.succeeded => Ok(revoked.revision),
            _ => Err(Error::NoLease { lease: id }),
        }
    }

    async fn ask_lease(&self, id: u64, renew: bool) -> Result<(u64, u64), Error> {
        self.machine.hub.check()?;
        let found = match &*self.engine {
            Engine::Memory(_) => self.lessor.look(id, renew, 0),
            Engine::Raft(node) => node.handle.lease(id, renew).boxed().await?,
        };
        found.ok_or(Error::NoLease { lease: id })
    }

    /// Revokes leases whose time has come: all, or so many that other work goes on, and the others the next time. For who leads.
    pub(super) async fn end_leases(&self) -> Result<(), Error> {
        let (_, term) = self.leader();
        let due = self.lessor.due(term, MOST_ENDED);
        let ended = stream::iter(due).map(|id| self.end_lease(id, term)).buffer_unordered(ENDED_AT_ONCE);
        // All of them are heard out: of one that failed it has to be known how.
        ended.fold(Ok(()), async |all, one| all.and(one)).await
    }

    async fn end_lease(&self, id: u64, term: u64) -> Result<(), Error> {
        if !self.lessor.end(id, term) {
            return Ok(());
        }
        let command = Command::Revoke { id };
        let revoked = match &*self.engine {
            Engine::Memory(_) => self.propose(command).await,
            // Not at another leader, which may have given it more time.
            Engine::Raft(node) => {
                node.handle.propose_here(Arc::new(command)).boxed().await.map(|done| done.response)
            }
        };
        // Of any other failure it may come to pass later: nobody is to be told that it lives on, and it is asked for again.
        if let Err(Error::NotLeader { .. } | Error::Unavailable(_)) = revoked {
            self.lessor.spare(id);
        }
        revoked.map(drop)
    }
}
