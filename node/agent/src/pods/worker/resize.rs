//! In-place resize: other limits for containers that run (`pods/resize`).

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container as Spec, ResourceRequirements};

use super::Worker;
use crate::pods::plan::Ending;
use crate::pods::requests;
use crate::pods::state::{Fate, Phase, Together, Unresized, find_container, grace_seconds};
use crate::pods::status::containers::old_status;
use crate::pods::steps::config::resources;

impl Worker {
    /// Gives running containers the resources that their specs have now: in place, or by a restart where `resizePolicy`
    /// asks for one. What the node has no room for waits, what it can never have and what the runtime refuses is told; what
    /// the container has stays. True: a container was ended for it.
    pub(super) async fn resize(&mut self) -> anyhow::Result<bool> {
        if self.fate != Fate::Runs {
            return Ok(false);
        }
        let running = self.state.containers.iter().filter(|c| c.phase == Phase::Running);
        let running: Vec<(String, String)> = running.map(|c| (c.id.clone(), c.name.clone())).collect();
        self.memory.resources.retain(|id, _| running.iter().any(|(other, _)| other == id));
        let whole = self.is_resized_as_a_whole();
        let (mut changes, mut others) = (Vec::new(), BTreeMap::new());
        for (id, name) in running {
            let Some(spec) = find_container(&self.pod, &name) else { continue };
            let wanted = spec.resources.clone().unwrap_or_default();
            let has = match self.memory.resources.get(&id) {
                Some(has) => has.clone(),
                None => self.told(&name, &id).unwrap_or_else(|| wanted.clone()),
            };
            self.memory.resources.insert(id.clone(), has.clone());
            if has != wanted {
                changes.push((id, spec, has, wanted));
            } else {
                others.insert(id, spec);
            }
        }
        heirs(&mut self.memory.heirs, whole, &others);
        others.retain(|id, _| self.memory.heirs.contains(id));
        if changes.is_empty() && others.is_empty() && !whole {
            // A sandbox of before the agent's restart may have others.
            if self.limit_together(false).await {
                self.memory.unresized = None;
            }
            return Ok(false);
        }
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let own = |has: &dyn Fn(&str) -> bool| changes.iter().any(|(_, spec, ..)| has(&spec.name));
        let manager = if own(&|name| self.context.cpus.has_own(&uid, name)) {
            Some("CPU")
        } else if own(&|name| self.context.memory.has_own(&uid, name)) {
            Some("Memory")
        } else {
            None
        };
        if let Some(manager) = manager {
            let words =
                format!("Resize is infeasible for Guaranteed Pods alongside {manager} Manager static policy");
            self.unresized("Infeasible", "ResizeInfeasible", words, None);
            return Ok(false);
        }
        if !self.has_room() || !self.limit_together(true).await {
            return Ok(false);
        }
        let (mut restarts, mut all) = (Vec::new(), true);
        for (id, spec) in others {
            all &= self.inherit(id, &spec).await;
        }
        for (id, spec, has, wanted) in changes {
            if needs_restart(&spec, &has, &wanted) {
                let why = format!("Container {} resize requires restart", spec.name);
                let grace = grace_seconds(&self.pod, self.fate);
                restarts.push(Ending { id, name: spec.name.clone(), why, grace, turn: 0, replaces: true });
            } else {
                all &= self.apply(id, &spec, wanted).await;
            }
        }
        // What is to be restarted has its old limits still.
        if all && (!restarts.is_empty() || self.limit_together(false).await) {
            self.memory.unresized = None;
        }
        if restarts.is_empty() {
            return Ok(false);
        }
        self.stop(restarts).await?;
        Ok(true)
    }

    /// Whether the node has room for what the pod asks for now.
    fn has_room(&mut self) -> bool {
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let (asked, capacity) = (requests::of_pod(&self.pod), self.context.allocatable);
        if let Some((resource, asked, _, capacity)) = requests::lacking(asked, [0; 3], capacity) {
            let words = format!(
                "Node didn't have enough capacity: {resource}, requested: {asked}, capacity: {capacity}"
            );
            self.unresized("Infeasible", "ResizeInfeasible", words, None);
            return false;
        }
        let mut lacks = None;
        self.pods.take(&uid, asked, |used, _| {
            lacks = requests::lacking(asked, used, capacity);
            lacks.is_none()
        });
        let Some((resource, asked, used, capacity)) = lacks else { return true };
        let words = format!(
            "Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {capacity}"
        );
        self.unresized("Deferred", "ResizeDeferred", words, None);
        false
    }

    /// Gives one container its resources; false: it has not got them, which is told.
    async fn apply(&mut self, id: String, spec: &Spec, wanted: ResourceRequirements) -> bool {
        let before = self.memory.unresized.as_ref().and_then(|u| u.refused.as_ref());
        if before == Some(&wanted) {
            return false;
        }
        let asked = match resources::container(&self.pod, spec, self.context.machine_memory) {
            Ok(limits) => self.context.runtime.update_resources(&id, limits).await,
            Err(words) => Err(tonic::Status::invalid_argument(words)),
        };
        match asked {
            Ok(()) => {
                self.memory.resources.insert(id, wanted);
                let words = format!("container {} has its new resources", spec.name);
                self.context.recorder.pod(&self.pod, Some(&spec.name), false, "ResizeCompleted", words);
                return true;
            }
            Err(status) if never(&status) => {
                let words = status.message().to_owned();
                self.unresized("Infeasible", "ResizeInfeasible", words, Some(wanted));
            }
            Err(status) => {
                let words = status.message().to_owned();
                self.unresized("Error", "ResizeError", words, None);
            }
        }
        false
    }

    /// What the pod's Linux containers may use together by its spec; `None`: it has none.
    fn together(&self) -> Option<(String, Together)> {
        let sandbox = self.state.sandbox().filter(|s| s.linux && s.ready)?;
        let resources = resources::sandbox(&self.pod, self.context.has_own_cpus(&self.pod));
        Some((sandbox.id.clone(), [Some(resources), resources::overhead(&self.pod)]))
    }

    fn has_together(&self, sandbox: &str) -> Option<&Together> {
        self.memory.limited.as_ref().filter(|(id, _)| id == sandbox).map(|(_, has)| has)
    }

    fn is_resized_as_a_whole(&self) -> bool {
        let Some((sandbox, wanted)) = self.together() else { return false };
        self.has_together(&sandbox).is_some_and(|has| *has != wanted)
    }

    /// Gives the sandbox what the pod's containers may use together, or, while they change, room for what they had too.
    /// False: it has not got that, which is told.
    async fn limit_together(&mut self, wide: bool) -> bool {
        let Some((sandbox, mut wanted)) = self.together() else { return true };
        if wide && let [Some(resources), _] = &mut wanted {
            let has = self.has_together(&sandbox).and_then(|[has, _]| has.clone()).unwrap_or_default();
            *resources = resources::wider(&has, resources);
        }
        if self.has_together(&sandbox) == Some(&wanted) {
            return true;
        }
        match self.context.runtime.update_sandbox(&sandbox, wanted.clone()).await {
            Ok(()) => {
                self.memory.limited = Some((sandbox, wanted));
                true
            }
            Err(status) => {
                self.unresized("Error", "ResizeError", status.message().to_owned(), None);
                false
            }
        }
    }

    /// Gives a container the limits of its pod where it has none of its own; false: it has not got them, which is told.
    async fn inherit(&mut self, id: String, spec: &Spec) -> bool {
        let asked = match resources::container(&self.pod, spec, self.context.machine_memory) {
            Ok(limits) => self.context.runtime.update_resources(&id, limits).await,
            Err(words) => Err(tonic::Status::invalid_argument(words)),
        };
        let Err(status) = asked else {
            self.memory.heirs.remove(&id);
            return true;
        };
        let (reason, event) =
            if never(&status) { ("Infeasible", "ResizeInfeasible") } else { ("Error", "ResizeError") };
        self.unresized(reason, event, status.message().to_owned(), None);
        false
    }

    /// Remembers what keeps the pod from its resources, and tells it once.
    fn unresized(
        &mut self,
        reason: &'static str,
        event: &'static str,
        message: String,
        refused: Option<ResourceRequirements>,
    ) {
        let unresized = Unresized { reason, message, refused };
        let before = self.memory.unresized.as_ref();
        // What fails is tried again and again, and may have other numbers to tell each time.
        if before.is_none_or(|before| before.reason != reason || (reason != "Error" && *before != unresized))
        {
            self.context.recorder.pod(&self.pod, None, true, event, unresized.message.clone());
        }
        self.memory.unresized = Some(unresized);
    }

    /// What the API last had as the resources of this very container: those of before the agent was restarted.
    fn told(&self, name: &str, id: &str) -> Option<ResourceRequirements> {
        let old = old_status(self.input(), name)?;
        let same = old.container_id.as_deref().is_some_and(|of| of.rsplit('/').next() == Some(id));
        old.resources.clone().filter(|_| same)
    }
}

/// Pure: of the containers that keep their own resources, which are to have other limits of their pod: all where those
/// change, and who has not got them since.
fn heirs<T>(left: &mut BTreeSet<String>, whole: bool, unchanged: &BTreeMap<String, T>) {
    left.retain(|id| unchanged.contains_key(id));
    if whole {
        left.extend(unchanged.keys().cloned());
    }
}

/// Pure: whether a runtime that answers so will never do it.
fn never(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::Unimplemented | tonic::Code::InvalidArgument)
}

/// Pure: whether a container has to start anew for these resources.
fn needs_restart(spec: &Spec, has: &ResourceRequirements, wanted: &ResourceRequirements) -> bool {
    let changes = |name: &str| {
        let of = |r: &ResourceRequirements| {
            let get = |list: &Option<BTreeMap<String, _>>| list.as_ref().and_then(|l| l.get(name).cloned());
            (get(&r.requests), get(&r.limits))
        };
        of(has) != of(wanted)
    };
    let policies = spec.resize_policy.iter().flatten();
    policies.into_iter().any(|p| p.restart_policy == "RestartContainer" && changes(&p.resource_name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_restart_only_where_the_policy_asks() {
        let resources = |cpu: &str, memory: &str| -> ResourceRequirements {
            serde_json::from_value(json!({"limits": {"cpu": cpu, "memory": memory}})).expect("resources")
        };
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"},
            {"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
        let spec: Spec =
            serde_json::from_value(json!({"name": "a", "resizePolicy": policy})).expect("a container");
        assert!(needs_restart(&spec, &resources("1", "1Gi"), &resources("1", "2Gi")));
        assert!(!needs_restart(&spec, &resources("1", "1Gi"), &resources("2", "1Gi")));
    }

    #[test]
    fn who_has_not_got_the_limits_of_its_pod_is_still_to_get_them() {
        let unchanged =
            |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), ())).collect::<BTreeMap<_, _>>();
        let mut left = BTreeSet::new();
        heirs(&mut left, false, &unchanged(&["a", "b"]));
        assert!(left.is_empty(), "nothing changes");
        heirs(&mut left, true, &unchanged(&["a", "b", "c"]));
        left.remove("a");
        // The sandbox has its limits now; one container's were refused, one ended.
        heirs(&mut left, false, &unchanged(&["a", "b"]));
        assert_eq!(left, ["b".to_owned()].into());
    }
}
