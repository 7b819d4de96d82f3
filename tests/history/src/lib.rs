//! What clients and watchers of a store saw, and whether it can have come from one correct store. Shared by the fault
//! harness, whose store is a cluster of processes, and by the simulation, whose store is a cluster in one thread.

#![forbid(unsafe_code)]

pub mod calls;
pub mod linearizable;
pub mod verdict;

/// A change as a watcher was told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its revision.
    pub revision: u64,
    /// The key.
    pub key: String,
    /// The new value; of a deletion: none.
    pub value: Option<calls::Val>,
    /// Whether it was said to be new.
    pub added: bool,
}
