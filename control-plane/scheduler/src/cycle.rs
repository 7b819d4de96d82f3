//! One pod against all nodes; pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::plugins::inter_pod::{self, Near};
use crate::plugins::spread::{self, Constraint};
use crate::plugins::volumes::{self, Claim};
use crate::plugins::{FILTERS, Reasons, SCORES};
use crate::view::{NodeView, PodView, Resources, add, subtract};
use crate::world::World;

/// A node and what is taken of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    pub node: NodeView,
    pub used: Resources,
    /// Host ports that are taken, and by how many pods.
    pub host_ports: BTreeMap<String, usize>,
    /// The pods there, by `namespace/name`.
    pub pods: BTreeMap<String, Arc<PodView>>,
    /// How many of them keep others away (required anti-affinity).
    pub keep_away: usize,
}

impl Room {
    /// A pod takes its room.
    pub fn take(&mut self, pod: &Arc<PodView>) {
        add(&mut self.used, &pod.requests);
        for port in &pod.host_ports {
            *self.host_ports.entry(port.clone()).or_default() += 1;
        }
        self.keep_away += usize::from(inter_pod::keeps_away(pod));
        self.pods.insert(pod.key(), pod.clone());
    }

    /// A pod gives its room back.
    pub fn give_back(&mut self, pod: &PodView) {
        subtract(&mut self.used, &pod.requests);
        for port in &pod.host_ports {
            if let Some(count) = self.host_ports.get_mut(port) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.host_ports.remove(port);
                }
            }
        }
        self.keep_away = self.keep_away.saturating_sub(usize::from(inter_pod::keeps_away(pod)));
        self.pods.remove(&pod.key());
    }
}

/// Every node, by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    rooms: BTreeMap<String, Room>,
    /// Pods for which others are being stopped, by `namespace/name`: the node, and the pod.
    nominated: BTreeMap<String, (String, Arc<PodView>)>,
}

impl Snapshot {
    /// A node came or changed. True if it may now take pods that it could not take before.
    pub fn set_node(&mut self, node: NodeView) -> bool {
        let room = self.rooms.entry(node.name.clone()).or_default();
        let changed = room.node != node;
        room.node = node;
        changed
    }

    /// A node is gone; what pods take of it stays known until they go, in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(room) = self.rooms.get_mut(name) {
            room.node = NodeView::default();
        }
        self.tidy(name);
    }

    /// Drops what is left of a node that is gone and has no pods.
    fn tidy(&mut self, name: &str) {
        let empty = |room: &Room| room.node.name.is_empty() && room.pods.is_empty();
        if self.rooms.get(name).is_some_and(empty) {
            self.rooms.remove(name);
        }
    }

    /// The nodes there are.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes().map(|room| room.node.name.clone()).collect()
    }

    /// A pod takes its room.
    pub fn take(&mut self, node: &str, pod: &Arc<PodView>) {
        self.nominated.remove(&pod.key());
        self.rooms.entry(node.to_owned()).or_default().take(pod);
    }

    /// A pod gives its room back.
    pub fn give_back(&mut self, node: &str, pod: &PodView) {
        if let Some(room) = self.rooms.get_mut(node) {
            room.give_back(pod);
        }
        self.tidy(node);
    }

    /// Room on a node is being made for a pod: no pod of lower priority takes it meanwhile.
    pub fn nominate(&mut self, node: &str, pod: &Arc<PodView>) {
        self.nominated.insert(pod.key(), (node.to_owned(), pod.clone()));
    }

    /// A pod needs the room no longer that was made for it.
    pub fn withdraw(&mut self, key: &str) {
        self.nominated.remove(key);
    }

    /// The nodes and what is on them.
    pub fn nodes(&self) -> impl Iterator<Item = &Room> {
        self.rooms.values().filter(|room| !room.node.name.is_empty())
    }

    /// A node's room as a pod sees it: pods of its priority or higher that wait for the node are there already.
    fn seen_by<'a>(&'a self, pod: &PodView, room: &'a Room) -> std::borrow::Cow<'a, Room> {
        let key = pod.key();
        let ahead = self.nominated.iter().filter(|(other, (node, one))| {
            **other != key && *node == room.node.name && one.priority >= pod.priority
        });
        let mut seen = std::borrow::Cow::Borrowed(room);
        for (_, (_, one)) in ahead {
            seen.to_mut().take(one);
        }
        seen
    }
}

/// A pod, and what is known before its nodes are looked at.
pub struct Cycle<'a> {
    pub pod: &'a PodView,
    pub snapshot: &'a Snapshot,
    pub world: &'a World,
    pub near: Near,
    pub spread: Vec<Constraint>,
    pub claims: Vec<Claim>,
}

impl<'a> Cycle<'a> {
    /// Prepares.
    ///
    /// # Errors
    /// Why the pod can be on no node at all.
    pub fn of(pod: &'a PodView, snapshot: &'a Snapshot, world: &'a World) -> Result<Self, String> {
        let claims = volumes::claims(pod, world)?;
        let spread = spread::constraints(pod, snapshot, true);
        Ok(Self { pod, snapshot, world, near: Near::of(pod, snapshot, world), spread, claims })
    }

    /// Why a node cannot take the pod; none when it can. True: stopping other pods may help.
    pub fn refuse(&self, room: &Room) -> Option<(Reasons, bool)> {
        let mut answers = FILTERS.iter().map(|(filter, curable)| (filter(self, room), *curable));
        answers.find(|(reasons, _)| !reasons.is_empty())
    }
}

/// What is to become of a pod.
#[derive(Debug, PartialEq)]
pub enum Choice {
    /// The best node for it.
    Node(String),
    /// None will do. Why, in Kubernetes' words: `0/3 nodes are available: 2 Insufficient cpu, 1 node(s) were
    /// unschedulable.` And the nodes where stopping other pods may help.
    None { why: String, curable: Vec<String>, nodes: usize },
}

/// The best node for a pod.
pub fn choose(pod: &PodView, snapshot: &Snapshot, world: &World) -> Choice {
    let nodes = snapshot.nodes().count();
    let none = |why: String| Choice::None { why, curable: Vec::new(), nodes };
    if nodes == 0 {
        return none("no nodes available to schedule pods".to_owned());
    }
    let cycle = match Cycle::of(pod, snapshot, world) {
        Ok(cycle) => cycle,
        Err(why) => return none(format!("0/{nodes} nodes are available: {why}.")),
    };
    let mut fits = Vec::new();
    let mut curable = Vec::new();
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for room in snapshot.nodes() {
        match cycle.refuse(&snapshot.seen_by(pod, room)) {
            None => fits.push(room),
            Some((reasons, may_help)) => {
                if may_help {
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
    Choice::None { why: format!("0/{nodes} nodes are available: {}.", words.join(", ")), curable, nodes }
}

fn best<'a>(cycle: &Cycle<'_>, fits: &[&'a Room]) -> Option<&'a str> {
    if let [only] = fits {
        return Some(&only.node.name);
    }
    // Where others were stopped for it, it goes.
    if let Some(room) = fits.iter().find(|room| room.node.name == cycle.pod.nominated) {
        return Some(&room.node.name);
    }
    let mut sums = vec![0_i64; fits.len()];
    for (score, weight) in SCORES {
        for (sum, one) in sums.iter_mut().zip(score(cycle, fits)) {
            *sum = sum.saturating_add(one.saturating_mul(weight));
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
#[path = "cycle/tests.rs"]
mod tests;
