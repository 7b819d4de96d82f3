//! Whether the node takes a pod at all: not one that would make a shortage worse, and none while it is being shut down.

use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::eviction::rank::is_critical;
use crate::eviction::thresholds::Pressure;
use crate::numa::Refusal;
use crate::pods::plan;
use crate::pods::requests::{self, Amounts};
use crate::pods::state::{Failed, Fate};
use crate::pods::steps::sandbox;
use crate::pods::sysctls;

/// How long what is in use is waited for to be known.
const SETTLED: Duration = Duration::from_secs(5);
const TAINT: &str = "node.kubernetes.io/memory-pressure";

/// Pure: why a new pod is not taken, reason and words.
fn rejected(pod: &Pod, pressure: Pressure, shutting_down: bool) -> Option<(&'static str, String)> {
    if shutting_down {
        return Some(("NodeShutdown", "Pod was rejected as the node is shutting down.".to_owned()));
    }
    if pressure == Pressure::default() || is_critical(pod) {
        return None;
    }
    let only_memory = pressure == Pressure { memory: true, ..Default::default() };
    let best_effort = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) == Some("BestEffort");
    let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
    let tolerates = tolerations.into_iter().any(|t| {
        t.key.as_deref().is_none_or(|key| key == TAINT)
            && t.effect.as_deref().is_none_or(|e| e == "NoSchedule")
    });
    if only_memory && (!best_effort || tolerates) {
        return None;
    }
    let names = pressure.names().join(" ");
    Some(("Evicted", format!("Pod was rejected: The node had condition: [{names}]. ")))
}

/// Pure: why a pod is not taken by a node that gives its containers other groups than it names.
fn other_groups(pod: &Pod, strict: bool) -> Option<(&'static str, String)> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    let asked = context.supplemental_groups_policy.as_deref() == Some("Strict");
    (asked && !strict).then(|| {
        let words = "Pod was rejected: SupplementalGroupsPolicy=Strict is not supported in this node";
        ("SupplementalGroupsPolicyNotSupported", words.to_owned())
    })
}

impl Worker {
    /// Decides once, before anything of the pod is there. A pod that began before an agent's restart was taken. False:
    /// that cannot be decided yet.
    pub(super) async fn admit(&mut self) -> bool {
        if self.memory.admitted || self.fate != Fate::Runs {
            return true;
        }
        self.memory.admitted = true;
        let statuses = self
            .pod
            .status
            .iter()
            .flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
        let began = statuses.into_iter().any(|s| s.container_id.is_some());
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let ended = plan::ended(self.input());
        let asked = requests::of_pod(&self.pod);
        if began || ended || !self.state.sandboxes.is_empty() {
            self.pods.take(&uid, asked, |_, _| !ended);
            if !ended {
                self.complete().await;
            }
            return true;
        }
        let shutting_down = self.context.shutting_down.load(Ordering::Relaxed);
        let pressure = *self.context.pressure.borrow();
        let strict = !self.context.runs_linux() || self.context.strict_groups.load(Ordering::Relaxed);
        let mut refused = rejected(&self.pod, pressure, shutting_down)
            .or_else(|| sysctls::forbidden(&self.pod, &self.context.tuning.sysctls))
            .or_else(|| other_groups(&self.pod, strict));
        if refused.is_none() {
            let (capacity, most) = (self.context.allocatable, self.context.max_pods);
            self.pods.take(&uid, asked, |used, count| {
                refused = no_room(asked, used, capacity, count, most);
                refused.is_none()
            });
        }
        if refused.is_none() && self.place().await.is_err() {
            // What pods have that left meanwhile may not be free again yet.
            if !self.pods.settled(SETTLED).await {
                self.memory.admitted = false;
                return false;
            }
            refused = self.place().await.err().map(|refusal| (refusal.reason, refusal.message));
        }
        if let Some((reason, message)) = refused {
            self.reject(reason, message);
        }
        true
    }

    /// The node does not take the pod.
    pub(super) fn reject(&mut self, reason: &'static str, message: String) {
        self.context.recorder.pod(&self.pod, None, true, reason, message.clone());
        self.memory.failed = Some(Failed { reason: reason.to_owned(), message, ..Default::default() });
    }

    /// Gives it processors, memory and devices where the node's policies say so. What its containers are has to be known
    /// for that: where it is not, that is done when their images are here.
    async fn place(&mut self) -> Result<(), Refusal> {
        let context = self.context.clone();
        if !context.placement.decides() {
            return Ok(());
        }
        match sandbox::linux_containers(&context, &self.pod).await {
            Some(linux) => context.placement.place(&self.pod, &linux).await,
            None => {
                self.memory.unplaced = true;
                Ok(())
            }
        }
    }

    async fn complete(&self) {
        if self.context.placement.decides()
            && let Some(linux) = sandbox::linux_containers(&self.context, &self.pod).await
        {
            let done = plan::done(self.input());
            self.context.placement.complete(&self.pod, &linux, &done).await;
        }
    }
}

/// Pure: what there is not enough of, reason and words.
fn no_room(
    asked: Amounts,
    used: Amounts,
    capacity: Amounts,
    count: usize,
    most: u32,
) -> Option<(&'static str, String)> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let (resource, asked, used, capacity) = if count >= i64::from(most) {
        ("pods", 1, count, i64::from(most))
    } else {
        requests::lacking(asked, used, capacity)?
    };
    let reason = match resource {
        "pods" => "OutOfpods",
        "cpu" => "OutOfcpu",
        "memory" => "OutOfmemory",
        _ => "OutOfephemeral-storage",
    };
    let words = format!(
        "Pod was rejected: Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {capacity}"
    );
    Some((reason, words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_is_taken() {
        let pod = |qos: &str, spec: Value| -> Pod {
            let mut all = json!({"containers": []});
            if let (Some(all), Some(more)) = (all.as_object_mut(), spec.as_object()) {
                all.extend(more.clone());
            }
            serde_json::from_value(json!({"metadata": {}, "spec": all, "status": {"qosClass": qos}}))
                .expect("a Pod")
        };
        let memory = Pressure { memory: true, ..Default::default() };
        let disk = Pressure { disk: true, ..Default::default() };
        let plain = pod("BestEffort", json!({}));
        let taken = |pod: &Pod, pressure| rejected(pod, pressure, false).is_none();
        assert!(taken(&plain, Pressure::default()));
        assert!(!taken(&plain, memory) && !taken(&plain, disk));
        assert!(taken(&pod("Burstable", json!({})), memory) && !taken(&pod("Burstable", json!({})), disk));
        assert!(taken(
            &pod("BestEffort", json!({"tolerations": [{"key": TAINT, "operator": "Exists"}]})),
            memory
        ));
        assert!(taken(&pod("BestEffort", json!({"priority": 2_000_000_000})), disk));
        let (reason, words) = rejected(&plain, disk, false).expect("refused");
        assert_eq!(
            (reason, words.as_str()),
            ("Evicted", "Pod was rejected: The node had condition: [DiskPressure]. ")
        );
        let (reason, words) = no_room([3000, 0, 0], [500, 0, 0], [2000, 1, 1], 0, 10).expect("refused");
        let expected = "Pod was rejected: Node didn't have enough resource: cpu, requested: 3000, used: 500, capacity: 2000";
        assert_eq!((reason, words.as_str()), ("OutOfcpu", expected));
        assert_eq!(no_room([0; 3], [0; 3], [0; 3], 10, 10).map(|r| r.0), Some("OutOfpods"));
        assert_eq!(rejected(&plain, Pressure::default(), true).map(|r| r.0), Some("NodeShutdown"));
    }
}
