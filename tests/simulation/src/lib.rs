//! A whole cluster of the store in one thread: its real log, state, snapshots and raft, on a network, disks and clocks that
//! are made up. Everything that is random comes from a seed, and time passes only when nobody has anything to do: so a
//! minute of a cluster takes a second, and what went wrong goes wrong again.
//!
//! A seed is run in a process of its own ([`each_alone`]): the libraries below count their uses of randomness by process.

mod clients;
mod cluster;
pub mod disk;
mod faults;
mod leases;
#[cfg(test)]
mod membership;
mod network;
pub mod random;
mod run;
mod seeds;

pub use run::{Plant, Report, simulate};
pub use seeds::each_alone;
