//! Processors of their own for containers that ask for whole ones in pods of class Guaranteed: the kubelet's static CPU
//! manager policy. All other Linux containers share the rest. Wasm containers share their host's threads, whatever they
//! ask for.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_api::quantity::Quantity;
use coracle_cri_api::{annotation, v1 as cri};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::numa::hints::{Hint, Mask};
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
    /// Not written down yet.
    dirty: AtomicBool,
    changed: Notify,
}

/// What containers of a pod have, by their names.
type Held = BTreeMap<String, Set>;

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
        let topology = topology::read(Path::new(crate::numa::SYSTEM));
        let milli = tuning.kube_reserved.cpu().saturating_add(tuning.system_reserved.cpu());
        let reserved = reserved(&topology, named, milli)?;
        if tuning.cpus == Policy::None {
            return Ok(Self(None));
        }
        let mut ledger = Ledger { topology, reserved, entries: BTreeMap::new() };
        let path = root.join("cpu_manager_state");
        ledger.read(&path)?;
        ledger.write(&path).map_err(|e| format!("write {}: {e}", path.display()))?;
        Ok(Self::over(path, ledger))
    }

    /// Over a ledger that is written to `path`.
    pub fn over(path: PathBuf, ledger: Ledger) -> Self {
        let (ledger, changed) = (Mutex::new(ledger), Notify::new());
        Self(Some(Arc::new(Inner { path, ledger, dirty: AtomicBool::new(false), changed })))
    }

    /// Whether the static policy is on.
    pub fn is_static(&self) -> bool {
        self.0.is_some()
    }

    /// Where a container of a pod gets so many processors of its own that starts after those `before` it (each with whether
    /// it has ended by then). `None`: it asks for none.
    pub fn hints(&self, uid: &str, count: usize, before: &[(&str, bool)]) -> Option<Vec<Hint>> {
        let ledger = self.0.as_ref().filter(|_| count > 0)?.ledger.lock();
        Some(ledger.hints(count, &ledger.left(uid, before)))
    }

    /// See [`Ledger::give`]. It is on disk when [`Self::commit`] returns.
    ///
    /// # Errors
    /// When there are not enough processors.
    pub fn give(
        &self,
        of: (&str, &str),
        count: usize,
        before: &[(&str, bool)],
        nodes: Option<Mask>,
    ) -> Result<bool, String> {
        let Some(inner) = &self.0 else { return Ok(false) };
        let mut ledger = inner.ledger.lock();
        let left = ledger.left(of.0, before);
        let changed = ledger.give(of, count, &left, nodes)?;
        inner.dirty.fetch_or(changed, Ordering::Relaxed);
        Ok(changed)
    }

    /// Writes down who has what, where that has changed.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn commit(&self) -> Result<(), String> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let ledger = inner.ledger.lock();
        if inner.dirty.load(Ordering::Relaxed) {
            ledger.write(&inner.path).map_err(|e| format!("write {}: {e}", inner.path.display()))?;
            inner.dirty.store(false, Ordering::Relaxed);
            inner.changed.notify_one();
        }
        Ok(())
    }

    /// What a pod has.
    pub fn held(&self, uid: &str) -> Option<Held> {
        self.0.as_ref()?.ledger.lock().entries.get(uid).cloned()
    }

    /// Puts back what a pod had.
    pub fn restore(&self, uid: &str, before: Option<Held>) {
        let Some(inner) = &self.0 else { return };
        let mut ledger = inner.ledger.lock();
        let has = match before.clone() {
            Some(before) => ledger.entries.insert(uid.to_owned(), before),
            None => ledger.entries.remove(uid),
        };
        inner.dirty.fetch_or(has != before, Ordering::Relaxed);
    }

    /// What a Linux container of a pod runs on; `None`: the policy does not say.
    pub fn share(&self, uid: &str, container: &str) -> Option<Share> {
        let ledger = self.0.as_ref()?.ledger.lock();
        let own = ledger.entries.get(uid).and_then(|c| c.get(container));
        let cpus = set::words(own.unwrap_or(&ledger.shared()));
        Some(Share { cpus, exclusive: own.is_some() })
    }

    /// Whether a container has processors of its own.
    pub fn has_own(&self, uid: &str, container: &str) -> bool {
        let Some(inner) = &self.0 else { return false };
        inner.ledger.lock().entries.get(uid).is_some_and(|c| c.contains_key(container))
    }

    /// Takes back what pods and containers have that are not to be kept.
    pub fn retain(&self, keep: impl Fn(&str, &str) -> bool) {
        let Some(inner) = &self.0 else { return };
        let changed = inner.ledger.lock().retain(keep);
        inner.dirty.fetch_or(changed, Ordering::Relaxed);
        // Written late at worst: what is given next is written with it.
        if changed && let Err(error) = self.commit() {
            tracing::warn!(error, "the CPU manager's checkpoint could not be written");
        }
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
