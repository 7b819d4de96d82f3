//! Rolling updates of a DaemonSet: old pods make room at a bounded pace, or new ones come first (`maxSurge`). Pure.

use std::sync::Arc;

use super::plan::{OnNode, Plan, State, is_available, is_new};
use crate::deployment::limits::scaled;
use crate::pod_control::victim;
use crate::view::{DaemonSet, Pod};

/// How many nodes may have two pods while `count` have one.
pub fn surge(set: &DaemonSet, count: i64) -> i64 {
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    rolling.and_then(|r| r.max_surge.as_ref()).map_or(0, |s| scaled(s, count, true))
}

/// Adds the steps of an update over the nodes that should have a pod.
pub fn update(state: &State<'_>, nodes: &[&str], on_node: &OnNode<'_>, plan: &mut Plan) {
    let count = i64::try_from(nodes.len()).unwrap_or(i64::MAX);
    let surge = surge(state.set, count);
    let rolling = state.set.spec.update_strategy.rolling_update.as_ref();
    let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref());
    let unavailable = unavailable.map_or(1, |u| scaled(u, count, true));
    let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
    if surge > 0 {
        with_surge(state, nodes, on_node, surge, unavailable, plan);
    } else {
        in_place(state, nodes, on_node, unavailable, plan);
    }
}

fn split<'a>(
    state: &State<'_>,
    on_node: &OnNode<'a>,
    node: &str,
) -> (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>) {
    let pods = on_node.get(node).map(Vec::as_slice).unwrap_or_default();
    let of = |new: bool| pods.iter().copied().find(|p| p.is_active() && is_new(state, p) == new);
    (of(false), of(true))
}

fn in_place(state: &State<'_>, nodes: &[&str], on_node: &OnNode<'_>, limit: i64, plan: &mut Plan) {
    let mut left = limit;
    let mut candidates = Vec::new();
    for node in nodes {
        match split(state, on_node, node) {
            // An old pod that does not work loses nothing by being replaced, but uses up its part of the limit.
            (Some(old), None) if !is_available(state, old) => {
                left -= 1;
                plan.deleted.push(victim(old));
            }
            (Some(old), None) => candidates.push(victim(old)),
            (_, Some(new)) if is_available(state, new) => {}
            _ => left -= 1,
        }
    }
    let left = usize::try_from(left).unwrap_or(0);
    plan.deleted.extend(candidates.into_iter().take(left));
}

fn with_surge(
    state: &State<'_>,
    nodes: &[&str],
    on_node: &OnNode<'_>,
    surge: i64,
    unavailable: i64,
    plan: &mut Plan,
) {
    let (mut surging, mut broken) = (0, 0);
    let mut candidates = Vec::new();
    for node in nodes {
        match split(state, on_node, node) {
            (Some(old), Some(new)) if is_available(state, new) => plan.deleted.push(victim(old)),
            (Some(old), Some(_)) => {
                surging += 1;
                if !is_available(state, old) && broken < unavailable {
                    broken += 1;
                    plan.deleted.push(victim(old));
                }
            }
            (Some(old), None) if !is_available(state, old) => plan.created.push((*node).to_string()),
            (Some(_), None) => candidates.push((*node).to_string()),
            _ => {}
        }
    }
    let left = usize::try_from(surge - surging).unwrap_or(0);
    plan.created.extend(candidates.into_iter().take(left));
}
