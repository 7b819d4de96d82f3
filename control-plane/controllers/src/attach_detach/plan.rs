//! From the volumes that a node's pods use to what is attached and detached. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::view::{Meta, Node, Pod, VolumeAttachment, condition};

/// How long a volume that may still be mounted waits for a node that is not healthy.
pub const LONGEST_WAIT: Duration = Duration::from_secs(360);
/// The taint of a node of which somebody says that it is off for good.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that pods of a node use.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The PersistentVolume.
    pub volume: String,
    pub driver: String,
    pub handle: String,
    /// Only one node may have it.
    pub exclusive: bool,
    /// Who uses it.
    pub pods: Vec<Arc<Pod>>,
}

impl Wanted {
    /// The name of its attachment to a node: what kubelets look for.
    pub fn attachment(&self, node: &str) -> String {
        let sum = Sha256::digest(format!("{}{}{node}", self.handle, self.driver));
        format!("csi-{}", hex::encode(sum))
    }
}

/// The name of a volume in a node's status.
pub fn unique(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// An attachment to the node.
#[derive(Clone, Debug)]
pub struct Held {
    pub object: Arc<VolumeAttachment>,
    /// The name of its volume in the node's status; None where the volume is gone.
    pub unique: Option<String>,
    /// Since when nobody wants it.
    pub unwanted: Duration,
}

/// A node, as it is judged.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    /// Names of volumes that it may have mounted; None: nobody can tell.
    pub in_use: Option<HashSet<String>>,
    pub healthy: bool,
    pub out_of_service: bool,
}

impl NodeState {
    /// What a node says of itself; None is one that is gone.
    pub fn of(node: Option<&Node>) -> Self {
        let Some(node) = node else { return Self::default() };
        Self {
            in_use: Some(node.status.volumes_in_use.iter().cloned().collect()),
            healthy: condition(&node.status.conditions, "Ready").is_some_and(|c| c.status == "True"),
            out_of_service: node.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE),
        }
    }

    /// How long until this volume may be detached; zero is now, None waits for the node.
    pub fn wait(&self, unique: Option<&str>, unwanted: Duration) -> Option<Duration> {
        let mounted = self.in_use.as_ref().is_none_or(|used| unique.is_some_and(|u| used.contains(u)));
        match mounted && !self.out_of_service {
            false => Some(Duration::ZERO),
            true if self.healthy => None,
            true => Some(LONGEST_WAIT.saturating_sub(unwanted)),
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make an attachment for this volume.
    Attach { name: String, volume: String, driver: String },
    /// It is attached to another node only: tell these pods (namespace/name) so.
    Refuse { volume: String, users: Vec<String> },
    /// Delete an attachment.
    Detach { name: String, uid: String, forced: bool },
    /// Look again then.
    Again(Duration),
}

/// The plan for a node. `elsewhere` says who uses a volume on the other nodes that it is attached to; None: it is attached to
/// none.
pub fn plan(
    node: &str,
    state: &NodeState,
    wanted: &[Wanted],
    held: &[Held],
    elsewhere: impl Fn(&str) -> Option<Vec<String>>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for volume in wanted {
        let name = volume.attachment(node);
        if held.iter().any(|h| h.object.name() == name) {
            continue;
        }
        match elsewhere(&volume.volume).filter(|_| volume.exclusive) {
            Some(users) => actions.push(Action::Refuse { volume: volume.volume.clone(), users }),
            None => actions.push(Action::Attach {
                name,
                volume: volume.volume.clone(),
                driver: volume.driver.clone(),
            }),
        }
    }
    for one in held {
        let is_wanted = wanted.iter().any(|w| w.attachment(node) == one.object.name());
        if is_wanted || one.object.is_terminating() {
            continue;
        }
        match state.wait(one.unique.as_deref(), one.unwanted) {
            Some(Duration::ZERO) => actions.push(Action::Detach {
                name: one.object.name().to_owned(),
                uid: one.object.uid().to_owned(),
                forced: state.wait(one.unique.as_deref(), Duration::ZERO) != Some(Duration::ZERO)
                    || state.out_of_service,
            }),
            Some(left) => actions.push(Action::Again(left)),
            None => {}
        }
    }
    actions
}

/// Whether a pod still holds its volumes.
pub fn uses(pod: &Pod) -> bool {
    let statuses = &pod.status.container_statuses;
    let ended = !statuses.is_empty() && statuses.iter().all(|c| c.state.terminated.is_some());
    let gone = pod.is_finished() || (pod.is_terminating() && ended);
    !gone
}
