//! Hosts for profile `routed`: network namespaces on a switch of their own, made and removed by the test.
//!
//! Nothing of it touches the machine's own namespace: the switch is a bridge inside one more namespace. Needs root and
//! Debian's iproute2.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::succeed;

/// Hosts that reach each other, and nothing else.
pub struct Network {
    switch: String,
    /// The hosts, in order.
    pub hosts: Vec<Host>,
}

/// A network namespace with an address.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name for `ip netns`.
    pub name: String,
    /// `192.168.77.N`, of a /24 that all hosts share; N is the index and 11.
    pub address: String,
}

fn ip(args: &[&str]) -> Result<()> {
    succeed(Command::new("ip").args(args)).map(drop)
}

impl Network {
    /// Makes so many hosts.
    ///
    /// # Errors
    /// Without root or iproute2; what was made until then is removed.
    pub fn new(hosts: usize) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        ensure!(nix::unistd::geteuid().is_root(), "profile routed needs root: it makes network namespaces");
        ensure!(hosts <= 64, "at most 64 hosts");
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("coracle-{}-{serial}", std::process::id());
        let mut network = Self { switch: format!("{prefix}-switch"), hosts: Vec::new() };
        ip(&["netns", "add", &network.switch])?;
        ip(&["-n", &network.switch, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &network.switch, "link", "set", "switch", "up"])?;
        for index in 0..hosts {
            let host =
                Host { name: format!("{prefix}-host{index}"), address: format!("192.168.77.{}", index + 11) };
            ip(&["netns", "add", &host.name])?;
            network.hosts.push(host.clone());
            network.connect(&host, index)?;
        }
        Ok(network)
    }

    fn connect(&self, host: &Host, index: usize) -> Result<()> {
        let port = format!("port{index}");
        let (name, switch) = (host.name.as_str(), self.switch.as_str());
        ip(&["-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["-n", switch, "link", "set", &port, "master", "switch", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        ip(&["-n", name, "address", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])
    }

    /// Kills everything that runs on the hosts.
    pub fn end(&self) {
        self.hosts.iter().for_each(Host::end);
    }

    /// A host by its index.
    pub fn host(&self, index: usize) -> Result<&Host> {
        self.hosts.get(index).with_context(|| format!("there is no host {index}"))
    }
}

impl Host {
    /// A program that will run on this host, as root. (Not by `ip netns exec`: that hides the control groups.)
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// The namespace's file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// The body of a page as this host gets it, by curl.
    pub fn curl(&self, url: &str) -> Result<String> {
        let flags = ["--silent", "--show-error", "--fail", "--max-time", "10", url];
        succeed(self.command("curl").args(flags))
    }

    /// Cuts the host off (its cable is pulled), or connects it again.
    pub fn set_connected(&self, connected: bool) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", "eth0", if connected { "up" } else { "down" }])
    }

    /// Kills what still runs in the namespace: all of it was started by this test.
    fn end(&self) {
        for _ in 0..50 {
            let Ok(out) = succeed(Command::new("ip").args(["netns", "pids", &self.name])) else { return };
            let pids: Vec<i32> = out.lines().filter_map(|line| line.trim().parse().ok()).collect();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.end();
        let names = self.hosts.iter().map(|host| &host.name).chain([&self.switch]);
        for name in names {
            if let Err(error) = ip(&["netns", "delete", name]) {
                eprintln!("remove the network namespace {name}: {error:#}");
            }
        }
    }
}

/// Ends the Linux containers whose files lie below `dir`, and unmounts what they leave, so that it can be removed. For
/// clusters that are killed, not stopped: their containers are meant to outlive them.
pub fn clear_containers(dir: &Path) {
    let Ok(dir) = dir.canonicalize() else { return };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&dir)).collect();
    below.reverse();
    for point in &below {
        let Some(own) = point.parent() else { continue };
        let ended = std::fs::read_to_string(own.join("state.json")).unwrap_or_default().contains("exited");
        let pid = std::fs::read_to_string(own.join("pid")).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid.filter(|_| !ended && point.ends_with("rootfs")) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    for point in &below {
        let _ = Command::new("umount").arg("--lazy").arg(point).output();
        remove_group(point);
    }
}

/// Removes the control groups of a pod, told by the mount of its shared memory.
fn remove_group(point: &Path) {
    let Some(id) = point.parent().and_then(Path::file_name).filter(|_| point.ends_with("shm")) else {
        return;
    };
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let group = hierarchy.path().join("coracle").join(id);
        for container in std::fs::read_dir(&group).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(container.path());
        }
        let _ = std::fs::remove_dir(group);
    }
}
