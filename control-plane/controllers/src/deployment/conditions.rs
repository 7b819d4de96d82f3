//! The conditions of a Deployment, in Kubernetes' words.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::limits;
use super::plan::Draft;
use crate::events::whole_second;
use crate::view::{Condition, Deployment, DeploymentStatus, Meta, condition};

const PROGRESSING: &str = "Progressing";

fn set(
    status: &mut DeploymentStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let now = Time(whole_second(now));
    let current = condition(&status.conditions, type_);
    if current.is_some_and(|c| c.status == value && c.reason == reason) {
        return;
    }
    let since = current.filter(|c| c.status == value).and_then(|c| c.last_transition_time.clone());
    status.conditions.retain(|c| c.type_ != type_);
    status.conditions.push(Condition {
        type_: type_.into(),
        status: value.into(),
        reason: reason.into(),
        message,
        last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
        last_update_time: Some(now),
        ..Condition::default()
    });
}

/// A ReplicaSet for the present template was created.
pub fn created(status: &mut DeploymentStatus, name: &str, now: Timestamp) {
    set(
        status,
        PROGRESSING,
        "True",
        "NewReplicaSetCreated",
        format!("Created new replica set \"{name}\""),
        now,
    );
}

/// A ReplicaSet for the present template was there already.
pub fn found(d: &Deployment, status: &mut DeploymentStatus, name: &str, now: Timestamp) {
    if d.spec.progress_deadline_seconds.is_some() && condition(&status.conditions, PROGRESSING).is_none() {
        set(
            status,
            PROGRESSING,
            "True",
            "FoundNewReplicaSet",
            format!("Found new replica set \"{name}\""),
            now,
        );
    }
}

/// Pausing stops the clock of progress, resuming starts it again.
pub fn paused(d: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if d.spec.progress_deadline_seconds.is_none() {
        return;
    }
    let reason = condition(&status.conditions, PROGRESSING).map(|c| c.reason.clone()).unwrap_or_default();
    if reason == "ProgressDeadlineExceeded" {
        return;
    }
    if d.spec.paused && reason != "DeploymentPaused" {
        set(status, PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused".into(), now);
    } else if !d.spec.paused && reason == "DeploymentPaused" {
        set(status, PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into(), now);
    }
}

/// Whether enough pods are available.
pub fn available(d: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if status.available_replicas >= d.replicas() - limits::max_unavailable(d) {
        let words = "Deployment has minimum availability.";
        set(status, "Available", "True", "MinimumReplicasAvailable", words.into(), now);
    } else {
        let words = "Deployment does not have minimum availability.";
        set(status, "Available", "False", "MinimumReplicasUnavailable", words.into(), now);
    }
}

/// Whether every wanted pod is new and available, and no old one is left.
pub fn complete(d: &Deployment, s: &DeploymentStatus) -> bool {
    s.updated_replicas == d.replicas()
        && s.replicas == d.replicas()
        && s.available_replicas == d.replicas()
        && s.observed_generation >= d.metadata.generation.unwrap_or(0)
}

/// Sets `Progressing` and `ReplicaFailure`; answers when the deadline must be looked at again.
pub fn progress(draft: &mut Draft<'_>) -> Option<Duration> {
    let failure =
        draft.all().flat_map(|rs| &rs.status.conditions).find(|c| c.type_ == "ReplicaFailure").cloned();
    draft.status.conditions.retain(|c| c.type_ != "ReplicaFailure");
    draft.status.conditions.extend(failure);
    let (d, now) = (draft.d, draft.now);
    let deadline = d.spec.progress_deadline_seconds?;
    let (before, totals) = (&d.status, draft.totals());
    let current = condition(&draft.status.conditions, PROGRESSING).cloned();
    let was_complete = totals.replicas == totals.updated_replicas
        && current.as_ref().is_some_and(|c| c.reason == "NewReplicaSetAvailable");
    if was_complete {
        return None;
    }
    let subject = match &draft.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.name()),
        None => format!("Deployment \"{}\"", d.name()),
    };
    if complete(d, &totals) {
        let words = format!("{subject} has successfully progressed.");
        set(&mut draft.status, PROGRESSING, "True", "NewReplicaSetAvailable", words, now);
        return None;
    }
    if progressed(before, &totals) {
        refresh(&mut draft.status, current.as_ref(), format!("{subject} is progressing."), now);
        return Some(Duration::from_secs(u64::try_from(deadline).unwrap_or(0)));
    }
    let current = current?;
    let since = current.last_update_time.as_ref().map_or(now, |t| t.0);
    let left = since.as_second() + deadline - now.as_second();
    if left < 0 && current.reason != "ProgressDeadlineExceeded" {
        let words = format!("{subject} has timed out progressing.");
        set(&mut draft.status, PROGRESSING, "False", "ProgressDeadlineExceeded", words, now);
        return None;
    }
    (left >= 0).then(|| Duration::from_secs(u64::try_from(left + 1).unwrap_or(1)))
}

// Kubernetes replaces the condition, so that its update time moves with every progress.
fn refresh(status: &mut DeploymentStatus, current: Option<&Condition>, words: String, now: Timestamp) {
    status.conditions.retain(|c| c.type_ != PROGRESSING);
    set(status, PROGRESSING, "True", "ReplicaSetUpdated", words, now);
    if let (Some(current), Some(new)) = (current.filter(|c| c.status == "True"), status.conditions.last_mut())
    {
        new.last_transition_time = current.last_transition_time.clone();
    }
}

fn progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    now.updated_replicas > before.updated_replicas
        || now.replicas - now.updated_replicas < before.replicas - before.updated_replicas
        || now.ready_replicas > before.ready_replicas
        || now.available_replicas > before.available_replicas
}
