//! What is left on this node: memory, disk, inodes and processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_api::quantity::Quantity;

/// What can run short. In the order in which shortages are seen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Bytes of memory.
    MemoryAvailable,
    /// Bytes where volumes and logs lie.
    NodefsAvailable,
    /// Files that can still be made there.
    NodefsInodesFree,
    /// Bytes where images lie.
    ImagefsAvailable,
    /// Files that can still be made there.
    ImagefsInodesFree,
    /// Processes and threads that can still be started.
    PidAvailable,
}

const NAMES: [(Signal, &str); 6] = [
    (Signal::MemoryAvailable, "memory.available"),
    (Signal::NodefsAvailable, "nodefs.available"),
    (Signal::NodefsInodesFree, "nodefs.inodesFree"),
    (Signal::ImagefsAvailable, "imagefs.available"),
    (Signal::ImagefsInodesFree, "imagefs.inodesFree"),
    (Signal::PidAvailable, "pid.available"),
];

impl Signal {
    /// As flags name it.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(signal, _)| *signal == self).map_or("", |(_, name)| name)
    }

    /// The signal of that name.
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, other)| *other == name).map(|(signal, _)| *signal)
    }

    /// The resource that runs short, as messages name it.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory",
            Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => "inodes",
            Signal::PidAvailable => "pids",
        }
    }

    /// Whether removing images and dead containers helps.
    pub fn is_disk(self) -> bool {
        !matches!(self, Signal::MemoryAvailable | Signal::PidAvailable)
    }
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What is left.
    pub available: u64,
    /// What there is in all.
    pub capacity: u64,
}

/// By signal; one that cannot be read is absent, and crosses nothing.
pub type Readings = BTreeMap<Signal, Reading>;

/// Where readings come from.
pub trait Source: Send + Sync {
    /// Reads all.
    fn read(&self) -> Readings;
}

/// This machine.
pub struct Machine {
    /// A directory on the filesystem of volumes and logs.
    pub root: PathBuf,
    /// A directory on the filesystem of images; `None`: not known yet.
    pub images: parking_lot::RwLock<Option<PathBuf>>,
}

impl Source for Machine {
    fn read(&self) -> Readings {
        let mut readings = Readings::new();
        let usage = crate::node::machine::usage();
        if usage.available > 0 {
            let capacity = usage.memory.saturating_add(usage.available);
            readings.insert(Signal::MemoryAvailable, Reading { available: usage.available, capacity });
        }
        let mut filesystem = |path: &Path, bytes, inodes| {
            if let Some((space, files)) = filesystem(path) {
                readings.insert(bytes, space);
                // A filesystem that counts no inodes does not run out of them.
                if files.capacity > 0 {
                    readings.insert(inodes, files);
                }
            }
        };
        filesystem(&self.root, Signal::NodefsAvailable, Signal::NodefsInodesFree);
        let images = self.images.read().clone();
        let images = images.as_deref().unwrap_or(&self.root);
        filesystem(images, Signal::ImagefsAvailable, Signal::ImagefsInodesFree);
        readings.extend(processes().map(|reading| (Signal::PidAvailable, reading)));
        readings
    }
}

/// Bytes and inodes of the filesystem that a path lies on.
pub fn filesystem(path: &Path) -> Option<(Reading, Reading)> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = stat.fragment_size();
    let space = Reading {
        available: stat.blocks_available().saturating_mul(unit),
        capacity: stat.blocks().saturating_mul(unit),
    };
    Some((space, Reading { available: stat.files_available(), capacity: stat.files() }))
}

/// Processes and threads, of the lower of the kernel's two limits.
fn processes() -> Option<Reading> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let capacity = limits.into_iter().flatten().min()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let running = load.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok()?;
    Some(Reading { available: capacity.saturating_sub(running), capacity })
}

/// Another source, and a file whose amounts stand in for its: `{"memory.available": "50Mi"}`.
pub struct Rehearsal<S> {
    /// The rest comes from here.
    pub source: S,
    /// The file; while it is absent nothing is replaced.
    pub file: PathBuf,
}

impl<S: Source> Source for Rehearsal<S> {
    fn read(&self) -> Readings {
        let mut readings = self.source.read();
        let Ok(text) = std::fs::read_to_string(&self.file) else { return readings };
        let said: BTreeMap<String, String> = match serde_json::from_str(&text) {
            Ok(said) => said,
            Err(error) => {
                tracing::warn!(%error, file = %self.file.display(), "signals that cannot be read");
                return readings;
            }
        };
        for (name, amount) in said {
            let amount = Quantity::parse(&amount).ok().and_then(|q| u64::try_from(q.value()).ok());
            if let (Some(signal), Some(available)) = (Signal::parse(&name), amount) {
                let capacity = readings.get(&signal).map_or(available, |r| r.capacity.max(available));
                readings.insert(signal, Reading { available, capacity });
            }
        }
        readings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_and_a_rehearsal() {
        let dir = tempfile::tempdir().expect("a directory");
        let machine = Machine { root: dir.path().to_owned(), images: Default::default() };
        let read = machine.read();
        for signal in [Signal::MemoryAvailable, Signal::NodefsAvailable, Signal::PidAvailable] {
            let reading = read.get(&signal).expect("a reading");
            assert!(reading.available > 0 && reading.available <= reading.capacity, "{signal:?} {reading:?}");
        }
        let rehearsal = Rehearsal { source: machine, file: dir.path().join("signals.json") };
        let left = |r: &Readings| r.get(&Signal::MemoryAvailable).map(|r| r.available);
        assert_ne!(left(&rehearsal.read()), Some(50 << 20));
        std::fs::write(&rehearsal.file, r#"{"memory.available": "50Mi"}"#).expect("written");
        assert_eq!(left(&rehearsal.read()), Some(50 << 20));
        assert_eq!(rehearsal.read().len(), read.len());
    }
}
