//! One decision a file, under the names that KubeSchedulerConfiguration has for them.
//!
//! Extension points: a plugin may filter (why a node cannot take a pod), say which changes may cure its refusal, score (prefer
//! one node to another), and permit (whether a pod that has a node reserved may be bound). What comes before is in
//! [`crate::cycle::Cycle::of`] (pre-filter), what comes after a refusal in [`crate::preemption`] (post-filter); reserving and
//! binding are in [`crate::run`] and [`crate::bind`]; the order of the queue and scheduling gates in [`crate::queue`] and
//! [`crate::run`].

pub mod affinity;
pub mod balanced;
pub mod dynamic_resources;
pub mod gang_scheduling;
pub mod image_locality;
pub mod inter_pod;
pub mod node_ports;
pub mod resources_fit;
pub mod spread;
pub mod taints;
pub mod unschedulable;
pub mod volume_limits;
pub mod volume_restrictions;
pub mod volumes;

use crate::cycle::Cycle;
use crate::snapshot::Room;
use crate::view::PodView;
use crate::wake;
use crate::world::World;

/// Why a node cannot take a pod, in the words that users search for; several reasons may hold.
pub type Reasons = Vec<String>;

/// A filter.
pub type Filter = fn(&Cycle<'_>, &Room) -> Reasons;

/// The best score. It is finer than a percentage, so that one pod more on a large node counts.
pub const BEST: i64 = 1_000_000;

/// Scores of nodes from 0 (worst) to [`BEST`], in their order.
pub type Score = fn(&Cycle<'_>, &[&Room]) -> Vec<i64>;

/// Whether a pod may be bound to the node that is reserved for it. It is asked once all pods that are placed together have been
/// tried, and told how many pods of its group have a node, itself included.
pub type Permit = fn(&PodView, &World, usize) -> bool;

/// A plugin.
#[derive(Debug)]
pub struct Plugin {
    pub name: &'static str,
    pub filter: Option<Filter>,
    /// Whether stopping other pods may help against its refusal.
    pub curable: bool,
    /// The changes after which a pod that it refused is tried again; see [`wake`].
    pub wakes: u32,
    /// With its weight unless a profile has another.
    pub score: Option<(Score, i64)>,
    pub permit: Option<Permit>,
}

/// What a plugin does not do.
const NOTHING: Plugin =
    Plugin { name: "", filter: None, curable: false, wakes: 0, score: None, permit: None };

const NODES: u32 = wake::NODE_CAME;

/// Every plugin. Filters in Kubernetes' order: the first that refuses names the reasons.
pub static PLUGINS: [Plugin; 14] = [
    Plugin {
        name: "NodeUnschedulable",
        filter: Some(unschedulable::filter),
        wakes: NODES | wake::NODE_TAINTS,
        ..NOTHING
    },
    Plugin {
        name: "TaintToleration",
        filter: Some(taints::filter),
        wakes: NODES | wake::NODE_TAINTS,
        score: Some((taints::prefer_untainted, 3)),
        ..NOTHING
    },
    Plugin {
        name: "NodeAffinity",
        filter: Some(affinity::filter),
        wakes: NODES | wake::NODE_LABELS,
        score: Some((affinity::preferred, 2)),
        ..NOTHING
    },
    Plugin {
        name: "NodePorts",
        filter: Some(node_ports::filter),
        curable: true,
        wakes: NODES | wake::POD_GONE,
        ..NOTHING
    },
    Plugin {
        name: "NodeResourcesFit",
        filter: Some(resources_fit::filter),
        curable: true,
        wakes: NODES | wake::NODE_ROOM | wake::POD_GONE,
        score: Some((resources_fit::score, 1)),
        ..NOTHING
    },
    Plugin {
        name: "VolumeRestrictions",
        filter: Some(volume_restrictions::filter),
        curable: true,
        wakes: wake::POD_GONE | wake::CLAIMS,
        ..NOTHING
    },
    Plugin {
        name: "NodeVolumeLimits",
        filter: Some(volume_limits::filter),
        curable: true,
        wakes: NODES | wake::POD_GONE | wake::VOLUMES,
        ..NOTHING
    },
    Plugin {
        name: "VolumeBinding",
        filter: Some(volumes::filter),
        wakes: NODES | wake::NODE_LABELS | wake::VOLUMES | wake::CLAIMS,
        ..NOTHING
    },
    Plugin {
        name: "DynamicResources",
        filter: Some(dynamic_resources::filter),
        wakes: NODES | wake::NODE_LABELS | wake::DEVICES,
        ..NOTHING
    },
    Plugin {
        name: "PodTopologySpread",
        filter: Some(spread::filter),
        curable: true,
        wakes: NODES | wake::NODE_LABELS | wake::NODE_TAINTS | wake::POD_GONE | wake::POD_CAME,
        score: Some((spread::prefer_spread, 2)),
        ..NOTHING
    },
    Plugin {
        name: "InterPodAffinity",
        filter: Some(inter_pod::filter),
        curable: true,
        wakes: NODES | wake::NODE_LABELS | wake::POD_GONE | wake::POD_CAME,
        score: Some((inter_pod::prefer, 2)),
        ..NOTHING
    },
    Plugin { name: "NodeResourcesBalancedAllocation", score: Some((balanced::score, 1)), ..NOTHING },
    Plugin { name: "ImageLocality", score: Some((image_locality::score, 1)), ..NOTHING },
    Plugin { name: "GangScheduling", wakes: wake::GROUP, permit: Some(gang_scheduling::permit), ..NOTHING },
];

/// Raw scores stretched over 0 to [`BEST`]; all equal: all zero.
pub fn normalized(raw: &[i64]) -> Vec<i64> {
    let (least, most) = (raw.iter().min().copied().unwrap_or(0), raw.iter().max().copied().unwrap_or(0));
    let span = i128::from(most) - i128::from(least);
    let stretch = |score: &i64| {
        let above = i128::from(*score) - i128::from(least);
        if span == 0 { 0 } else { i64::try_from(above * i128::from(BEST) / span).unwrap_or(0) }
    };
    raw.iter().map(stretch).collect()
}
