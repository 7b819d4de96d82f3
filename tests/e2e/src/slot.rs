//! Address ranges of a cluster's own, so that clusters of several tests share a host.

use std::fs::File;

use anyhow::{Result, bail};
use nix::fcntl::{Flock, FlockArg};

const SLOTS: u8 = 11;
/// The port of the cluster's DNS: one that needs no privilege.
pub const DNS_PORT: u16 = 10_053;

/// Held as long as the cluster lives.
pub struct Slot {
    number: u8,
    _lock: Flock<File>,
}

impl Slot {
    /// Takes a free one.
    pub fn take() -> Result<Self> {
        for number in 0..SLOTS {
            let path = std::env::temp_dir().join(format!("coracle-e2e-slot-{number}"));
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return Ok(Self { number, _lock: lock });
            }
        }
        bail!("all {SLOTS} address slots are taken")
    }

    /// Which one it is.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// What to tell `coracle up`.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = Vec::from(self.ranges());
        flags.push(format!("--node-ip=127.0.{}.1", 100 + self.number));
        flags.push(format!("--dns-port={DNS_PORT}"));
        flags
    }

    /// The address ranges, as `coracle server` takes them: outside those that a cluster has of itself, so that whoever is
    /// not told of them is found out.
    pub fn ranges(&self) -> [String; 2] {
        let n = self.number;
        [format!("--pod-cidr=127.{}.0.0/16", 140 + n), format!("--service-cidr=127.{}.0.0/16", 160 + n)]
    }

    /// The address of a node that joins, counted from 0.
    pub fn node(&self, index: usize) -> String {
        format!("127.0.{}.{}", 100 + self.number, 101 + index)
    }

    /// The address of a server, counted from 0; all of them may use the same port.
    pub fn server(&self, index: usize) -> String {
        format!("127.0.{}.{}", 100 + self.number, 11 + index)
    }
}
