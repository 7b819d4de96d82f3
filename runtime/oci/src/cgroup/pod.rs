//! The control group of a whole pod: its weight beside other pods, and limits that its containers share. Those of the
//! containers in it are the OCI runtime's.

use std::io;
use std::path::Path;

use coracle_cri_api::v1;

use super::ROOT;

/// The least weight that version 1 takes: of who asks for nothing.
const LEAST_SHARES: u64 = 2;
/// The most.
const MOST_SHARES: u64 = 262_144;
/// The length of a period where none is said, in microseconds: the kernel's own.
const PERIOD: u64 = 100_000;

/// What a pod may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// 1024 a processor; `None` leaves what is.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period; `None`: all that there is.
    pub cpu_quota: Option<u64>,
    /// Microseconds.
    pub cpu_period: u64,
    /// In bytes; `None`: all that there is.
    pub memory: Option<u64>,
}

/// A file of a group (controller of version 1, file, value).
type Setting = (&'static str, &'static str, String);

impl Limits {
    /// What a sandbox's config says: all of its containers together, and what the pod itself takes.
    pub fn of(config: &v1::LinuxPodSandboxConfig) -> Self {
        let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
        let parts = || config.resources.iter().chain(&config.overhead);
        let sum = |of: fn(&v1::LinuxContainerResources) -> i64| {
            // Overhead alone limits nobody: the containers are not limited.
            config.resources.as_ref().and_then(|r| positive(of(r)))?;
            Some(parts().filter_map(|r| positive(of(r))).fold(0, u64::saturating_add))
        };
        Self {
            cpu_shares: sum(|r| r.cpu_shares).map(|s| s.clamp(LEAST_SHARES, MOST_SHARES)),
            cpu_quota: sum(|r| r.cpu_quota),
            cpu_period: config.resources.as_ref().and_then(|r| positive(r.cpu_period)).unwrap_or(PERIOD),
            memory: sum(|r| r.memory_limit_in_bytes),
        }
    }

    fn settings(&self, unified: bool) -> Vec<Setting> {
        let or = |value: Option<u64>, none: &str| value.map_or_else(|| none.to_owned(), |v| v.to_string());
        let mut settings = Vec::new();
        if unified {
            settings.extend(self.cpu_shares.map(|s| ("cpu", "cpu.weight", weight(s).to_string())));
            let quota = or(self.cpu_quota, "max");
            settings.push(("cpu", "cpu.max", format!("{quota} {}", self.cpu_period)));
            settings.push(("memory", "memory.max", or(self.memory, "max")));
        } else {
            settings.extend(self.cpu_shares.map(|s| ("cpu", "cpu.shares", s.to_string())));
            settings.push(("cpu", "cpu.cfs_period_us", self.cpu_period.to_string()));
            settings.push(("cpu", "cpu.cfs_quota_us", or(self.cpu_quota, "-1")));
            settings.push(("memory", "memory.limit_in_bytes", or(self.memory, "-1")));
        }
        settings
    }
}

/// Version 1's shares as version 2's weight, 1 to 10000: 1024 is the default of both (KEP-2254, as runc 1.3.2 has it).
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(LEAST_SHARES, MOST_SHARES);
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

/// Makes a group, if it is not there, and gives it these limits. Blocking.
///
/// # Errors
/// Which file the kernel refuses: in version 1 also a limit below that of a container in it.
pub fn limit(group: &str, limits: &Limits) -> io::Result<()> {
    limit_below(Path::new(ROOT), group, limits)
}

fn limit_below(root: &Path, group: &str, limits: &Limits) -> io::Result<()> {
    let unified = root.join("cgroup.controllers").is_file();
    let group = Path::new(group.trim_start_matches('/'));
    if unified {
        make(&root.join(group))?;
        // Controllers are handed down level by level; one that cannot be is told by the file that is missing then.
        let mut above: Vec<&Path> = group.ancestors().skip(1).collect();
        above.reverse();
        for folder in above {
            for controller in ["+cpu", "+memory"] {
                let _ = std::fs::write(root.join(folder).join("cgroup.subtree_control"), controller);
            }
        }
    }
    for (controller, file, value) in limits.settings(unified) {
        let folder = if unified { root.join(group) } else { root.join(controller).join(group) };
        make(&folder)?;
        let file = folder.join(file);
        let words =
            |e: io::Error| io::Error::new(e.kind(), format!("write {value} to {}: {e}", file.display()));
        std::fs::write(&file, &value).map_err(words)?;
    }
    Ok(())
}

fn make(folder: &Path) -> io::Result<()> {
    let words = |e: io::Error| io::Error::new(e.kind(), format!("create {}: {e}", folder.display()));
    std::fs::create_dir_all(folder).map_err(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(resources: [i64; 3], overhead: Option<[i64; 3]>) -> v1::LinuxPodSandboxConfig {
        let of = |[shares, quota, memory]: [i64; 3]| v1::LinuxContainerResources {
            cpu_shares: shares,
            cpu_quota: quota,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        v1::LinuxPodSandboxConfig {
            resources: Some(of(resources)),
            overhead: overhead.map(of),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_has_what_its_containers_and_its_overhead_have() {
        let all = Limits::of(&config([512, 50_000, 1 << 20], Some([102, 10_000, 1 << 10])));
        assert_eq!(
            (all.cpu_shares, all.cpu_quota, all.memory),
            (Some(614), Some(60_000), Some((1 << 20) + (1 << 10)))
        );
        // Where a container is not limited, the pod is not.
        let some = Limits::of(&config([2, 0, 0], Some([102, 10_000, 1 << 10])));
        assert_eq!((some.cpu_shares, some.cpu_quota, some.memory), (Some(104), None, None));
        assert_eq!(Limits::of(&v1::LinuxPodSandboxConfig::default()).cpu_shares, None);
    }

    #[test]
    fn limits_are_told_in_the_words_of_each_version() {
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: PERIOD,
            memory: Some(4096),
        };
        let values = |limits: &Limits, unified| -> Vec<(&str, String)> {
            limits.settings(unified).into_iter().map(|(_, file, value)| (file, value)).collect()
        };
        let told = |all: &[(&'static str, &str)]| -> Vec<(&str, String)> {
            all.iter().map(|(file, value)| (*file, (*value).to_owned())).collect()
        };
        assert_eq!(
            values(&limits, true),
            told(&[("cpu.weight", "100"), ("cpu.max", "50000 100000"), ("memory.max", "4096")])
        );
        let none = Limits { cpu_shares: Some(2), cpu_period: PERIOD, ..Limits::default() };
        assert_eq!(
            values(&none, false),
            told(&[
                ("cpu.shares", "2"),
                ("cpu.cfs_period_us", "100000"),
                ("cpu.cfs_quota_us", "-1"),
                ("memory.limit_in_bytes", "-1"),
            ])
        );
        assert_eq!(values(&none, true).last(), Some(&("memory.max", "max".to_owned())));
    }

    #[test]
    fn shares_become_weights() {
        assert_eq!([1, 2, 102, 1024, 2048, 262_144].map(weight), [1, 1, 17, 100, 174, 10_000]);
    }
}
