//! Pods of lower priority make room for one of higher priority; pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::labels::Selector;
use coracle_controllers::view::Meta;

use crate::cycle::Cycle;
use crate::profile::Profile;
use crate::snapshot::{Room, Snapshot};
use crate::view::PodView;
use crate::world::World;

/// The most nodes that are looked at.
const NODES: usize = 100;

/// Where room is made, and for it which pods go.
#[derive(Debug, PartialEq)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<PodView>>,
}

/// Finds the node where stopping pods of lower priority costs least.
///
/// # Errors
/// Why none helps, in Kubernetes' words, for the end of the message.
pub fn preempt(
    pod: &PodView,
    profile: &Profile,
    curable: &[String],
    nodes: usize,
    snapshot: &Snapshot,
    world: &World,
) -> Result<Preemption, String> {
    if !pod.preempts {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    // Room is being made already.
    let leaving = |room: &Room| room.pods.values().any(|one| one.deleting && one.priority < pod.priority);
    if snapshot.room(&pod.nominated).is_some_and(leaving) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    let mut budgets = Budgets::of(world);
    let mut best: Option<(Cost, Preemption)> = None;
    let mut tried = 0;
    // Why it can be on no node at all is no reason to stop others.
    let cycle = Cycle::of(pod, profile, snapshot, world);
    for room in curable.iter().filter_map(|name| snapshot.room(name)).take(NODES) {
        let Ok(cycle) = &cycle else { break };
        tried += 1;
        let Some((cost, found)) = on_node(cycle, room, &mut budgets) else { continue };
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, found));
        }
    }
    best.map(|(_, found)| found).ok_or_else(|| {
        let mut words = Vec::new();
        if tried > 0 {
            words.push(format!("{tried} No preemption victims found for incoming pod"));
        }
        if nodes > tried {
            words.push(format!("{} Preemption is not helpful for scheduling", nodes - tried));
        }
        words.sort();
        format!("0/{nodes} nodes are available: {}.", words.join(", "))
    })
}

/// Budgets that are broken, the highest priority that goes, their sum, how many go, and how lately they started.
type Cost = (usize, i32, i64, usize, Reverse<i64>);

fn on_node(cycle: &Cycle<'_>, room: &Room, budgets: &mut Budgets) -> Option<(Cost, Preemption)> {
    let pod = cycle.pod;
    let mut lower: Vec<Arc<PodView>> =
        room.pods.values().filter(|one| one.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    // Only this node is tried without its pods; what is known of all nodes is counted anew, not collected anew.
    let (mut cycle, mut tried) = (cycle.clone(), room.clone());
    for one in &lower {
        tried.give_back(one);
        cycle.change(one, &tried, -1);
    }
    if cycle.refuse(&tried).is_some() {
        return None;
    }
    // Those that need not go stay: first those whose budget would be broken, then by priority and age.
    budgets.reset();
    let mut broken: Vec<bool> = Vec::new();
    for one in &lower {
        broken.push(budgets.breaks(one));
    }
    let mut order: Vec<(bool, Arc<PodView>)> = broken.into_iter().zip(lower.drain(..)).collect();
    order.sort_by_key(|(breaks, one)| (!*breaks, Reverse(one.priority), one.started, one.key()));
    let mut victims = Vec::new();
    let mut violations = 0;
    for (breaks, one) in order {
        tried.take(&one);
        cycle.change(&one, &tried, 1);
        if cycle.refuse(&tried).is_some() {
            tried.give_back(&one);
            cycle.change(&one, &tried, -1);
            violations += usize::from(breaks);
            victims.push(one);
        }
    }
    victims.sort_by_key(|one| Reverse(one.priority));
    let highest = victims.first().map_or(i32::MIN, |one| one.priority);
    let sum = victims.iter().map(|one| i64::from(one.priority)).sum();
    let started = victims.iter().filter(|one| one.priority == highest).map(|one| one.started).min();
    let cost = (violations, highest, sum, victims.len(), Reverse(started.unwrap_or(0)));
    Some((cost, Preemption { node: room.node.name.clone(), victims }))
}

/// How many pods each budget lets go.
struct Budgets {
    all: Vec<(String, Selector, i64)>,
    left: BTreeMap<usize, i64>,
}

impl Budgets {
    fn of(world: &World) -> Self {
        let all = world.budgets.all();
        let all = all.iter().filter_map(|budget| {
            let selector = Selector::from_label_selector(budget.spec.selector.as_ref()?).ok()?;
            Some((budget.namespace().to_owned(), selector, budget.status.disruptions_allowed))
        });
        Self { all: all.collect(), left: BTreeMap::new() }
    }

    fn reset(&mut self) {
        self.left = self.all.iter().map(|(_, _, allowed)| *allowed).enumerate().collect();
    }

    // Whether stopping this pod too breaks a budget.
    fn breaks(&mut self, pod: &PodView) -> bool {
        let mut breaks = false;
        for (at, (namespace, selector, _)) in self.all.iter().enumerate() {
            let held = *namespace == pod.namespace
                && selector.matches(|key| pod.labels.get(key).map(String::as_str));
            if let Some(left) = self.left.get_mut(&at).filter(|_| held) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        breaks
    }
}
