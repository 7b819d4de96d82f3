//! The state of a cluster: keys with revisions, transactions, watches; etcd's data model over a raft log.
//!
//! Every write goes through the log, is on disk before it is answered, and gets a revision. Reads and watches are
//! served from memory. The store knows keys and bytes, never a Kubernetes kind; all it does with a value is to insert
//! its revision where [`Value::splice`] says.

#![forbid(unsafe_code)]

mod alarm;
mod clock;
pub mod conformance;
mod disk;
mod error;
mod freshness;
mod key_value;
mod lease;
mod machine;
mod metrics;
mod mvcc;
mod peer;
mod raft;
mod range;
mod restore;
mod seal;
mod store;
mod txn;
mod value;
mod watch;

pub use alarm::Alarm;
pub use clock::{SystemClock, WallClock};
pub use disk::{Directory, Files};
pub use error::Error;
pub use freshness::Freshness;
pub use key_value::{Event, EventKind, KeyValue};
pub use lease::Lease;
pub use peer::{Dial, Lost, Member, PeerTls, Peering, Transport, Versions, Way};
pub use range::{Range, RangeResponse};
pub use restore::Inspection;
pub use seal::Seal;
pub use store::{Options, Status, Store};
pub use txn::{Compare, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Op, OpResult, Txn, TxnResponse};
pub use value::Value;
pub use watch::Watch;
