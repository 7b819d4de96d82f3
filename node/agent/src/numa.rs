//! Where the containers of a pod get their processors, memory and devices: decided when the node takes the pod, all of it
//! close together as far as the policy says (the kubelet's topology manager).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use coracle_devices::manager::{Holder, Manager};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cpus::{self, Cpus};
use crate::memory::machine::{Amounts, is_memory};
use crate::memory::{self, Memory};
use crate::pods::state::{init_containers, is_sidecar, main_containers};
use crate::pods::steps::devices;

pub mod hints;
pub mod options;

use hints::{Distances, Hint, Mask, Offers, Policy};
use options::Options;

/// Where the kernel tells of processors and memory nodes.
pub const SYSTEM: &str = "/sys/devices/system";

/// What is placed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Each container by itself.
    #[default]
    Container,
    /// All of a pod on the same nodes.
    Pod,
}

impl Scope {
    /// The kubelet's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Pod => "pod",
        }
    }
}

/// What an operator set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How close together.
    pub policy: Policy,
    /// What.
    pub scope: Scope,
    /// And besides.
    pub options: Options,
}

/// How far memory nodes are from each other; those that the kernel does not tell are left out.
pub fn distances(system: &Path, nodes: Mask) -> Distances {
    let row = |from: u32| {
        let text =
            std::fs::read_to_string(system.join(format!("node/node{from}/distance"))).unwrap_or_default();
        let all = text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>();
        nodes.nodes().zip(all).map(move |(to, distance)| ((from, to), distance))
    };
    nodes.nodes().flat_map(row).collect()
}

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `TopologyAffinityError`, `SMTAlignmentError` or `UnexpectedAdmissionError`.
    pub reason: &'static str,
    /// The kubelet's words.
    pub message: String,
}

impl Refusal {
    fn affinity() -> Self {
        let message = "Pod was rejected: Resources cannot be allocated with Topology locality".to_owned();
        Self { reason: "TopologyAffinityError", message }
    }

    fn of_cpus(error: &cpus::ledger::Error) -> Self {
        match error {
            cpus::ledger::Error::Processors { .. } => Self::unexpected(&error.to_string()),
            _ => Self { reason: "SMTAlignmentError", message: format!("Pod was rejected: {error}") },
        }
    }

    fn unexpected(words: &str) -> Self {
        let message = format!("Pod was rejected: Allocate failed due to {words}, which is unexpected");
        Self { reason: "UnexpectedAdmissionError", message }
    }
}

/// Places pods, one at a time.
pub struct Placement {
    policy: Policy,
    scope: Scope,
    nodes: Mask,
    distances: Distances,
    cpus: Cpus,
    memory: Memory,
    devices: Manager,
    one: tokio::sync::Mutex<()>,
}

/// One container of a pod, in the order in which they start.
struct Ask<'a> {
    name: &'a str,
    /// Ended before those after it begin.
    ends: bool,
    wanted: Amounts,
}

const CPU: &str = "cpu";

/// What containers ask for that is placed: whole processors, memory, devices of plugins. Those that are no Linux containers
/// ask for nothing.
fn asks<'a>(pod: &'a Pod, linux: &BTreeSet<String>, devices: &Manager, memory: bool) -> Vec<Ask<'a>> {
    let wanted = |spec: &Container| -> Amounts {
        let mut wanted = Amounts::new();
        let of = devices::wanted(spec).into_iter().filter(|(name, _)| devices.knows(name));
        wanted.extend(of.map(|(name, count)| (name, u64::try_from(count).unwrap_or(u64::MAX))));
        if linux.contains(&spec.name) {
            let count = cpus::whole(pod, spec).and_then(|n| u64::try_from(n).ok());
            wanted.extend(count.map(|n| (CPU.to_owned(), n)));
            if memory {
                wanted.extend(memory::wanted(pod, spec));
            }
        }
        wanted
    };
    let inits = init_containers(pod).iter().map(|spec| (spec, !is_sidecar(spec)));
    let all = inits.chain(main_containers(pod).iter().map(|spec| (spec, false)));
    all.map(|(spec, ends)| Ask { name: &spec.name, ends, wanted: wanted(spec) }).collect()
}

/// What all containers need at the same time at most.
fn together(asks: &[Ask<'_>]) -> Amounts {
    let (mut along, mut most) = (Amounts::new(), Amounts::new());
    for ask in asks {
        for (name, amount) in &ask.wanted {
            let beside = along.entry(name.clone()).or_default();
            let now = beside.saturating_add(*amount);
            if !ask.ends {
                *beside = now;
            }
            let most = most.entry(name.clone()).or_default();
            *most = now.max(*most);
        }
    }
    most
}

impl Placement {
    /// Over the managers of this node, whose memory nodes are so far from each other.
    ///
    /// # Errors
    /// When a policy is asked for that this machine has too many memory nodes for.
    pub fn new(
        settings: &Settings,
        nodes: Mask,
        distances: Distances,
        (cpus, memory, devices): (Cpus, Memory, Manager),
    ) -> Result<Self, String> {
        let Settings { policy, scope, ref options } = *settings;
        let many = usize::try_from(nodes.count()).is_ok_and(|count| count > options.most);
        if many && policy != Policy::None {
            return Err(format!("unsupported on machines with more than {} NUMA Nodes", options.most));
        }
        let distances = if options.closest { distances } else { Distances::new() };
        let one = tokio::sync::Mutex::default();
        Ok(Self { policy, scope, nodes, distances, cpus, memory, devices, one })
    }

    /// Whether there is anything to decide.
    pub fn decides(&self) -> bool {
        self.policy != Policy::None || self.cpus.is_static() || self.memory.is_static()
    }

    /// Gives a new pod what its containers ask for; `linux` names those that run as Linux containers. It is written down
    /// when this returns. What an agent gave it that ended meanwhile is given anew.
    ///
    /// # Errors
    /// Why the pod is refused; nothing was given then.
    pub async fn place(&self, pod: &Pod, linux: &BTreeSet<String>) -> Result<(), Refusal> {
        let _one = self.one.lock().await;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.forget(uid);
        let placed = self.all(uid, &asks(pod, linux, &self.devices, self.memory.is_static())).await;
        let placed = match placed {
            Ok(()) => self.commit().map_err(|words| Refusal::unexpected(&words)),
            Err(refusal) => Err(refusal),
        };
        if placed.is_err() {
            self.forget(uid);
        }
        placed
    }

    /// Gives a pod that has begun what it lacks, if that can be: one that began before a policy was set goes on without.
    /// Containers that have `ended` for good get nothing more: what they had may be another's.
    pub async fn complete(&self, pod: &Pod, linux: &BTreeSet<String>, ended: &BTreeSet<&str>) {
        let _one = self.one.lock().await;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let before = (self.cpus.held(uid), self.memory.held(uid));
        let asks = asks(pod, linux, &self.devices, self.memory.is_static());
        let mut changed = Ok(false);
        for (at, ask) in asks.iter().enumerate().filter(|(_, ask)| !ended.contains(ask.name)) {
            let given = self.own(uid, &asks, at, ask, Hint::default());
            changed = changed.and_then(|before| given.map(|now| before || now));
        }
        let done = match changed {
            Ok(false) => return,
            Ok(true) => self.commit(),
            Err(refusal) => Err(refusal.message),
        };
        if let Err(words) = done {
            tracing::info!(
                pod = pod.metadata.name,
                words,
                "a pod that runs already has no processors or memory of its own"
            );
            self.cpus.restore(uid, before.0);
            self.memory.restore(uid, before.1);
        }
    }

    /// A container has turned out to be none of Linux: what it has is for others.
    pub fn release(&self, uid: &str, container: &str) {
        self.cpus.retain(|pod, name| pod != uid || name != container);
        self.memory.retain(|pod, name| pod != uid || name != container);
    }

    /// Takes back what pods have that are not to be kept.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.cpus.retain(|pod, _| keep(pod));
        self.memory.retain(|pod, _| keep(pod));
        if let Err(error) = self.devices.retain(&keep) {
            tracing::warn!(%error, "devices of pods that are gone could not be taken back");
        }
    }

    fn forget(&self, uid: &str) {
        self.cpus.restore(uid, None);
        self.memory.restore(uid, None);
        if self.policy != Policy::None
            && let Err(error) = self.devices.retain(|pod| pod != uid)
        {
            tracing::warn!(%error, "devices of a pod could not be taken back");
        }
    }

    fn commit(&self) -> Result<(), String> {
        self.cpus.commit()?;
        self.memory.commit()
    }

    async fn all(&self, uid: &str, asks: &[Ask<'_>]) -> Result<(), Refusal> {
        let shared = match self.scope {
            Scope::Pod => Some(self.choose(uid, None, &together(asks), &[])?),
            Scope::Container => None,
        };
        for (at, ask) in asks.iter().enumerate() {
            let before: Vec<(&str, bool)> = asks.iter().take(at).map(|a| (a.name, a.ends)).collect();
            let hint = match shared {
                Some(hint) => hint,
                None => self.choose(uid, Some(ask.name), &ask.wanted, &before)?,
            };
            self.own(uid, asks, at, ask, hint)?;
            let wanted = counts(&ask.wanted);
            if self.policy != Policy::None && !wanted.is_empty() {
                let near: Option<BTreeSet<u32>> = hint.nodes.map(|mask| mask.nodes().collect());
                let (holder, ended) = (holder(uid, ask.name), ended(&before));
                let given = self.devices.reserve(&holder, &wanted, near.as_ref(), &ended).await;
                given.map_err(|error| {
                    // The manager has the words of the whole.
                    let message = format!("Pod was rejected: {error}");
                    Refusal { reason: "UnexpectedAdmissionError", message }
                })?;
            }
        }
        Ok(())
    }

    /// Processors and memory of a container.
    fn own(
        &self,
        uid: &str,
        asks: &[Ask<'_>],
        at: usize,
        ask: &Ask<'_>,
        hint: Hint,
    ) -> Result<bool, Refusal> {
        let before: Vec<(&str, bool)> = asks.iter().take(at).map(|a| (a.name, a.ends)).collect();
        let count = ask.wanted.get(CPU).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0);
        let cpus = self.cpus.give((uid, ask.name), count, &before, hint.nodes);
        let cpus = cpus.map_err(|error| Refusal::of_cpus(&error))?;
        let memory = self.memory.give((uid, ask.name), &of_memory(&ask.wanted), &ended(&before), hint);
        let memory = memory.map_err(|words| Refusal::unexpected(&words))?;
        Ok(cpus || memory)
    }

    /// Where everything that is wanted is to come from.
    fn choose(
        &self,
        uid: &str,
        container: Option<&str>,
        wanted: &Amounts,
        before: &[(&str, bool)],
    ) -> Result<Hint, Refusal> {
        if self.policy == Policy::None {
            return Ok(Hint::default());
        }
        let count = wanted.get(CPU).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0);
        let cpus = self.cpus.hints(uid, count, before).map(|hints| (CPU.to_owned(), Some(hints)));
        let memory = self.memory.offers(uid, &of_memory(wanted), &ended(before));
        let holder = holder(uid, container.unwrap_or_default());
        let devices = counts(wanted).into_iter().map(|(resource, count)| {
            let hints = near(self.nodes, &self.devices.seen(&holder, &resource, &ended(before)), count);
            (resource, hints)
        });
        let offers = [cpus.into_iter().collect(), memory, devices.collect::<Offers>()];
        self.policy.choose(self.nodes, &offers, &self.distances).ok_or_else(Refusal::affinity)
    }
}

fn holder(uid: &str, container: &str) -> Holder {
    Holder { pod: uid.to_owned(), container: container.to_owned() }
}

fn of_memory(wanted: &Amounts) -> Amounts {
    wanted.iter().filter(|(name, _)| is_memory(name)).map(|(name, bytes)| (name.clone(), *bytes)).collect()
}

/// Devices that are wanted.
fn counts(wanted: &Amounts) -> BTreeMap<String, usize> {
    let devices = wanted.iter().filter(|(name, _)| *name != CPU && !is_memory(name));
    devices.map(|(name, n)| (name.clone(), usize::try_from(*n).unwrap_or(usize::MAX))).collect()
}

fn ended<'a>(before: &[(&'a str, bool)]) -> Vec<&'a str> {
    before.iter().filter(|(_, ends)| *ends).map(|(name, _)| *name).collect()
}

/// Hints for devices; `None` where no plugin says where they are.
fn near(nodes: Mask, seen: &[coracle_devices::manager::Seen], count: usize) -> Option<Vec<Hint>> {
    if seen.iter().all(|one| one.nodes.is_empty()) {
        return None;
    }
    if seen.iter().filter(|one| one.free).count() < count {
        return Some(Vec::new());
    }
    let on = |mask: Mask, nodes: &BTreeSet<u32>| nodes.iter().any(|node| mask.has(*node));
    let there = |mask| seen.iter().filter(|one| on(mask, &one.nodes)).count();
    let free = |mask| seen.iter().filter(|one| one.free && on(mask, &one.nodes)).count();
    Some(hints::counted(nodes, count, there, free))
}

#[cfg(test)]
mod tests;
