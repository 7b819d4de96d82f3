//! A Deployment whose size changed: in the middle of a rollout every ReplicaSet gets its share.

use super::plan::Draft;
use super::{MAX, limits};
use crate::view::{Deployment, Meta, ReplicaSet};

/// Scales what exists to the new size.
pub fn scale(draft: &mut Draft<'_>) {
    let d = draft.d;
    let active: Vec<usize> =
        draft.old.iter().enumerate().filter(|(_, rs)| rs.replicas() > 0).map(|(i, _)| i).collect();
    let new_active = draft.new.as_ref().is_some_and(|n| n.replicas() > 0);
    // One ReplicaSet with pods, or none: that one, or the newest.
    match (active.as_slice(), new_active) {
        ([], _) if draft.new.is_some() => {
            draft.scale_new(d.replicas());
            return;
        }
        ([], _) => {
            if let Some(last) = draft.old.len().checked_sub(1) {
                draft.scale_old(last, d.replicas());
            }
            return;
        }
        ([only], false) => {
            draft.scale_old(*only, d.replicas());
            return;
        }
        _ => {}
    }
    if draft.new.as_ref().is_some_and(|n| is_saturated(d, n)) {
        for place in active {
            draft.scale_old(place, 0);
        }
    } else if !d.recreates() {
        proportionally(draft);
    }
}

// The rollout has ended, though old pods may still be there.
fn is_saturated(d: &Deployment, new: &ReplicaSet) -> bool {
    let desired = new.annotation(super::DESIRED).and_then(|a| a.parse::<i64>().ok());
    new.replicas() == d.replicas()
        && desired == Some(d.replicas())
        && new.status.available_replicas == d.replicas()
}

fn proportionally(draft: &mut Draft<'_>) {
    let d = draft.d;
    let size = if d.replicas() > 0 { d.replicas() + limits::max_surge(d) } else { 0 };
    let to_add = size - draft.wanted();
    // The new one is the last place; the biggest come first, of equal ones the newest when growing, the oldest when shrinking.
    let places = draft.old.len();
    let mut order: Vec<(usize, i64)> =
        draft.all().map(ReplicaSet::replicas).enumerate().filter(|(_, r)| *r > 0).collect();
    order.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| if to_add > 0 { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) }));
    let mut added = 0;
    let mut sizes = Vec::with_capacity(order.len());
    for (place, replicas) in order {
        let rs = if place == places { draft.new.as_ref() } else { draft.old.get(place) };
        let share = rs.map_or(0, |rs| share(d, rs, to_add, added));
        added += share;
        sizes.push((place, replicas + share));
    }
    if let Some(first) = sizes.first_mut() {
        first.1 = (first.1 + to_add - added).max(0);
    }
    for (place, to) in sizes {
        if place == places {
            draft.scale_new(to)
        } else {
            draft.scale_old(place, to)
        };
    }
}

// A ReplicaSet's part of the pods to add (negative: to remove), in proportion to its size.
fn share(d: &Deployment, rs: &ReplicaSet, to_add: i64, added: i64) -> i64 {
    let left = to_add - added;
    if left == 0 || rs.replicas() == 0 {
        return 0;
    }
    let fraction = if d.replicas() == 0 {
        -rs.replicas()
    } else {
        let before = rs.annotation(MAX).and_then(|a| a.parse::<i64>().ok()).filter(|m| *m > 0);
        let before = before.unwrap_or(d.status.replicas).max(1);
        let max = d.replicas() + limits::max_surge(d);
        let size = (rs.replicas() as f64 * max as f64 / before as f64).round();
        size as i64 - rs.replicas()
    };
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}
