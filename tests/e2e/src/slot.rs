//! Address ranges of a cluster's own, so that clusters of several tests share a host.

use std::fs::File;

use anyhow::{Result, bail};
use nix::fcntl::{Flock, FlockArg};

const SLOTS: u8 = 11;

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

    /// What to tell `coracle up`.
    pub fn flags(&self) -> Vec<String> {
        let n = self.number;
        vec![
            format!("--pod-cidr=127.{}.0.0/16", 76 + n),
            format!("--service-cidr=127.{}.0.0/16", 100 + n),
            format!("--node-ip=127.0.{}.1", 100 + n),
        ]
    }
}
