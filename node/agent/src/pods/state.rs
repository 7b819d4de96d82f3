//! What the runtime says of one pod, and what the agent remembers about it between two decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use coracle_cri_api::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container as Spec, ContainerRestartRule, Pod, ResourceRequirements};
use k8s_openapi::jiff::Timestamp;

use super::backoff::Backoff;
use crate::runtime::Image;

/// The sandboxes and containers of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodState {
    /// What the runtime calls itself.
    pub runtime: String,
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub containers: Vec<Container>,
}

/// One pod sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    /// The runtime's name for it.
    pub id: String,
    /// Whether containers can run in it.
    pub ready: bool,
    /// 0 for the first sandbox of the pod.
    pub attempt: u32,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// The handler that it was made with; empty: the default.
    pub handler: String,
    /// It was made for Linux containers too.
    pub linux: bool,
    /// Its addresses, the main one first.
    pub ips: Vec<String>,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Created and not started.
    #[default]
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited,
    /// The runtime does not know.
    Unknown,
}

/// One container, dead or alive.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    /// The runtime's name for it.
    pub id: String,
    /// The sandbox it runs in.
    pub sandbox: String,
    /// Its name in the pod.
    pub name: String,
    /// 0 for the first, one more for each restart.
    pub attempt: u32,
    /// What it does now.
    pub phase: Phase,
    /// Nanoseconds since 1970; 0: not yet.
    pub created_at: i64,
    /// Nanoseconds since 1970; 0: not yet.
    pub started_at: i64,
    /// Nanoseconds since 1970; 0: not yet.
    pub finished_at: i64,
    /// Of an exited container.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled` ...
    pub reason: String,
    /// Why it ended.
    pub message: String,
    /// The image as the runtime reports it.
    pub image: String,
    /// The image with its digest.
    pub image_ref: String,
    /// The file with its log.
    pub log_path: String,
    /// What asks it to end, as the API names it; empty: the runtime does not say.
    pub stop_signal: String,
    /// The agent ended it to start it anew (a probe failed, or other resources need that), whatever its exit code is.
    pub replaced: bool,
}

impl PodState {
    /// Runtimes tell no address of a pod on its node's network: it is the node's.
    pub fn on_network_of(&mut self, pod: &Pod, node: IpAddr) {
        if pod.spec.as_ref().and_then(|s| s.host_network) == Some(true) {
            for sandbox in self.sandboxes.iter_mut().filter(|s| s.ips.is_empty()) {
                sandbox.ips = vec![node.to_string()];
            }
        }
    }

    /// The sandbox that counts.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest container of a name, of any sandbox.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest container of a name in the sandbox that counts.
    pub fn current(&self, name: &str) -> Option<&Container> {
        let sandbox = self.sandbox()?;
        self.containers.iter().find(|c| c.name == name && c.sandbox == sandbox.id)
    }

    /// The container before the newest of that name.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// The container of that id, if it is still known.
    pub fn by_id(&self, id: Option<&str>) -> Option<&Container> {
        self.containers.iter().find(|one| Some(one.id.as_str()) == id)
    }

    /// Puts both lists into their order.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
    }
}

/// Why a container waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    /// `ErrImagePull`, `CreateContainerConfigError` ...
    pub reason: String,
    /// For people.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
    /// Failures in a row.
    pub failures: u32,
}

/// What probes found out about one container (by its id).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// The startup probe passed; `None`: no result yet.
    pub started: Option<bool>,
    /// The readiness probe passes.
    pub ready: Option<bool>,
    /// A liveness or startup probe gave up on the container.
    pub doomed: Option<Doom>,
}

/// Why a resize has not happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Unresized {
    /// `Infeasible`: never on this node. `Deferred`: not yet. `Error`: it was begun and failed, and is tried again.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// What the runtime refused: it is not asked again.
    pub refused: Option<ResourceRequirements>,
}

/// A pod that has failed on this node, whatever its containers do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// `Evicted`, `Terminated`, `OutOfcpu` ...
    pub reason: String,
    /// For people.
    pub message: String,
    /// The node ended a pod that ran: the condition `DisruptionTarget` says so.
    pub disrupted: bool,
    /// Seconds that its containers get at most; `None`: what its spec says.
    pub grace: Option<i64>,
}

/// Which probe gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    /// The liveness probe.
    Liveness,
    /// The startup probe.
    Startup,
}

/// What the agent remembers of a pod; all of it can be lost without harm.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The volumes are there and filled.
    pub mounted: bool,
    /// Why volumes are not there, or not given back, and when to try again.
    pub mount_error: Option<Waiting>,
    /// The pod has ended, and its volumes and devices are given back.
    pub given_back: bool,
    /// Why there is no sandbox, and when to try again.
    pub sandbox_error: Option<Waiting>,
    /// By container name: why it could not be started.
    pub waiting: BTreeMap<String, Waiting>,
    /// By container name: the crash back-off.
    pub backoff: BTreeMap<String, Backoff>,
    /// By container id.
    pub probed: BTreeMap<String, Probed>,
    /// Some container has a Linux image: the sandbox has to be made for that.
    pub needs_linux: bool,
    /// By container name: images that were seen to before the sandbox was made.
    pub images: BTreeMap<String, Image>,
    /// The pod has failed here, whatever its containers do.
    pub failed: Option<Failed>,
    /// Since when its containers are being ended for good: the grace counts from there.
    pub ending_since: Option<Timestamp>,
    /// By container id: `preStop` hooks that were begun. Each runs once.
    pub hooked: BTreeSet<String>,
    /// Ids of containers that were ended to be started anew.
    pub replaced: BTreeSet<String>,
    /// By container id: the resources that it has.
    pub resources: BTreeMap<String, ResourceRequirements>,
    /// The sandbox that was last given resources, and those.
    pub limited: Option<(String, Together)>,
    /// Ids of containers that are still to have other limits of their pod.
    pub heirs: BTreeSet<String>,
    /// Why running containers do not have the resources of their specs.
    pub unresized: Option<Unresized>,
    /// What this node cannot do for the pod: it is refused for good.
    pub refused: Option<(String, String)>,
    /// The node has taken the pod.
    pub admitted: bool,
    /// What it gets of processors, memory and devices is decided when its images are known.
    pub unplaced: bool,
}

/// What the Linux containers of a pod may use together, and what the pod takes besides.
pub type Together = [Option<LinuxContainerResources>; 2];

/// The pod left the API without its node's consent, or is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Wanted.
    Runs,
    /// Has a deletion timestamp.
    Leaves,
    /// Is no longer in the API.
    Gone,
}

/// Init containers of a pod, sidecars included.
pub fn init_containers(pod: &Pod) -> &[Spec] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

/// The main containers of a pod.
pub fn main_containers(pod: &Pod) -> &[Spec] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// Ephemeral containers of a pod: those that were added to look into it.
pub fn ephemeral_containers(pod: &Pod) -> Vec<Spec> {
    let added = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    // They have every field of a container that they may use.
    let spec = |one| serde_json::from_value(serde_json::to_value(one).ok()?).ok();
    added.iter().filter_map(spec).collect()
}

/// The container of that name, of whatever kind.
pub fn find_container(pod: &Pod, name: &str) -> Option<Spec> {
    let own = init_containers(pod).iter().chain(main_containers(pod)).find(|spec| spec.name == name).cloned();
    own.or_else(|| ephemeral_containers(pod).into_iter().find(|spec| spec.name == name))
}

/// Whether an init container is a sidecar: it starts in order and then runs along.
pub fn is_sidecar(container: &Spec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's `Always`, `OnFailure` or `Never`.
pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

/// Whether a container that ended with `exit_code` starts again: by its own rules, its own policy, or the pod's.
/// Ephemeral containers run once; init containers that succeeded are done, unless they are sidecars.
pub fn restarts(pod: &Pod, spec: &Spec, exit_code: i32) -> bool {
    let Some(policy) = policy(pod, spec) else { return false };
    if spec.restart_policy.is_some()
        && spec.restart_policy_rules.iter().flatten().any(|r| matches(r, exit_code))
    {
        return true;
    }
    match policy {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

/// What holds for a container; `None`: it is an ephemeral one.
fn policy<'a>(pod: &'a Pod, spec: &'a Spec) -> Option<&'a str> {
    let init = init_containers(pod).iter().any(|c| c.name == spec.name);
    if !init && !main_containers(pod).iter().any(|c| c.name == spec.name) {
        return None;
    }
    Some(match (spec.restart_policy.as_deref(), init, restart_policy(pod)) {
        (Some(own), ..) => own,
        // An init container is repeated until it has succeeded.
        (None, true, "Always") => "OnFailure",
        (None, _, policy) => policy,
    })
}

/// Whether a container that has ended starts again: as [`restarts`] has it, and what was ended to start anew unless it
/// never does. What its rules say of its exit code is not asked then: the code says nothing of the program.
pub fn starts_again(pod: &Pod, spec: &Spec, ended: &Container) -> bool {
    restarts(pod, spec, ended.exit_code) || ended.replaced && may_restart(pod, spec)
}

/// Whether a container that is ended to be started anew starts anew.
pub fn may_restart(pod: &Pod, spec: &Spec) -> bool {
    policy(pod, spec).is_some_and(|policy| policy != "Never")
}

fn matches(rule: &ContainerRestartRule, exit_code: i32) -> bool {
    let Some(codes) = rule.exit_codes.as_ref().filter(|_| rule.action == "Restart") else { return false };
    let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

/// Seconds that containers get between the request to end and the end.
pub fn grace_seconds(pod: &Pod, fate: Fate) -> i64 {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    match fate {
        Fate::Gone => 1,
        Fate::Runs | Fate::Leaves => asked.or(spec).unwrap_or(30).max(1),
    }
}

/// What is left of the grace of a pod whose containers are being ended for good. Seconds, at least 1.
pub fn grace_left(pod: &Pod, fate: Fate, memory: &Memory, now: Timestamp) -> i64 {
    let all = grace_seconds(pod, fate);
    let all = memory.failed.as_ref().and_then(|f| f.grace).map_or(all, |most| all.min(most));
    let passed = memory.ending_since.map_or(0, |since| now.as_second().saturating_sub(since.as_second()));
    all.saturating_sub(passed.max(0)).max(1)
}
