//! GangScheduling: pods of a gang have nodes at the same time, or not at all.

use std::fmt::Write as _;

use crate::view::PodView;
use crate::world::World;

/// What a pod's group asks of it before it may be tried.
#[derive(Debug, PartialEq)]
pub enum Gate {
    /// Nothing: it has no group, or one whose pods are placed each by itself.
    Alone,
    /// It is tried together with the others of its group; so many must have a node.
    Together(usize),
    /// It waits, and why.
    Closed(String),
}

/// Whether a pod may be tried, where its group has so many pods.
pub fn gate(pod: &PodView, world: &World, pods: usize) -> Gate {
    if pod.group.is_empty() {
        return Gate::Alone;
    }
    let Some(group) = world.pod_groups.get(&pod.group) else {
        return Gate::Closed(format!("waiting for PodGroup {:?} to appear", pod.group));
    };
    match group.min_count() {
        None => Gate::Alone,
        Some(least) if pods < least => {
            Gate::Closed(format!("waiting for minCount ({least}) pods of PodGroup {:?} to appear", pod.group))
        }
        Some(least) => Gate::Together(least),
    }
}

/// A pod of a gang may be bound when enough of the gang have a node.
pub fn permit(pod: &PodView, world: &World, placed: usize) -> bool {
    let group = world.pod_groups.get(&pod.group);
    group.and_then(|group| group.min_count()).is_none_or(|least| placed >= least)
}

/// Why a gang waits: how many of it had a node, and why the others had none.
pub fn words(group: &str, least: usize, placed: usize, why: Option<&str>) -> String {
    let mut words =
        format!("PodGroup {group:?} needs nodes for {least} pods at the same time, there are {placed}");
    if let Some(why) = why {
        let _ = write!(words, ": {why}");
    }
    words
}
