//! Processors of their own for containers that ask for whole ones in pods of class Guaranteed: the kubelet's static CPU
//! manager policy. All other Linux containers share the rest. Wasm containers share their host's threads, whatever they
//! ask for.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::quantity::Quantity;
use coracle_cri_api::{annotation, v1 as cri};
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Kept;
use crate::context::Context;
use crate::numa::hints::{self as numa, Hint, Mask};
use crate::runtime::label;
use crate::tuning::Tuning;

pub mod ledger;
pub mod options;
pub mod set;
pub mod topology;

use ledger::Ledger;
use options::{Choice, Options};
use set::Set;

/// How often the processors of running containers are brought to what they are to be.
const RECONCILE: Duration = Duration::from_secs(10);

/// What an operator set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// All share all.
    #[default]
    None,
    /// Whole processors for those who ask for them.
    Static,
}

/// What a container may run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// In the kernel's words.
    pub cpus: String,
    /// Nobody else runs there.
    pub exclusive: bool,
}

/// Who has which processors. Without the static policy it has nothing to say.
pub type Cpus = Kept<Ledger>;

impl Cpus {
    /// Over the checkpoint in the agent's root directory.
    ///
    /// # Errors
    /// When the machine has not the processors that are reserved, the static policy has nothing reserved to work with, an
    /// option does not go with the rest, or its checkpoint is not of this node.
    pub fn new(root: &Path, tuning: &Tuning) -> Result<Self, String> {
        let (named, options) = (&tuning.reserved_cpus, &tuning.cpu_options);
        if tuning.cpus == Policy::None && !options.words().is_empty() {
            return Err(format!("None policy: received unsupported options={:?}", options.words()));
        }
        if tuning.cpus == Policy::None && named.is_empty() {
            return Ok(Self::default());
        }
        let topology = topology::read(Path::new(crate::numa::SYSTEM));
        let milli = tuning.kube_reserved.cpu().saturating_add(tuning.system_reserved.cpu());
        let reserved = reserved(&topology, named, milli)?;
        if tuning.cpus == Policy::None {
            return Ok(Self::default());
        }
        check(options, &topology, tuning.topology.policy)?;
        let ledger = Ledger { topology, reserved, options: options.clone(), entries: BTreeMap::new() };
        Self::open(root.join("cpu_manager_state"), ledger)
    }

    /// Where a container of a pod gets so many processors of its own that starts after those `before` it (each with whether
    /// it has ended by then). `None`: it asks for none.
    pub fn hints(&self, uid: &str, count: usize, before: &[(&str, bool)]) -> Option<Vec<Hint>> {
        self.ask(|ledger| ledger.hints(count, &ledger.left(uid, before))).filter(|_| count > 0)
    }

    /// See [`Ledger::give`]. It is on disk when [`Self::commit`] returns.
    ///
    /// # Errors
    /// When there are not enough processors, or not in the way that was chosen.
    pub fn give(
        &self,
        of: (&str, &str),
        count: usize,
        before: &[(&str, bool)],
        nodes: Option<Mask>,
    ) -> Result<bool, ledger::Error> {
        self.change(|ledger| {
            let left = ledger.left(of.0, before);
            ledger.give(of, count, &left, nodes)
        })
    }

    /// What a Linux container of a pod runs on; `None`: the policy does not say.
    pub fn share(&self, uid: &str, container: &str) -> Option<Share> {
        self.ask(|ledger| {
            let own = ledger.entries.get(uid).and_then(|c| c.get(container));
            let cpus = set::words(own.unwrap_or(&ledger.shared()));
            Share { cpus, exclusive: own.is_some() }
        })
    }
}

/// Pure: whether options go with the machine and with the topology manager's policy.
fn check(options: &Options, topology: &topology::Topology, policy: numa::Policy) -> Result<(), String> {
    if !options.has(Choice::BySocket) {
        return Ok(());
    }
    if policy == numa::Policy::SingleNumaNode {
        return Err(format!(
            "Topology manager {} policy is incompatible with CPUManager align-by-socket policy option",
            policy.word()
        ));
    }
    let count = |of: fn(&topology::Place) -> u32| topology.values().map(of).collect::<Set>().len();
    match count(|place| place.socket) > count(|place| place.node) {
        true => Err(
            "Align by socket is not compatible with hardware where number of sockets are more than number \
                     of NUMA"
                .to_owned(),
        ),
        false => Ok(()),
    }
}

/// Which processors are nobody's own: those named, or the lowest, as many as are reserved.
fn reserved(topology: &topology::Topology, named: &Set, milli: i64) -> Result<Set, String> {
    if !named.is_empty() {
        let unknown: Set = named.iter().copied().filter(|cpu| !topology.contains_key(cpu)).collect();
        return match unknown.is_empty() {
            true => Ok(named.clone()),
            false => Err(format!("this machine has no processors {}", set::words(&unknown))),
        };
    }
    if milli <= 0 {
        return Err(
            "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero".into(),
        );
    }
    let count = usize::try_from(milli.saturating_add(999) / 1000).unwrap_or(usize::MAX);
    let lowest: Set = topology.keys().copied().take(count).collect();
    if lowest.len() < count {
        Err(format!("{count} processors are reserved and there are {}", lowest.len()))
    } else {
        Ok(lowest)
    }
}

/// How many processors of its own a container is to have: a whole number of them in a pod of class Guaranteed.
pub fn whole(pod: &Pod, spec: &Container) -> Option<usize> {
    let class = pod.status.as_ref().and_then(|s| s.qos_class.as_deref());
    let asked =
        spec.resources.as_ref()?.requests.as_ref()?.get("cpu").filter(|_| class == Some("Guaranteed"))?;
    let milli = Quantity::parse(&asked.0).ok()?.milli_value();
    (milli > 0 && milli % 1000 == 0).then(|| usize::try_from(milli / 1000).ok()).flatten()
}

/// Brings running containers to the processors that they are to have, whenever those change.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    if !context.cpus.is_static() {
        return;
    }
    let mut applied: HashMap<String, String> = HashMap::new();
    loop {
        tokio::select! {
            () = context.cpus.changed() => {}
            () = tokio::time::sleep(RECONCILE) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(status) = reconcile(&context, &mut applied).await {
            tracing::warn!(message = status.message(), "processors of containers could not be looked at");
        }
    }
}

async fn reconcile(context: &Context, applied: &mut HashMap<String, String>) -> Result<(), tonic::Status> {
    let sandboxes = context.runtime.sandboxes().await?;
    let linux = |id: &str| {
        let found = sandboxes.iter().find(|s| s.id == id);
        found.and_then(|s| s.annotations.get(annotation::LINUX_CONTAINERS)).is_some_and(|v| v == "true")
    };
    let running = cri::ContainerState::ContainerRunning as i32;
    let containers = context.runtime.containers(HashMap::new()).await?;
    applied.retain(|id, _| containers.iter().any(|c| c.id == *id));
    for container in containers.iter().filter(|c| c.state == running && linux(&c.pod_sandbox_id)) {
        let of = |key: &str| container.labels.get(key).map(String::as_str).unwrap_or_default();
        let share = context.cpus.share(of(label::POD_UID), of(label::CONTAINER_NAME));
        let Some(cpus) = share.map(|share| share.cpus) else { continue };
        if applied.get(&container.id) == Some(&cpus) {
            continue;
        }
        let asked = cri::LinuxContainerResources { cpuset_cpus: cpus.clone(), ..Default::default() };
        match context.runtime.update_resources(&container.id, asked).await {
            Ok(()) => drop(applied.insert(container.id.clone(), cpus)),
            // It may have ended meanwhile; else it is tried again.
            Err(status) => tracing::debug!(container = container.id, message = status.message(), "cpuset"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_gets_whole_processors() {
        let asks = |class: &str, cpu: &str| {
            let resources =
                json!({"requests": {"cpu": cpu, "memory": "1Mi"}, "limits": {"cpu": cpu, "memory": "1Mi"}});
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": {"qosClass": class},
                "spec": {"containers": [{"name": "a", "resources": resources}]}}))
            .expect("a Pod");
            whole(&pod, &pod.spec.as_ref().expect("a spec").containers[0])
        };
        assert_eq!((asks("Guaranteed", "2"), asks("Guaranteed", "3000m")), (Some(2), Some(3)));
        assert_eq!(
            (asks("Guaranteed", "1500m"), asks("Guaranteed", "0"), asks("Burstable", "2")),
            (None, None, None)
        );
    }

    #[test]
    fn options_go_with_the_machine() {
        let place = |node, socket| topology::Place { node, socket, ..Default::default() };
        let machine =
            |places: &[topology::Place]| (0..).zip(places.iter().copied()).collect::<topology::Topology>();
        let (plain, wide) = (machine(&[place(0, 0), place(1, 1)]), machine(&[place(0, 0), place(0, 1)]));
        let socket = Options::of([Choice::BySocket]);
        assert_eq!(check(&socket, &plain, numa::Policy::Restricted), Ok(()));
        assert!(
            check(&socket, &plain, numa::Policy::SingleNumaNode).is_err_and(|w| w.contains("incompatible"))
        );
        assert!(check(&socket, &wide, numa::Policy::None).is_err_and(|w| w.contains("not compatible")));
        assert_eq!(check(&Options::default(), &wide, numa::Policy::SingleNumaNode), Ok(()));
        let cpu_options = Options::of([Choice::Strict]);
        let refused = Cpus::new(Path::new("/none"), &Tuning { cpu_options, ..Tuning::default() });
        let words = "None policy: received unsupported options={\"strict-cpu-reservation\": \"true\"}";
        assert_eq!(refused.err().as_deref(), Some(words));
    }

    #[test]
    fn what_is_reserved_is_nobodys_own() {
        let machine = (0..4).map(|cpu| (cpu, topology::Place::default())).collect();
        let none = Set::new();
        assert_eq!(reserved(&machine, &none, 1200), Ok(Set::from([0, 1])));
        assert_eq!(reserved(&machine, &Set::from([3]), 0), Ok(Set::from([3])));
        assert!(reserved(&machine, &Set::from([4]), 0).is_err() && reserved(&machine, &none, 5000).is_err());
        let words =
            "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero";
        assert_eq!(reserved(&machine, &none, 0), Err(words.into()));
    }
}
