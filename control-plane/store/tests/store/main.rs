//! The store from outside: the conformance suite, crashes, damage, restarts.

#![forbid(unsafe_code)]

mod cluster;
mod conformance;
mod crash;
mod five;
mod fresh;
mod leases;
mod members;
mod operations;
mod restart;
mod restore;
mod rolling;
mod splice;
mod upgrade;
