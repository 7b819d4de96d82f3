//! One pod against all nodes; pure.

use std::collections::BTreeMap;

use crate::devices::Claims as DeviceClaims;
use crate::plugins::inter_pod::Near;
use crate::plugins::spread::{self, Constraint};
use crate::plugins::volumes::{self, Claim};
use crate::plugins::{Plugin, Reasons, volume_restrictions};
use crate::profile::Profile;
use crate::snapshot::{Room, Snapshot};
use crate::view::PodView;
use crate::wake;
use crate::world::World;

/// A pod, and what is known before its nodes are looked at.
#[derive(Clone)]
pub struct Cycle<'a> {
    pub pod: &'a PodView,
    pub profile: &'a Profile,
    pub snapshot: &'a Snapshot,
    pub world: &'a World,
    pub near: Near,
    pub spread: Vec<Constraint>,
    pub claims: Vec<Claim>,
    /// Its claims, as `namespace/name`, that only one pod may have and another pod has.
    pub taken_claims: Vec<String>,
    pub devices: DeviceClaims,
}

/// Why a node cannot take a pod.
pub struct Refusal {
    pub plugin: &'static Plugin,
    pub reasons: Reasons,
}

impl<'a> Cycle<'a> {
    /// Prepares.
    ///
    /// # Errors
    /// Why the pod can be on no node at all.
    pub fn of(
        pod: &'a PodView,
        profile: &'a Profile,
        snapshot: &'a Snapshot,
        world: &'a World,
    ) -> Result<Self, String> {
        let claims = volumes::claims(pod, world)?;
        let devices = DeviceClaims::of(pod, world)?;
        let spread = spread::constraints(pod, snapshot, profile, true);
        let near = Near::of(pod, snapshot, world);
        let taken_claims = volume_restrictions::taken(pod, snapshot, world);
        Ok(Self { pod, profile, snapshot, world, near, spread, claims, taken_claims, devices })
    }

    /// Why a node cannot take the pod; none when it can.
    pub fn refuse(&self, room: &Room) -> Option<Refusal> {
        self.profile.filters().find_map(|(plugin, filter)| {
            let reasons = filter(self, room);
            (!reasons.is_empty()).then_some(Refusal { plugin, reasons })
        })
    }

    /// Another pod of a node came (1) or went (-1), for what is known of all nodes.
    pub fn change(&mut self, other: &PodView, room: &Room, by: i8) {
        self.near.change(self.pod, other, room, self.world, isize::from(by));
        for one in &mut self.spread {
            one.change(self.pod, other, room, i64::from(by));
        }
        let has =
            |key: &String| other.claims.iter().any(|name| format!("{}/{name}", other.namespace) == *key);
        if by < 0 {
            self.taken_claims.retain(|key| !has(key));
        } else {
            let own = self.pod.claims.iter().map(|name| format!("{}/{name}", self.pod.namespace));
            let back: Vec<String> = own.filter(|key| has(key) && !self.taken_claims.contains(key)).collect();
            let single = volume_restrictions::single(self.pod, self.world);
            self.taken_claims.extend(back.into_iter().filter(|key| single.contains(key)));
        }
    }

    /// The scores of nodes, by plugin and already with its weight.
    pub fn weigh(&self, rooms: &[&Room]) -> Vec<(&'static str, Vec<i64>)> {
        let weighed = self.profile.scores().map(|(plugin, score, weight)| {
            let scores = score(self, rooms).into_iter().map(|one| one.saturating_mul(weight));
            (plugin.name, scores.collect())
        });
        weighed.collect()
    }
}

/// What is to become of a pod.
#[derive(Debug, PartialEq)]
pub enum Choice {
    /// The best node for it.
    Node(String),
    /// None will do. Why, in Kubernetes' words: `0/3 nodes are available: 2 Insufficient cpu, 1 node(s) were
    /// unschedulable.` And the nodes where stopping other pods may help, how many nodes there are, and which changes may
    /// help (see [`crate::wake`]).
    None { why: String, curable: Vec<String>, nodes: usize, wakes: u32 },
}

/// How many nodes that fit are enough, of so many: in large clusters the best of a part will do (`percentageOfNodesToScore`).
fn enough(nodes: usize, percentage: Option<usize>) -> usize {
    const FEW: usize = 100;
    let percent =
        percentage.filter(|p| *p > 0).unwrap_or_else(|| 50_usize.saturating_sub(nodes / 125).max(5));
    if nodes < FEW || percent >= 100 { nodes } else { (nodes * percent / 100).max(FEW) }
}

/// The best node for a pod. `turn` says at which node to begin, so that all have their turn where not all are looked at.
pub fn choose(pod: &PodView, profile: &Profile, snapshot: &Snapshot, world: &World, turn: usize) -> Choice {
    let nodes = snapshot.nodes().count();
    let none = |why: String, wakes: u32| Choice::None { why, curable: Vec::new(), nodes, wakes };
    if nodes == 0 {
        return none("no nodes available to schedule pods".to_owned(), wake::NODE_CAME);
    }
    let cycle = match Cycle::of(pod, profile, snapshot, world) {
        Ok(cycle) => cycle,
        Err(why) => {
            return none(
                format!("0/{nodes} nodes are available: {why}."),
                wake::VOLUMES | wake::CLAIMS | wake::DEVICES,
            );
        }
    };
    // Where others were stopped for it, it goes.
    let nominated = snapshot.room(&pod.nominated);
    if let Some(room) = nominated.filter(|room| cycle.refuse(&snapshot.seen_by(pod, room)).is_none()) {
        return Choice::Node(room.node.name.clone());
    }
    let enough = enough(nodes, profile.percentage_of_nodes);
    let turn = turn % nodes;
    let order = snapshot.nodes().skip(turn).chain(snapshot.nodes().take(turn));
    let mut fits = Vec::new();
    let mut curable = Vec::new();
    let mut wakes = 0;
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for room in order {
        match cycle.refuse(&snapshot.seen_by(pod, room)) {
            None => {
                fits.push(room);
                if fits.len() >= enough {
                    break;
                }
            }
            Some(Refusal { plugin, reasons }) => {
                wakes |= plugin.wakes;
                if plugin.curable {
                    curable.push(room.node.name.clone());
                }
                for reason in reasons {
                    *refused.entry(reason).or_default() += 1;
                }
            }
        }
    }
    if let Some(best) = best(&cycle, &fits) {
        return Choice::Node(best.to_owned());
    }
    let mut words: Vec<String> =
        refused.into_iter().map(|(reason, number)| format!("{number} {reason}")).collect();
    words.sort();
    let why = format!("0/{nodes} nodes are available: {}.", words.join(", "));
    Choice::None { why, curable, nodes, wakes }
}

fn best<'a>(cycle: &Cycle<'_>, fits: &[&'a Room]) -> Option<&'a str> {
    if let [only] = fits {
        return Some(&only.node.name);
    }
    let mut sums = vec![0_i64; fits.len()];
    for (_, scores) in cycle.weigh(fits) {
        for (sum, one) in sums.iter_mut().zip(scores) {
            *sum = sum.saturating_add(one);
        }
    }
    let mut best: Option<(i64, &Room)> = None;
    for (sum, room) in sums.into_iter().zip(fits) {
        if best.is_none_or(|(most, _)| sum > most) {
            best = Some((sum, room));
        }
    }
    best.map(|(_, room)| room.node.name.as_str())
}

#[cfg(test)]
mod tests;
