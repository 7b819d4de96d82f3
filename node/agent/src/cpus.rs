//! Processors of their own for containers that ask for whole ones in pods of class Guaranteed: the kubelet's static CPU
//! manager policy. All other Linux containers share the rest. Wasm containers share their host's threads, whatever they
//! ask for.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_api::quantity::Quantity;
use coracle_cri_api::{annotation, v1 as cri};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::pods::state::{init_containers, is_sidecar, main_containers};
use crate::runtime::label;
use crate::tuning::Tuning;

pub mod ledger;
pub mod set;
pub mod topology;

use ledger::Ledger;
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
#[derive(Clone, Default)]
pub struct Cpus(Option<Arc<Inner>>);

struct Inner {
    path: PathBuf,
    ledger: Mutex<Ledger>,
    changed: Notify,
}

impl Cpus {
    /// Over the checkpoint in the agent's root directory.
    ///
    /// # Errors
    /// When the machine has not the processors that are reserved, the static policy has nothing reserved to work with, or
    /// its checkpoint is not of this node.
    pub fn open(root: &Path, tuning: &Tuning) -> Result<Self, String> {
        let named = &tuning.reserved_cpus;
        if tuning.cpus == Policy::None && named.is_empty() {
            return Ok(Self(None));
        }
        let topology = topology::read(Path::new("/sys/devices/system"));
        let milli = tuning.kube_reserved.cpu().saturating_add(tuning.system_reserved.cpu());
        let reserved = reserved(&topology, named, milli)?;
        if tuning.cpus == Policy::None {
            return Ok(Self(None));
        }
        let mut ledger = Ledger { topology, reserved, entries: BTreeMap::new() };
        let path = root.join("cpu_manager_state");
        ledger.read(&path)?;
        ledger.write(&path).map_err(|e| format!("write {}: {e}", path.display()))?;
        Ok(Self(Some(Arc::new(Inner { path, ledger: Mutex::new(ledger), changed: Notify::new() }))))
    }

    /// What a Linux container of a pod runs on; `None`: the policy does not say.
    ///
    /// # Errors
    /// When there are not enough processors, or the checkpoint cannot be written.
    pub fn share(&self, pod: &Pod, spec: &Container) -> Result<Option<Share>, String> {
        let Some(inner) = &self.0 else { return Ok(None) };
        let mut ledger = inner.ledger.lock();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let old = ledger.clone();
        if ledger.give(uid, &spec.name, whole(pod, spec).unwrap_or(0), &apart(pod, &spec.name))? {
            if let Err(error) = ledger.write(&inner.path) {
                *ledger = old;
                return Err(format!("write {}: {error}", inner.path.display()));
            }
            inner.changed.notify_one();
        }
        let own = ledger.entries.get(uid).and_then(|c| c.get(&spec.name));
        let cpus = set::words(own.unwrap_or(&ledger.shared()));
        Ok(Some(Share { cpus, exclusive: own.is_some() }))
    }

    /// Whether a container has processors of its own.
    pub fn has_own(&self, uid: &str, container: &str) -> bool {
        let Some(inner) = &self.0 else { return false };
        inner.ledger.lock().entries.get(uid).is_some_and(|c| c.contains_key(container))
    }

    /// Takes back what pods have that are gone.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let Some(inner) = &self.0 else { return };
        let mut ledger = inner.ledger.lock();
        if ledger.retain(keep) {
            // Written late at worst: what is given next is written with it.
            if let Err(error) = ledger.write(&inner.path) {
                tracing::warn!(%error, path = %inner.path.display(), "the CPU manager's checkpoint could not be written");
            }
            inner.changed.notify_one();
        }
    }

    fn wanted(&self, uid: &str, container: &str) -> Option<String> {
        let ledger = self.0.as_ref()?.ledger.lock();
        let own = ledger.entries.get(uid).and_then(|c| c.get(container)).cloned();
        Some(set::words(&own.unwrap_or_else(|| ledger.shared())))
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
fn whole(pod: &Pod, spec: &Container) -> Option<usize> {
    let class = pod.status.as_ref().and_then(|s| s.qos_class.as_deref());
    let asked =
        spec.resources.as_ref()?.requests.as_ref()?.get("cpu").filter(|_| class == Some("Guaranteed"))?;
    let milli = Quantity::parse(&asked.0).ok()?.milli_value();
    (milli > 0 && milli % 1000 == 0).then(|| usize::try_from(milli / 1000).ok()).flatten()
}

/// The containers of a pod that never run while this one does: an init container that is no sidecar has ended before
/// anything that comes after it begins.
fn apart<'a>(pod: &'a Pod, name: &str) -> Vec<&'a str> {
    let inits = init_containers(pod).iter().map(|c| (c.name.as_str(), !is_sidecar(c)));
    let order: Vec<(&str, bool)> =
        inits.chain(main_containers(pod).iter().map(|c| (c.name.as_str(), false))).collect();
    let mut rest = order.iter().skip_while(|(other, _)| *other != name);
    let Some((_, ends)) = rest.next() else { return Vec::new() };
    let before = order.iter().take_while(|(other, _)| *other != name).filter(|(_, ends)| *ends);
    before.chain(rest.filter(|_| *ends)).map(|(other, _)| *other).collect()
}

/// Brings running containers to the processors that they are to have, whenever those change.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let Some(inner) = context.cpus.0.clone() else { return };
    let mut applied: HashMap<String, String> = HashMap::new();
    loop {
        tokio::select! {
            () = inner.changed.notified() => {}
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
        let Some(cpus) = context.cpus.wanted(of(label::POD_UID), of(label::CONTAINER_NAME)) else { continue };
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
    fn who_never_runs_beside_whom() {
        let init = |name: &str| json!({"name": name});
        let sidecar = |name: &str| json!({"name": name, "restartPolicy": "Always"});
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "m"}, {"name": "n"}],
            "initContainers": [init("a"), sidecar("s"), init("b"), sidecar("t")]}}))
        .expect("a Pod");
        let apart = |name: &str| apart(&pod, name).join("");
        assert_eq!([apart("a"), apart("s"), apart("b")], ["sbtmn", "a", "atmn"]);
        assert_eq!([apart("t"), apart("m"), apart("n")], ["ab", "ab", "ab"]);
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
