//! The two strategies: RollingUpdate and Recreate.

use std::sync::Arc;

use super::limits;
use super::plan::Draft;
use crate::view::{Deployment, Meta, Pod, ReplicaSet};

/// How many pods the new ReplicaSet should have, given all wanted pods and what it wants now.
pub fn new_replicas(d: &Deployment, wanted: i64, now: i64) -> i64 {
    if d.recreates() {
        return d.replicas();
    }
    let room = d.replicas() + limits::max_surge(d) - wanted;
    if room <= 0 {
        return now;
    }
    now + room.min(d.replicas() - now)
}

/// One step of a rolling update: first what the surge allows up, else what availability allows down.
pub fn roll(draft: &mut Draft<'_>) {
    draft.note_revision(true);
    let Some(now) = draft.new.as_ref().map(ReplicaSet::replicas) else { return };
    let to = if now > draft.d.replicas() {
        draft.d.replicas()
    } else {
        new_replicas(draft.d, draft.wanted(), now)
    };
    if now != to && draft.scale_new(to) {
        return;
    }
    scale_down_old(draft);
}

fn scale_down_old(draft: &mut Draft<'_>) {
    let wanted_old: i64 = draft.old.iter().map(ReplicaSet::replicas).sum();
    if wanted_old == 0 {
        return;
    }
    let floor = draft.d.replicas() - limits::max_unavailable(draft.d);
    let new_missing = draft.new.as_ref().map_or(0, |n| n.replicas() - n.status.available_replicas);
    let spare = draft.wanted() - floor - new_missing;
    if spare <= 0 {
        return;
    }
    drop_unhealthy(draft, spare);
    // What is available beyond the floor, after the unhealthy ones went.
    let mut surplus = draft.available() - floor;
    for place in 0..draft.old.len() {
        let Some(replicas) = draft.old.get(place).map(ReplicaSet::replicas) else { return };
        if surplus <= 0 {
            return;
        }
        let down = replicas.min(surplus);
        if down > 0 {
            draft.scale_old(place, replicas - down);
            surplus -= down;
        }
    }
}

// Pods that are not available can go at once: nobody misses them.
fn drop_unhealthy(draft: &mut Draft<'_>, mut most: i64) {
    for place in 0..draft.old.len() {
        let Some(rs) = draft.old.get(place) else { return };
        let down = (rs.replicas() - rs.status.available_replicas).min(most);
        if down > 0 {
            let to = rs.replicas() - down;
            draft.scale_old(place, to);
            most -= down;
        }
    }
}

/// Recreate: all old pods go, and only when the last one is gone the new ones come.
pub fn recreate(draft: &mut Draft<'_>, pods: &[Arc<Pod>]) {
    draft.note_revision(false);
    let mut scaled = false;
    for place in 0..draft.old.len() {
        if draft.old.get(place).is_some_and(|rs| rs.replicas() > 0) {
            scaled |= draft.scale_old(place, 0);
        }
    }
    let new_uid = draft.new.as_ref().map(|n| n.uid().to_string());
    let is_old =
        |p: &&Arc<Pod>| !p.is_finished() && p.controller().map(|c| c.uid.as_str()) != new_uid.as_deref();
    if scaled || pods.iter().any(|p| is_old(&p)) {
        return;
    }
    draft.note_revision(true);
    draft.scale_new(draft.d.replicas());
}
