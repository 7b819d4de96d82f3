//! A node as its host shows it: whose its files, mounts, processes, descriptors, sockets, devices and control groups are.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use super::descriptors;
use super::host;
use super::process::Process;
use super::seen::{Seen, stem};
use super::sockets::{self, Socket};
use crate::netns::Host;
use crate::slot::Slot;

/// Digits of a sandbox's id in the name of its host's folder and control group.
const DIGITS: usize = 12;
/// What cables to pods are called, before digits of their sandbox's id.
const CABLE: &str = "co";

/// The addresses that a cluster gives away.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// How addresses of pods begin.
    pods: [u8; 2],
    /// How addresses of Services begin.
    services: [u8; 2],
    /// How those of load balancers begin, where they are the upper half of a /24.
    balancers: Option<[u8; 3]>,
}

/// What exists, as far as the API and the runtime's own records say.
#[derive(Default, Debug)]
pub struct Known {
    /// Uids.
    pods: BTreeSet<String>,
    /// Ids.
    sandboxes: BTreeSet<String>,
    containers: BTreeSet<String>,
    /// Numbers of further shared hosts.
    hosts: BTreeSet<String>,
    /// Of pods.
    addresses: BTreeSet<Ipv4Addr>,
    services: BTreeSet<Ipv4Addr>,
}

/// Where a node has its files.
pub struct Place {
    root: PathBuf,
    state: PathBuf,
    ranges: Ranges,
    host: Option<Host>,
    seen: Seen,
    /// When it had just started.
    descriptors: descriptors::Counts,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Named by the pod's uid, after the last `_` if there is one.
    Pod,
    Sandbox,
    Container,
    /// Named by digits of a sandbox's id.
    OwnHost,
    /// Named by its number.
    FurtherHost,
}

impl Ranges {
    /// Those of a slot, profile `loopback`.
    pub fn of(slot: &Slot) -> Self {
        let n = slot.number();
        Self { pods: [127, 76 + n], services: [127, 100 + n], balancers: Some([127, 0, 100 + n]) }
    }

    /// Those of profile `routed`.
    pub fn routed() -> Self {
        Self { pods: [10, 244], services: [10, 96], balancers: None }
    }

    fn is_pod(&self, ip: Ipv4Addr) -> bool {
        ip.octets().starts_with(&self.pods)
    }

    fn is_service(&self, ip: Ipv4Addr) -> bool {
        let balancer = |begin: [u8; 3]| ip.octets().starts_with(&begin) && ip.octets()[3] >= 128;
        ip.octets().starts_with(&self.services) || self.balancers.is_some_and(balancer)
    }
}

impl Place {
    /// A node whose agent and runtime have these directories, in the network of a host if not in this one.
    ///
    /// # Errors
    /// When the kernel gives no more watchers.
    pub fn new(root: PathBuf, state: PathBuf, ranges: Ranges, host: Option<Host>) -> Result<Self> {
        Ok(Self { root, state, ranges, host, seen: Seen::new()?, descriptors: Default::default() })
    }

    /// From now on ids of sandboxes and containers are remembered; the runtime has its folders. Descriptors are counted.
    ///
    /// # Errors
    /// When a folder cannot be watched.
    pub fn watch(&mut self, processes: &[Process]) -> Result<()> {
        let own = self.own(processes);
        self.descriptors = descriptors::count(&own, &network(&own));
        let folders = self.folders();
        let of_ids = folders.iter().filter(|(_, kind)| matches!(kind, Kind::Sandbox | Kind::Container));
        of_ids.into_iter().try_for_each(|(folder, _)| self.seen.watch(folder))
    }

    fn own<'a>(&self, processes: &'a [Process]) -> Vec<&'a Process> {
        processes.iter().filter(|process| self.owns(process)).collect()
    }

    /// Folders with one entry for each pod, sandbox and so on.
    fn folders(&self) -> Vec<(PathBuf, Kind)> {
        let (root, state) = (&self.root, &self.state);
        let mut folders = vec![
            (root.join("pods"), Kind::Pod),
            (root.join("logs"), Kind::Pod),
            (state.join("sandboxes"), Kind::Sandbox),
            (state.join("containers"), Kind::Container),
            (state.join("isolated"), Kind::OwnHost),
            (state.join("further"), Kind::FurtherHost),
            (state.join("oci/pods"), Kind::Sandbox),
            (state.join("oci/containers"), Kind::Container),
            (state.join("oci/runtime"), Kind::Container),
        ];
        folders.extend(self.shared_memory().map(|folder| (folder, Kind::Pod)));
        folders
    }

    /// Where the agent has volumes in memory, when it may not mount.
    fn shared_memory(&self) -> Option<PathBuf> {
        use sha2::Digest as _;
        let hash = hex::encode(sha2::Sha256::digest(self.root.as_os_str().as_encoded_bytes()));
        let ending = format!("-{}", hash.get(..12)?);
        let all = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        all.map(|e| e.path()).find(|path| path.to_string_lossy().ends_with(&ending))
    }

    /// What exists here: pods and Services are lists of the API.
    pub fn known(&self, pods: &Value, services: &Value) -> Known {
        let mut known = Known::default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let ip = |value: &Value| value.as_str().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
        for pod in list(&pods["items"]) {
            // A static pod has a uid of its own; the API has that of its mirror.
            let own = text(&pod["metadata"]["annotations"]["kubernetes.io/config.mirror"]);
            known.pods.extend(text(&pod["metadata"]["uid"]).into_iter().chain(own));
            known.addresses.extend(list(&pod["status"]["podIPs"]).iter().filter_map(|one| ip(&one["ip"])));
        }
        for sandbox in records(&self.state.join("sandboxes")) {
            let uid = text(&sandbox["config"]["metadata"]["uid"]).unwrap_or_default();
            if known.pods.contains(&uid) {
                known.sandboxes.extend(text(&sandbox["id"]));
                known.addresses.extend(ip(&sandbox["ip"]));
                known.hosts.extend(sandbox["host"].as_u64().map(|number| number.to_string()));
            }
        }
        for container in records(&self.state.join("containers")) {
            if text(&container["sandboxId"]).is_some_and(|id| known.sandboxes.contains(&id)) {
                known.containers.extend(text(&container["id"]));
            }
        }
        for service in list(&services["items"]) {
            let (spec, status) = (&service["spec"], &service["status"]["loadBalancer"]);
            let own = list(&spec["clusterIPs"]).iter().chain(list(&spec["externalIPs"])).filter_map(ip);
            known
                .services
                .extend(own.chain(list(&status["ingress"]).iter().filter_map(|one| ip(&one["ip"]))));
        }
        let [a, b] = self.ranges.services;
        // The node's own DNS, with or without a Service of its name.
        known.services.insert(Ipv4Addr::new(a, b, 0, 10));
        known
    }

    /// What is of a pod, container or Service that is not among those that are known.
    ///
    /// # Errors
    /// When the host's network cannot be looked at.
    pub fn left(&self, known: &Known, processes: &[Process], mounts: &[PathBuf]) -> Result<Vec<String>> {
        let folders = self.folders();
        let mut left = Vec::new();
        for (folder, kind) in &folders {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let others = entries.filter(|e| !has(known, *kind, &e.file_name().to_string_lossy()));
            left.extend(others.map(|e| format!("file {}", e.path().display())));
        }
        let is_left = |path: &Path| {
            let of = |(folder, kind): &(PathBuf, Kind)| {
                let name = path.strip_prefix(folder).ok()?.components().next()?.as_os_str().to_str()?;
                Some(!has(known, *kind, name))
            };
            folders.iter().find_map(of).unwrap_or(false)
        };
        left.extend(mounts.iter().filter(|m| is_left(m)).map(|m| format!("mount {}", m.display())));
        let own = self.own(processes);
        let sockets = network(&own);
        let each = known.sandboxes.len() + known.containers.len();
        left.extend(descriptors::grown(&self.descriptors, &descriptors::count(&own, &sockets), each));
        for process in own {
            left.extend(
                process
                    .paths()
                    .into_iter()
                    .filter(|(_, path)| is_left(path))
                    .map(|(what, path)| format!("{what} {} of {process}", path.display())),
            );
            let held = process.sockets(&sockets);
            // Connections to a Service go on without it.
            let gone = |s: &&Socket| [s.local, s.remote].iter().any(|a| self.is_of_gone_pod(known, *a.ip()));
            left.extend(
                held.iter()
                    .filter(gone)
                    .map(|s| format!("{} socket {} to {} of {process}", s.protocol, s.local, s.remote)),
            );
        }
        let strays = sockets.iter().filter(|s| s.listens && self.is_gone(known, *s.local.ip()));
        left.extend(strays.map(|s| format!("{} listens on {}", s.protocol, s.local)));
        left.extend(self.groups(known));
        left.extend(self.devices(known)?);
        Ok(left)
    }

    /// What is left once nothing runs here any more; the runtime's records and folders too, when everything was stopped. What
    /// is killed leaves its devices, rules and control groups on a host of its own.
    ///
    /// # Errors
    /// When the host's network cannot be looked at.
    pub fn after(&self, stopped: bool) -> Result<Vec<String>> {
        let mut left = if stopped { self.records() } else { Vec::new() };
        match &self.host {
            None => left.extend(self.listeners()),
            Some(host) if stopped => left.extend(host::after(host, &[])?),
            Some(_) => return Ok(left),
        }
        left.extend(self.groups(&Known::default()));
        Ok(left)
    }

    /// What is left once the agent and the runtime of a node without pods were stopped, beside these processes.
    ///
    /// # Errors
    /// When the host's network cannot be looked at.
    pub fn emptied(&self, kept: &[&Process]) -> Result<Vec<String>> {
        let mut left = self.records();
        if let Some(host) = &self.host {
            left.extend(host::after(host, kept)?);
        }
        left.extend(self.groups(&Known::default()));
        Ok(left)
    }

    /// Whether a process is its agent, its runtime, or of one of them.
    pub fn owns(&self, process: &Process) -> bool {
        process.names(&self.root) || process.names(&self.state)
    }

    /// Whether a path is in one of its directories.
    pub fn has(&self, path: &Path) -> bool {
        path.starts_with(&self.root) || path.starts_with(&self.state)
    }

    /// Whether a process outlives its runtime even without pods: the host that they share.
    pub fn keeps(&self, process: &Process) -> bool {
        process.program() == Some("wasm-host") && process.names(&self.state.join("wasm-host.sock"))
    }

    /// What the runtime keeps for sandboxes and containers.
    fn records(&self) -> Vec<String> {
        let folders = self.folders().into_iter().filter(|(path, _)| !path.starts_with(&self.root));
        let entries = folders.filter_map(|(path, _)| std::fs::read_dir(path).ok()).flatten().flatten();
        entries.map(|e| format!("file {}", e.path().display())).collect()
    }

    /// What listens on addresses of pods and Services in the network of this process.
    fn listeners(&self) -> Vec<String> {
        let nothing = Known::default();
        let sockets = sockets::of(std::process::id().cast_signed()).into_iter();
        let ours = sockets.filter(|s| s.listens && self.is_gone(&nothing, *s.local.ip()));
        ours.map(|s| format!("{} listens on {}", s.protocol, s.local)).collect()
    }

    /// Whether an address is one of a pod that is not known.
    fn is_of_gone_pod(&self, known: &Known, ip: Ipv4Addr) -> bool {
        // The bridge of pods has the first address of its range.
        let bridge = self.host.is_some() && ip.octets()[3] == 1;
        self.ranges.is_pod(ip) && !bridge && !known.addresses.contains(&ip)
    }

    /// Whether an address is one of a pod or a Service that is not known.
    fn is_gone(&self, known: &Known, ip: Ipv4Addr) -> bool {
        let service = self.ranges.is_service(ip) && !known.services.contains(&ip);
        service || self.is_of_gone_pod(known, ip)
    }

    /// Control groups of sandboxes and containers that were here once.
    fn groups(&self, known: &Known) -> Vec<String> {
        let seen = self.seen.names();
        let below = |path: &Path| {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect::<Vec<_>>()
        };
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let top = Path::new("/sys/fs/cgroup");
        let mut left = Vec::new();
        // Version 1 has a tree for each controller.
        for tree in below(top).into_iter().chain([top.to_owned()]) {
            let pods = below(&tree.join("coracle")).into_iter().filter(|path| seen.contains(&name(path)));
            for pod in pods {
                let containers = below(&pod).into_iter().filter(|path| seen.contains(&name(path)));
                left.extend(containers.filter(|path| !has(known, Kind::Container, &name(path))));
                left.extend(Some(pod).filter(|path| !has(known, Kind::Sandbox, &name(path))));
            }
            let hosts = below(&tree.join("coracle-isolated")).into_iter();
            let hosts = hosts.filter(|path| seen.iter().any(|id| id.starts_with(&name(path))));
            left.extend(hosts.filter(|path| !has(known, Kind::OwnHost, &name(path))));
        }
        left.into_iter().map(|path| format!("control group {}", path.display())).collect()
    }

    /// Cables and local addresses, where the network is the cluster's own.
    fn devices(&self, known: &Known) -> Result<Vec<String>> {
        let Some(host) = &self.host else { return Ok(Vec::new()) };
        let of = |cable: &String| {
            let digits = cable.strip_prefix(CABLE).filter(|d| d.len() > DIGITS);
            digits.is_some_and(|digits| !known.sandboxes.iter().any(|id| id.starts_with(digits)))
        };
        let cables = host::links(host)?.into_iter().filter(of).map(|cable| format!("device {cable}"));
        let routes = host::local_routes(host)?.into_iter().filter(|(to, _)| self.is_gone(known, *to));
        Ok(cables.chain(routes.map(|(_, line)| format!("route {line}"))).collect())
    }
}

/// The sockets of the network that all of these are in.
fn network(processes: &[&Process]) -> Vec<Socket> {
    processes.first().map(|process| sockets::of(process.pid())).unwrap_or_default()
}

fn has(known: &Known, kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Pod => known.pods.contains(name.rsplit('_').next().unwrap_or(name)),
        Kind::Sandbox => known.sandboxes.contains(stem(name)),
        Kind::Container => known.containers.contains(stem(name)),
        Kind::OwnHost => known.sandboxes.iter().any(|id| id.starts_with(name)),
        Kind::FurtherHost => known.hosts.contains(name),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn records(folder: &Path) -> Vec<Value> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let read = |path: PathBuf| serde_json::from_slice(&std::fs::read(path).ok()?).ok();
    entries.filter(|path| path.extension().is_some_and(|e| e == "json")).filter_map(read).collect()
}
