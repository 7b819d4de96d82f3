//! Real containers: needs root, runc and Debian's busybox-static. The network is each test's own namespace.

mod checkpoints;
mod containers;
mod host;
mod networks;
mod pods;
