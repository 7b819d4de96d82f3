//! What operators ask of a store: its condition, room on its disk, less history.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Engine, Store};
use crate::metrics::Facts;
use crate::mvcc::Command;
use crate::{Alarm, Error};

/// The condition of one member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its id.
    pub member: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Raft's term.
    pub term: u64,
    /// The last applied revision.
    pub revision: u64,
    /// Reads and watches reach back to here.
    pub compacted_revision: u64,
    /// Bytes of the file that holds the keys.
    pub state_bytes: u64,
    /// Bytes of the file that holds raft's log.
    pub log_bytes: u64,
    /// Bytes left on its disk, where known.
    pub free_bytes: Option<u64>,
    /// The version of the files' format.
    pub format: u64,
    /// What may be wrong.
    pub alarms: Vec<Alarm>,
}

impl Store {
    /// The condition of this member; nothing is asked of the others.
    pub fn status(&self) -> Status {
        let (leader, term) = self.leader();
        let (revision, compacted_revision) = (self.revision(), self.compacted_revision());
        let format = self.machine.version();
        let status = Status {
            member: 1,
            leader,
            term,
            revision,
            compacted_revision,
            state_bytes: 0,
            log_bytes: 0,
            free_bytes: None,
            format,
            alarms: Vec::new(),
        };
        let Engine::Raft(node) = &*self.engine else { return status };
        let (state_bytes, log_bytes, free_bytes) = node.room();
        let alarms = node.alarms.look(&node.handle.stats, free_bytes, node.handle.is_adrift());
        Status { member: node.handle.node_id, state_bytes, log_bytes, free_bytes, alarms, ..status }
    }

    /// Counters and gauges in the Prometheus text format.
    pub fn metrics(&self) -> String {
        let Engine::Raft(node) = &*self.engine else { return String::new() };
        let status = self.status();
        let (watchers, watch_lag) = self.machine.hub.lag();
        node.handle.stats.render(&Facts {
            revision: status.revision,
            compacted: status.compacted_revision,
            members: node.handle.members().len(),
            has_leader: status.leader.is_some(),
            is_leader: node.is_leader(),
            term: status.term,
            state_bytes: status.state_bytes,
            log_bytes: status.log_bytes,
            watchers,
            watch_lag,
            alarms: status.alarms,
        })
    }

    /// Gives room that deleted keys and purged entries left in this member's files back to the disk; returns the bytes of
    /// both files before and after. Writes wait meanwhile.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while a snapshot is being read, [`Error::Invalid`] for a store in memory, [`Error::Io`].
    pub async fn defragment(&self) -> Result<(u64, u64), Error> {
        match &*self.engine {
            Engine::Memory(_) => Err(Error::Invalid("a store in memory has no files".into())),
            Engine::Raft(node) => node.defragment().await,
        }
    }

    /// Forgets what only reads and watches before `revision` need.
    ///
    /// # Errors
    /// [`Error::FutureRevision`], and as [`Self::txn`].
    pub async fn compact(&self, revision: u64) -> Result<(), Error> {
        let current = self.revision();
        if revision > current {
            return Err(Error::FutureRevision { requested: revision, current });
        }
        self.propose(Command::Compact { revision }).await.map(drop)
    }

    /// Asks one member for what [`Peering::routes`](crate::Peering) of it serves under this path, at most 1 MiB.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it does not answer, or not with success.
    pub async fn ask_member(&self, id: u64, method: http::Method, path: &str) -> Result<Bytes, Error> {
        match &*self.engine {
            Engine::Memory(_) => Err(Error::Invalid("a store in memory has no members".into())),
            Engine::Raft(node) => node.handle.ask_member(id, method, path).await,
        }
    }
}
