//! From a Deployment, its ReplicaSets and pods to what must be done. Pure.
//!
//! The order is Kubernetes': a paused or rescaled Deployment only scales; otherwise the strategy moves pods from old to new;
//! a finished one loses its oldest history; the status is always brought up to date, last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    DESIRED, MAX, POD_TEMPLATE_HASH, REVISION, REVISION_HISTORY, conditions, hash, limits, rolling, scaling,
};
use crate::ownership::controller_reference;
use crate::view::{Deployment, DeploymentStatus, Meta, Pod, ReplicaSet};

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create the ReplicaSet of the present template: its whole JSON.
    Create { name: String, replicas: i64, body: Box<Value> },
    /// Set a ReplicaSet's replicas and note the Deployment's size on it.
    Scale { name: String, from: i64, to: i64, annotations: BTreeMap<String, String> },
    /// Change a ReplicaSet's annotations or `minReadySeconds` only.
    Amend { name: String, body: Value },
    /// Delete a ReplicaSet that is beyond the history limit.
    Delete { name: String, uid: String },
    /// Note the revision on the Deployment.
    Revision(i64),
    /// Write the status.
    Status(Box<DeploymentStatus>),
}

/// Everything that a plan depends on.
pub struct State<'a> {
    pub deployment: &'a Deployment,
    /// ReplicaSets that it owns.
    pub sets: &'a [Arc<ReplicaSet>],
    /// Pods of those ReplicaSets.
    pub pods: &'a [Arc<Pod>],
    pub now: Timestamp,
}

/// A plan in the making: actions, and the ReplicaSets as they will be after them.
pub struct Draft<'a> {
    pub d: &'a Deployment,
    /// The ReplicaSet of the present template.
    pub new: Option<ReplicaSet>,
    /// The others, oldest first.
    pub old: Vec<ReplicaSet>,
    pub actions: Vec<Action>,
    pub status: DeploymentStatus,
    pub now: Timestamp,
}

/// The actions, in order, and when to look again although nothing changed.
pub fn plan(state: &State<'_>) -> (Vec<Action>, Option<Duration>) {
    let d = state.deployment;
    let mut draft = Draft::new(state);
    if d.is_terminating() {
        draft.write_status();
        return (draft.actions, None);
    }
    conditions::paused(d, &mut draft.status, state.now);
    if d.spec.paused || draft.is_scaling_event() {
        draft.note_revision(false);
        scaling::scale(&mut draft);
        if d.spec.paused {
            draft.clean_up();
        }
        draft.write_status();
        return (draft.actions, None);
    }
    if d.recreates() {
        rolling::recreate(&mut draft, state.pods);
    } else {
        rolling::roll(&mut draft);
    }
    if conditions::complete(d, &draft.totals()) {
        draft.clean_up();
    }
    let again = conditions::progress(&mut draft);
    draft.write_status();
    (draft.actions, again)
}

impl<'a> Draft<'a> {
    fn new(state: &State<'a>) -> Self {
        let d = state.deployment;
        let mut sets: Vec<ReplicaSet> = state.sets.iter().map(|rs| rs.as_ref().clone()).collect();
        sets.sort_by(|a, b| a.created().cmp(&b.created()).then_with(|| a.name().cmp(b.name())));
        let new = sets
            .iter()
            .position(|rs| !rs.is_terminating() && hash::same(&rs.spec.template, &d.spec.template));
        let new = new.map(|i| sets.remove(i));
        Self { d, new, old: sets, actions: Vec::new(), status: d.status.clone(), now: state.now }
    }

    /// All ReplicaSets, the new one last.
    pub fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(self.new.iter())
    }

    /// Wanted pods of all ReplicaSets together.
    pub fn wanted(&self) -> i64 {
        self.all().map(ReplicaSet::replicas).sum()
    }

    /// Available pods of all ReplicaSets together.
    pub fn available(&self) -> i64 {
        self.all().map(|rs| rs.status.available_replicas).sum()
    }

    // Somebody changed spec.replicas since a ReplicaSet with pods was last scaled.
    fn is_scaling_event(&self) -> bool {
        let desired = |rs: &ReplicaSet| rs.annotation(DESIRED).and_then(|a| a.parse::<i64>().ok());
        self.all()
            .filter(|rs| rs.replicas() > 0)
            .filter_map(desired)
            .any(|desired| desired != self.d.replicas())
    }

    /// The annotations that note the Deployment's size on a ReplicaSet.
    pub fn size_annotations(&self) -> BTreeMap<String, String> {
        let max = self.d.replicas() + limits::max_surge(self.d);
        [(DESIRED.to_string(), self.d.replicas().to_string()), (MAX.to_string(), max.to_string())].into()
    }

    /// Gives the new ReplicaSet the next revision and the Deployment's annotations; creates it if asked and absent.
    pub fn note_revision(&mut self, create: bool) {
        let last =
            self.old.iter().filter_map(|rs| rs.annotation(REVISION)?.parse::<i64>().ok()).max().unwrap_or(0);
        if let Some(new) = &mut self.new {
            let revision = amend_new(self.d, new, last + 1, &mut self.actions);
            if self.d.annotation(REVISION) != Some(revision.to_string().as_str())
                && !self.actions.contains(&Action::Revision(revision))
            {
                self.actions.push(Action::Revision(revision));
            }
            conditions::found(self.d, &mut self.status, new.name(), self.now);
        } else if create {
            self.create_new(last + 1);
        }
    }

    fn create_new(&mut self, revision: i64) {
        let replicas = rolling::new_replicas(self.d, self.wanted(), 0);
        let body = replica_set(self.d, revision, replicas, self.size_annotations());
        let Ok(rs) = serde_json::from_value::<ReplicaSet>(body.clone()) else { return };
        let name = rs.name().to_string();
        conditions::created(&mut self.status, &name, self.now);
        self.actions.push(Action::Create { name, replicas, body: Box::new(body) });
        if self.d.annotation(REVISION) != Some(revision.to_string().as_str()) {
            self.actions.push(Action::Revision(revision));
        }
        self.new = Some(rs);
    }

    /// Scales the new ReplicaSet. Whether that changes anything.
    pub fn scale_new(&mut self, to: i64) -> bool {
        let annotations = self.size_annotations();
        let Some(new) = &mut self.new else { return false };
        scale_one(new, to, annotations, &mut self.actions)
    }

    /// Scales an old ReplicaSet by its place. Whether that changes anything.
    pub fn scale_old(&mut self, place: usize, to: i64) -> bool {
        let annotations = self.size_annotations();
        let Some(rs) = self.old.get_mut(place) else { return false };
        scale_one(rs, to, annotations, &mut self.actions)
    }

    // Removes the oldest ReplicaSets without pods until the history limit holds.
    fn clean_up(&mut self) {
        let Some(limit) = self.d.spec.revision_history_limit.and_then(|l| usize::try_from(l).ok()) else {
            return;
        };
        let mut alive: Vec<&ReplicaSet> = self.old.iter().filter(|rs| !rs.is_terminating()).collect();
        let Some(excess) = alive.len().checked_sub(limit) else { return };
        let revision =
            |rs: &ReplicaSet| rs.annotation(REVISION).and_then(|r| r.parse::<i64>().ok()).unwrap_or(0);
        alive.sort_by_key(|rs| revision(rs));
        let is_idle = |rs: &&ReplicaSet| {
            rs.status.replicas == 0
                && rs.replicas() == 0
                && rs.metadata.generation.unwrap_or(0) <= rs.status.observed_generation
        };
        let victims = alive.into_iter().take(excess).filter(is_idle);
        let deletions: Vec<Action> =
            victims.map(|rs| Action::Delete { name: rs.name().into(), uid: rs.uid().into() }).collect();
        self.actions.extend(deletions);
    }

    /// The status' counts as the ReplicaSets report them now.
    pub fn totals(&self) -> DeploymentStatus {
        let sum = |of: fn(&ReplicaSet) -> i64| self.all().map(of).sum::<i64>();
        let (total, available) = (sum(|rs| rs.status.replicas), sum(|rs| rs.status.available_replicas));
        DeploymentStatus {
            replicas: total,
            updated_replicas: self.new.as_ref().map_or(0, |rs| rs.status.replicas),
            ready_replicas: sum(|rs| rs.status.ready_replicas),
            available_replicas: available,
            unavailable_replicas: (total - available).max(0),
            terminating_replicas: Some(sum(|rs| rs.status.terminating_replicas.unwrap_or(0))),
            observed_generation: self.d.metadata.generation.unwrap_or(0),
            ..self.status.clone()
        }
    }

    fn write_status(&mut self) {
        let mut status = self.totals();
        conditions::available(self.d, &mut status, self.now);
        if status != self.d.status {
            self.actions.push(Action::Status(Box::new(status)));
        }
    }
}

fn scale_one(
    rs: &mut ReplicaSet,
    to: i64,
    annotations: BTreeMap<String, String>,
    actions: &mut Vec<Action>,
) -> bool {
    let (from, name) = (rs.replicas(), rs.name().to_string());
    let noted = annotations.iter().all(|(k, v)| rs.annotation(k) == Some(v));
    if from == to && noted {
        return false;
    }
    rs.spec.replicas = Some(to);
    rs.metadata.annotations.get_or_insert_default().extend(annotations.clone());
    // A ReplicaSet that is created by this plan is created with its final size.
    let created = actions.iter_mut().find_map(|a| match a {
        Action::Create { name: created, replicas, body } if *created == name => Some((replicas, body)),
        _ => None,
    });
    match created {
        Some((replicas, body)) => {
            *replicas = to;
            body["spec"]["replicas"] = to.into();
        }
        None => actions.push(Action::Scale { name, from, to, annotations }),
    }
    from != to
}

// Annotations of a Deployment that are not its ReplicaSets'.
fn is_own_annotation(key: &str) -> bool {
    matches!(key, REVISION | REVISION_HISTORY | DESIRED | MAX)
        || matches!(
            key,
            "kubectl.kubernetes.io/last-applied-configuration" | "deprecated.deployment.rollback.to"
        )
}

fn copied_annotations(d: &Deployment) -> impl Iterator<Item = (&String, &String)> {
    d.metadata.annotations.iter().flatten().filter(|(k, _)| !is_own_annotation(k))
}

// Brings the new ReplicaSet's annotations and minReadySeconds up to date; answers its revision.
fn amend_new(d: &Deployment, new: &mut ReplicaSet, next: i64, actions: &mut Vec<Action>) -> i64 {
    let current = new.annotation(REVISION).and_then(|r| r.parse::<i64>().ok());
    let revision = current.filter(|r| *r >= next).unwrap_or(next);
    let mut changes: BTreeMap<String, String> = copied_annotations(d)
        .filter(|(k, v)| new.annotation(k) != Some(v.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    if current != Some(revision) {
        changes.insert(REVISION.into(), revision.to_string());
        if let Some(current) = current {
            let history = new.annotation(REVISION_HISTORY).filter(|h| !h.is_empty());
            changes.insert(
                REVISION_HISTORY.into(),
                history.map_or(current.to_string(), |h| format!("{h},{current}")),
            );
        }
    }
    let mut body = json!({});
    if !changes.is_empty() {
        body["metadata"] = json!({ "annotations": changes });
        new.metadata.annotations.get_or_insert_default().extend(changes);
    }
    if new.spec.min_ready_seconds != d.spec.min_ready_seconds {
        new.spec.min_ready_seconds = d.spec.min_ready_seconds;
        body["spec"] = json!({ "minReadySeconds": d.spec.min_ready_seconds });
    }
    if body != json!({}) {
        actions.push(Action::Amend { name: new.name().into(), body });
    }
    revision
}

fn replica_set(d: &Deployment, revision: i64, replicas: i64, size: BTreeMap<String, String>) -> Value {
    let hash = hash::of(&d.spec.template, d.status.collision_count.unwrap_or(0));
    let mut template = d.spec.template.as_ref().clone();
    template["metadata"]["labels"][POD_TEMPLATE_HASH] = hash.as_str().into();
    let mut selector = d.spec.selector.clone();
    selector["matchLabels"][POD_TEMPLATE_HASH] = hash.as_str().into();
    let mut annotations: BTreeMap<String, String> =
        copied_annotations(d).map(|(k, v)| (k.clone(), v.clone())).collect();
    annotations.extend(size);
    annotations.insert(REVISION.into(), revision.to_string());
    let mut spec = json!({ "replicas": replicas, "selector": selector, "template": template.clone() });
    if d.spec.min_ready_seconds > 0 {
        spec["minReadySeconds"] = d.spec.min_ready_seconds.into();
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", d.name()),
            "namespace": d.namespace(),
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [controller_reference(d)],
        },
        "spec": spec,
    })
}
