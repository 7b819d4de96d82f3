//! The raft node: openraft over a log and a state machine of our own.
//!
//! A write goes: caller, raft core, log thread (one sync for all that wait), raft core, state machine, caller.
//! With several members the leader sends entries to the others meanwhile, and a majority has to have synced them.

use std::fmt;
use std::sync::Arc;

use openraft::BasicNode;
use openraft::type_config::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use serde::{Deserialize, Serialize};

use crate::TxnResponse;
use crate::mvcc::Command;

pub(crate) mod handle;
pub(crate) mod log;
pub(crate) mod membership;
pub(crate) mod network;
pub(crate) mod node;
mod state_machine;
#[cfg(test)]
mod tests;
mod upkeep;
pub(crate) mod word;

openraft::declare_raft_types!(pub(crate) Types: D = Request, R = Response, Node = BasicNode);

pub(crate) type Entry = EntryOf<Types>;
pub(crate) type LogId = LogIdOf<Types>;
pub(crate) type Vote = VoteOf<Types>;
pub(crate) type Membership = StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<Types>;

/// What an entry of the log carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request(pub Arc<Command>);

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Command::Txn { txn, .. } => write!(f, "txn of {} + {}", txn.success.len(), txn.failure.len()),
            Command::Expire { keys } => write!(f, "expire {} keys", keys.len()),
            Command::Compact { revision } => write!(f, "compact to {revision}"),
            Command::Grant { id, ttl_ms } => write!(f, "grant lease {id} for {ttl_ms} ms"),
            Command::Revoke { id } => write!(f, "revoke lease {id}"),
        }
    }
}

/// What applying an entry gave; nothing for those that are no transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Response(pub Option<TxnResponse>);
