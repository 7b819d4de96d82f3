//! The store from outside: the conformance suite, crashes, damage, restarts.

#![forbid(unsafe_code)]

mod conformance;
mod crash;
mod disk;
mod restart;
mod splice;
