//! Real server processes on machines of their own (network namespaces), under clients and faults; and whether what the
//! clients saw can have come from one correct store.
//!
//! A run is made from a seed: the same seed breaks the same things in the same order. Needs root, iproute2 and nftables.

#![forbid(unsafe_code)]

pub mod clients;
pub mod clock;
pub mod cluster;
pub mod faults;
pub mod run;
pub mod watchers;
