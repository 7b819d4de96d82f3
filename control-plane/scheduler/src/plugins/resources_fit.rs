//! Requests fit into what a node has left; extended resources such as GPUs too.

use super::{BEST, Reasons};
use crate::cycle::Cycle;
use crate::snapshot::Room;

/// Refuses a node without room, with a reason for each resource that is short.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    let short = cycle.pod.requests.iter().filter(|(name, wanted)| {
        let all = room.node.allocatable.get(*name).copied().unwrap_or(0);
        let used = room.used.get(*name).copied().unwrap_or(0);
        **wanted > 0 && all.saturating_sub(used) < **wanted
    });
    let word = |(name, _): (&String, &i64)| match name.as_str() {
        "pods" => "Too many pods".to_owned(),
        name => format!("Insufficient {name}"),
    };
    short.map(word).collect()
}

/// How nodes are preferred by what is left of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// Much room left.
    LeastAllocated,
    /// Little room left, so that other nodes become empty.
    MostAllocated,
    /// By a curve: at so many percent used, so many points of ten.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// The strategy, and the weight of each resource.
#[derive(Clone, Debug, PartialEq)]
pub struct FitArgs {
    pub strategy: Strategy,
    pub resources: Vec<(String, i64)>,
}

impl Default for FitArgs {
    fn default() -> Self {
        // The number of pods counts too, so that pods that ask for nothing spread.
        let resources = ["cpu", "memory", "pods"].map(|name| (name.to_owned(), 1)).into();
        Self { strategy: Strategy::LeastAllocated, resources }
    }
}

/// Prefers nodes by the profile's strategy.
pub fn score(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let args = &cycle.profile.fit;
    rooms.iter().map(|room| one(cycle, room, args)).collect()
}

fn one(cycle: &Cycle<'_>, room: &Room, args: &FitArgs) -> i64 {
    let (mut sum, mut weights) = (0_i128, 0_i128);
    for (name, weight) in &args.resources {
        let all = room.node.allocatable.get(name).copied().unwrap_or(0);
        let wanted = cycle.pod.requests.get(name).copied().unwrap_or(0);
        // A resource that a node does not have counts only for pods that want it.
        if all <= 0 && wanted == 0 && !matches!(name.as_str(), "cpu" | "memory" | "pods") {
            continue;
        }
        let used = room.used.get(name).copied().unwrap_or(0).saturating_add(wanted);
        sum += i128::from(points(&args.strategy, used, all)) * i128::from(*weight);
        weights += i128::from(*weight);
    }
    if weights == 0 { 0 } else { i64::try_from(sum / weights).unwrap_or(0) }
}

fn points(strategy: &Strategy, used: i64, all: i64) -> i64 {
    let part = |of: i64| i64::try_from(i128::from(of) * i128::from(BEST) / i128::from(all)).unwrap_or(0);
    match strategy {
        Strategy::LeastAllocated if all <= 0 || used > all => 0,
        Strategy::LeastAllocated => part(all - used),
        Strategy::MostAllocated if all <= 0 || used > all => 0,
        Strategy::MostAllocated => part(used),
        Strategy::RequestedToCapacityRatio(shape) => {
            let percent = if all <= 0 { 100.0 } else { (used as f64 * 100.0 / all as f64).min(100.0) };
            (on_curve(shape, percent) * BEST as f64 / 10.0) as i64
        }
    }
}

// Between two points in a straight line, beyond the ends level.
fn on_curve(shape: &[(i64, i64)], percent: f64) -> f64 {
    let (Some(first), Some(last)) = (shape.first(), shape.last()) else { return 0.0 };
    if percent <= first.0 as f64 {
        return first.1 as f64;
    }
    for pair in shape.windows(2) {
        let [(from, low), (to, high)] = pair else { continue };
        if percent <= *to as f64 {
            let along = (percent - *from as f64) / (to - from).max(1) as f64;
            return *low as f64 + along * (high - low) as f64;
        }
    }
    last.1 as f64
}
