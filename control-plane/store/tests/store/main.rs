//! The store from outside: the conformance suite, crashes, damage, restarts.

#![forbid(unsafe_code)]

mod cluster;
mod conformance;
mod crash;
mod disk;
mod members;
mod restart;
mod restore;
mod splice;
