//! What members say to each other.

use serde::{Deserialize, Serialize};

use crate::raft::{LogId, SnapshotMeta, Vote};
use crate::{Error, TxnResponse};

/// Most bytes of one call, snapshots and mounted routes aside.
pub(crate) const MAX_BODY: usize = 64 << 20;

/// Names the cluster of the caller.
pub(crate) const CLUSTER: &str = "coracle-cluster";

pub(crate) const APPEND: &str = "/raft/append";
pub(crate) const VOTE: &str = "/raft/vote";
pub(crate) const PRE_VOTE: &str = "/raft/pre-vote";
pub(crate) const TRANSFER: &str = "/raft/transfer";
/// Its body is a length (u32, little-endian), a [`SnapshotHead`] of so many bytes, and the snapshot file.
pub(crate) const SNAPSHOT: &str = "/raft/snapshot";
pub(crate) const PROPOSE: &str = "/store/propose";
pub(crate) const READ_INDEX: &str = "/store/read-index";
/// A member without state asks to be let in.
pub(crate) const ADMIT: &str = "/store/admit";
/// One with state says where it is, and asks for its vote where it has none yet.
pub(crate) const READMIT: &str = "/store/readmit";
pub(crate) const REMOVE: &str = "/store/remove";
pub(crate) const MEMBERS: &str = "/store/members";
/// Since version 2.
pub(crate) const LEASE: &str = "/store/lease";

/// What goes before a snapshot.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub vote: Vote,
    pub meta: SnapshotMeta,
}

/// The outcome of a proposal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Proposed {
    pub response: Option<TxnResponse>,
    pub log_id: LogId,
    /// Whether this member proposed it, and so has applied it.
    #[serde(skip)]
    pub here: bool,
}

/// Why a member did not do what another asked it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// It does not lead, or not for sure: nothing was done.
    NotLeader { leader: Option<u64> },
    /// What became of it is not known.
    Unknown(String),
    /// It never will.
    Invalid(String),
    /// Nothing was done.
    Unavailable(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::NotLeader { leader } => Self::NotLeader { leader },
            Error::Invalid(what) => Self::Invalid(what),
            Error::Unavailable(what) => Self::Unavailable(what),
            other => Self::Unknown(other.to_string()),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLeader { leader } => Self::NotLeader { leader },
            Refusal::Invalid(what) => Self::Invalid(what),
            Refusal::Unavailable(what) => Self::Unavailable(what),
            Refusal::Unknown(what) => Self::Timeout(what),
        }
    }
}
