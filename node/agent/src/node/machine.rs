//! What this machine is, from /proc and /etc. What cannot be read is empty, never an error.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::memory::machine::{self as nodes, Amounts, MEMORY};

/// A machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors that this process may use.
    pub cpus: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of the filesystem that volumes and logs lie on.
    pub storage: i64,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution's name.
    pub os_image: String,
    /// Of /etc/machine-id.
    pub machine_id: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// The memory of each of its memory nodes.
    pub nodes: BTreeMap<u32, Amounts>,
}

impl Machine {
    /// Bytes of huge pages of each size, by the name of the resource.
    pub fn huge_pages(&self) -> Amounts {
        let mut all = Amounts::new();
        for (name, bytes) in self.nodes.values().flatten().filter(|(name, _)| *name != MEMORY) {
            let sum = all.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*bytes);
        }
        all
    }
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Reads them; `root` is where volumes and logs lie.
pub fn read(root: &std::path::Path) -> Machine {
    let storage = crate::eviction::signals::filesystem(root).map_or(0, |(space, _)| space.capacity);
    let meminfo = read_line("/proc/meminfo");
    let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = total.and_then(|t| t.trim().trim_end_matches("kB").trim().parse::<i64>().ok()).unwrap_or(0);
    let release = read_line("/etc/os-release");
    let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    Machine {
        cpus: std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(1)),
        memory: kib.saturating_mul(1024),
        storage: i64::try_from(storage).unwrap_or(i64::MAX),
        kernel: read_line("/proc/sys/kernel/osrelease"),
        os_image: name.unwrap_or_default().trim_matches('"').to_owned(),
        machine_id: read_line("/etc/machine-id"),
        boot_id: read_line("/proc/sys/kernel/random/boot_id"),
        nodes: nodes::read(
            std::path::Path::new(crate::numa::SYSTEM),
            u64::try_from(kib).unwrap_or(0).saturating_mul(1024),
        ),
    }
}

/// What of a machine is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds that all processors together worked since the machine started.
    pub cpu_nanos: u64,
    /// Bytes in use that could not be had back at once.
    pub memory: u64,
    /// Bytes that could be had.
    pub available: u64,
}

/// Nanoseconds of one tick of `/proc/stat`: it counts hundredths of a second on every Linux.
const TICK: u64 = 10_000_000;

/// Reads them; zero where nothing can be read.
pub fn usage() -> Usage {
    let stat = read_line("/proc/stat");
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).map(|t| t.parse().unwrap_or(0)).collect();
    // user nice system idle iowait irq softirq steal; guests are part of user.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum();
    let meminfo = read_line("/proc/meminfo");
    let bytes = |name: &str| -> u64 {
        let value = meminfo.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        value.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0).saturating_mul(1024)
    };
    let (total, available) = (bytes("MemTotal:"), bytes("MemAvailable:"));
    Usage { cpu_nanos: busy.saturating_mul(TICK), memory: total.saturating_sub(available), available }
}

/// Looks closer to each other than this tell nothing.
const LEAST: Duration = Duration::from_secs(1);

/// How busy all processors together are, between two looks.
#[derive(Default)]
pub struct Rate(Mutex<Option<Look>>);

#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    nanos: u64,
    rate: Option<u64>,
}

impl Rate {
    /// Nanoseconds of work a second, since a look that was at least a second ago; `nanos` is what they have worked so far.
    /// `None`: there was none.
    pub fn look(&self, nanos: u64, now: Instant) -> Option<u64> {
        let mut last = self.0.lock();
        let rate = match *last {
            None => None,
            Some(before) => {
                let passed = now.saturating_duration_since(before.at);
                if passed < LEAST {
                    return before.rate;
                }
                let worked = u128::from(nanos.saturating_sub(before.nanos));
                u64::try_from(worked * 1_000_000_000 / passed.as_nanos()).ok()
            }
        };
        *last = Some(Look { at: now, nanos, rate });
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_busy_the_machine_is_is_told_from_two_looks() {
        let (rate, began) = (Rate::default(), Instant::now());
        let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
        assert_eq!(rate.look(5_000_000_000, at(0.0)), None);
        assert_eq!(rate.look(5_500_000_000, at(0.5)), None, "too close");
        assert_eq!(rate.look(8_000_000_000, at(2.0)), Some(1_500_000_000));
        assert_eq!(rate.look(9_000_000_000, at(2.5)), Some(1_500_000_000), "too close");
    }
}
