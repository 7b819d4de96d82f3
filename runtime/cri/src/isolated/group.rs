//! The control group of an isolated host: a bound around what the engine bounds already, should it fail.
//!
//! Version 2 where the host has the unified hierarchy, else one folder in each of version 1's. Without the privilege to
//! make them a host runs without.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use coracle_cri_api::v1::LinuxContainerResources;

use crate::record::SandboxRecord;

const ROOT: &str = "/sys/fs/cgroup";
/// The group of all isolated hosts.
const PARENT: &str = "coracle-isolated";
/// Threads of a host: its runtime's, and those that wait for files.
const MAX_THREADS: u64 = 1024;
/// What the host itself takes besides its guests' memory, in bytes.
const OWN_MEMORY: u64 = 256 << 20;
/// The length of a period, in microseconds.
const PERIOD: u64 = 100_000;

/// The group of one host, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    name: String,
    /// In bytes; `None`: as much as there is.
    memory: Option<u64>,
    /// Thousandths of a CPU.
    cpu_millis: Option<u64>,
}

/// A file of a group and what is written to it.
type Setting = (&'static str, &'static str, String);

impl Group {
    /// The group of this sandbox's host. Limits are those of the whole pod, where the sandbox's config has them.
    pub fn of(record: &SandboxRecord) -> Option<Self> {
        let linux = record.config.linux.as_ref();
        let pod = linux.and_then(|l| l.resources.as_ref());
        let overhead = linux.and_then(|l| l.overhead.as_ref());
        let memory = |r: Option<&LinuxContainerResources>| {
            r.and_then(|r| u64::try_from(r.memory_limit_in_bytes).ok()).filter(|m| *m > 0)
        };
        let own = memory(overhead).unwrap_or(0).max(OWN_MEMORY);
        Some(Self {
            name: record.id.get(..12)?.to_owned(),
            memory: memory(pod).map(|m| m.saturating_add(own)),
            cpu_millis: pod.and_then(crate::spec::cpu_millis).map(u64::from),
        })
    }

    /// The same with room for what these containers may use together, should that be more.
    pub fn with_room_for<'a>(
        mut self,
        containers: impl Iterator<Item = &'a LinuxContainerResources>,
    ) -> Self {
        let (mut memory, mut cpu) = (OWN_MEMORY, 0_u64);
        // One without a limit has what the others leave.
        for of in containers {
            memory = memory.saturating_add(crate::spec::memory_limit(of).unwrap_or(0));
            cpu = cpu.saturating_add(crate::spec::cpu_millis(of).map_or(0, u64::from));
        }
        self.memory = self.memory.map(|pod| pod.max(memory));
        self.cpu_millis = self.cpu_millis.map(|pod| pod.max(cpu));
        self
    }

    fn quota(&self) -> Option<u64> {
        // Less than a hundredth of a period is refused by the kernel.
        self.cpu_millis.map(|millis| (millis * PERIOD / 1000).max(PERIOD / 100))
    }

    /// (controller of version 1, file, value) of each limit.
    fn settings(&self, unified: bool) -> Vec<Setting> {
        let mut settings = vec![("pids", "pids.max", MAX_THREADS.to_string())];
        let (memory, cpu) = (self.memory.map(|m| m.to_string()), self.quota());
        if unified {
            settings.extend(memory.map(|m| ("memory", "memory.max", m)));
            settings.extend(cpu.map(|q| ("cpu", "cpu.max", format!("{q} {PERIOD}"))));
        } else {
            settings.extend(memory.map(|m| ("memory", "memory.limit_in_bytes", m)));
            settings.extend(cpu.map(|_| ("cpu", "cpu.cfs_period_us", PERIOD.to_string())));
            settings.extend(cpu.map(|q| ("cpu", "cpu.cfs_quota_us", q.to_string())));
        }
        settings
    }

    /// The folders of the group, by version 1's controllers; one without a controller for version 2.
    fn folders(&self, root: &Path) -> Vec<(&'static str, PathBuf)> {
        let inside = |hierarchy: PathBuf| hierarchy.join(PARENT).join(&self.name);
        if root.join("cgroup.controllers").is_file() {
            return vec![("", inside(root.to_owned()))];
        }
        let mounted = ["memory", "cpu", "pids"].into_iter().filter(|c| root.join(c).is_dir());
        mounted.map(|c| (c, inside(root.join(c)))).collect()
    }

    /// Makes the group with its limits; a process that writes `0` to the files that are answered is in it. None when it
    /// cannot be made, which the log says: the engine's limits hold all the same.
    pub fn make(&self) -> Vec<File> {
        self.make_below(Path::new(ROOT)).unwrap_or_else(|error| {
            tracing::info!(group = self.name, %error, "an isolated host runs without a control group");
            self.remove();
            Vec::new()
        })
    }

    fn make_below(&self, root: &Path) -> io::Result<Vec<File>> {
        let folders = self.folders(root);
        let unified = folders.iter().any(|(controller, _)| controller.is_empty());
        if folders.is_empty() {
            return Err(io::Error::other("no control groups are mounted"));
        }
        for (_, folder) in &folders {
            if unified && let Some(parent) = folder.parent() {
                std::fs::create_dir_all(parent)?;
                // Controllers are handed down level by level.
                for above in [root, parent] {
                    write(above, "cgroup.subtree_control", "+memory +cpu +pids")?;
                }
            }
            std::fs::create_dir_all(folder)?;
        }
        self.limit(&folders, unified)?;
        let entry = |(_, folder): &(_, PathBuf)| open(&folder.join("cgroup.procs"));
        folders.iter().map(entry).collect()
    }

    fn limit(&self, folders: &[(&'static str, PathBuf)], unified: bool) -> io::Result<()> {
        for (controller, file, value) in self.settings(unified) {
            let folder = folders.iter().find(|(c, _)| unified || *c == controller);
            if let Some((_, folder)) = folder {
                write(folder, file, &value)?;
            }
        }
        Ok(())
    }

    /// Gives the group of a host that runs these limits; one that is not there is fine.
    pub fn change(&self) -> io::Result<()> {
        let mut folders = self.folders(Path::new(ROOT));
        folders.retain(|(_, folder)| folder.is_dir());
        let unified = folders.iter().any(|(controller, _)| controller.is_empty());
        self.limit(&folders, unified)
    }

    /// Removes it, once nobody is in it; one that is not there is fine.
    pub fn remove(&self) {
        for (_, folder) in self.folders(Path::new(ROOT)) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

fn open(file: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .open(file)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))
}

fn write(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    use io::Write as _;
    let path = folder.join(file);
    open(&path)?
        .write_all(value.as_bytes())
        .map_err(|e| io::Error::new(e.kind(), format!("writing {value:?} to {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_the_words_of_each_version() {
        let group = Group { name: "a".into(), memory: Some(300 << 20), cpu_millis: Some(250) };
        let pids = ("pids", "pids.max", "1024".to_owned());
        let memory = (300_u64 << 20).to_string();
        assert_eq!(
            group.settings(true),
            [
                pids.clone(),
                ("memory", "memory.max", memory.clone()),
                ("cpu", "cpu.max", "25000 100000".into())
            ]
        );
        assert_eq!(
            group.settings(false),
            [
                pids.clone(),
                ("memory", "memory.limit_in_bytes", memory),
                ("cpu", "cpu.cfs_period_us", "100000".into()),
                ("cpu", "cpu.cfs_quota_us", "25000".into()),
            ]
        );
        assert_eq!(Group { name: "a".into(), memory: None, cpu_millis: None }.settings(true), [pids]);
    }

    #[test]
    fn there_is_room_for_containers_that_were_given_more() {
        let group = |memory, cpu_millis| Group { name: "a".into(), memory, cpu_millis };
        let of = |memory: i64, quota: i64| LinuxContainerResources {
            memory_limit_in_bytes: memory << 20,
            cpu_quota: quota,
            ..Default::default()
        };
        let pod = group(Some((64 << 20) + OWN_MEMORY), Some(500));
        let larger = pod.clone().with_room_for([of(100, 20_000), of(20, 70_000)].iter());
        assert_eq!(larger, group(Some((120 << 20) + OWN_MEMORY), Some(900)));
        for little in [&[of(10, 10_000)][..], &[], &[of(0, 0)]] {
            assert_eq!(pod.clone().with_room_for(little.iter()), pod);
        }
        // A container without limits takes nothing away from one that was given more.
        let beside = pod.clone().with_room_for([of(0, 0), of(500, 0)].iter());
        assert_eq!(beside, group(Some((500 << 20) + OWN_MEMORY), Some(500)));
        assert_eq!(group(None, None).with_room_for([of(100, 20_000)].iter()), group(None, None));
    }

    #[test]
    fn without_mounted_groups_there_is_none() {
        let empty = tempfile::tempdir().unwrap();
        let group = Group { name: "a".into(), memory: None, cpu_millis: None };
        assert!(group.make_below(empty.path()).is_err());
    }
}
