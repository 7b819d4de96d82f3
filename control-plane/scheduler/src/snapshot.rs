//! The nodes and what is taken of them, as the scheduler knows it; pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::plugins::inter_pod;
use crate::plugins::node_ports::HostPort;
use crate::view::{NodeView, PodView, Resources, add, subtract};
use crate::wake;

/// A node and what is taken of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room {
    pub node: NodeView,
    pub used: Resources,
    /// Host ports that are taken, and by how many pods.
    pub host_ports: BTreeMap<HostPort, usize>,
    /// The pods there, by `namespace/name`.
    pub pods: BTreeMap<String, Arc<PodView>>,
    /// How many of them keep others away (required anti-affinity).
    pub keep_away: usize,
    /// How many of them have wishes on the pods near them.
    pub wishing: usize,
    /// How many pods of each controller stay.
    pub owners: BTreeMap<String, usize>,
}

impl Room {
    /// A pod takes its room.
    pub fn take(&mut self, pod: &Arc<PodView>) {
        add(&mut self.used, &pod.requests);
        for port in &pod.host_ports {
            *self.host_ports.entry(port.clone()).or_default() += 1;
        }
        self.keep_away += usize::from(inter_pod::keeps_away(pod));
        self.wishing += usize::from(inter_pod::wishes(pod));
        if stays(pod) {
            *self.owners.entry(pod.owner.clone()).or_default() += 1;
        }
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
        self.wishing = self.wishing.saturating_sub(usize::from(inter_pod::wishes(pod)));
        if stays(pod)
            && let Some(count) = self.owners.get_mut(&pod.owner)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.owners.remove(&pod.owner);
            }
        }
        self.pods.remove(&pod.key());
    }
}

fn stays(pod: &PodView) -> bool {
    !pod.owner.is_empty() && !pod.deleting
}

/// Every node, by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) rooms: BTreeMap<String, Room>,
    /// Pods that keep others away, and pods with wishes, on all nodes.
    keeping_away: usize,
    wishing: usize,
    /// On which nodes pods of each controller are, and how many.
    owners: HashMap<String, BTreeMap<String, usize>>,
    /// How many nodes have each image.
    images: HashMap<String, usize>,
    /// Pods for which others are being stopped, by `namespace/name`: the node, and the pod.
    nominated: BTreeMap<String, (String, Arc<PodView>)>,
}

impl Snapshot {
    /// A node came or changed. Which pods that may help; see [`crate::wake`].
    pub fn set_node(&mut self, node: NodeView) -> u32 {
        let room = self.rooms.entry(node.name.clone()).or_default();
        let changed = wake::of_node(Some(&room.node), &node);
        let before = std::mem::replace(&mut room.node, node.clone());
        if before.images != node.images {
            self.count_images(&before, -1);
            self.count_images(&node, 1);
        }
        changed
    }

    fn count_images(&mut self, node: &NodeView, by: isize) {
        for image in node.images.keys() {
            let count = self.images.entry(image.clone()).or_default();
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                self.images.remove(image);
            }
        }
    }

    /// How many nodes have an image.
    pub fn holders(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// The nodes with pods of a controller that stay, and how many there are.
    pub fn of_owner(&self, owner: &str) -> impl Iterator<Item = (&Room, usize)> {
        let there = self.owners.get(owner).into_iter().flatten();
        there.filter_map(|(node, count)| Some((self.room(node)?, *count)))
    }

    fn count_owner(&mut self, node: &str, pod: &PodView, by: isize) {
        if !stays(pod) {
            return;
        }
        let nodes = self.owners.entry(pod.owner.clone()).or_default();
        let count = nodes.entry(node.to_owned()).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            nodes.remove(node);
        }
        if nodes.is_empty() {
            self.owners.remove(&pod.owner);
        }
    }

    /// How many nodes there are, those included that are gone and have pods.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// How many pods keep others away.
    pub fn keeping_away(&self) -> usize {
        self.keeping_away
    }

    /// How many pods have wishes on the pods near them.
    pub fn wishing(&self) -> usize {
        self.wishing
    }

    /// A node.
    pub fn room(&self, name: &str) -> Option<&Room> {
        self.rooms.get(name).filter(|room| !room.node.name.is_empty())
    }

    /// A node is gone; what pods take of it stays known until they go, in case it comes back.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(room) = self.rooms.get_mut(name) {
            let before = std::mem::take(&mut room.node);
            self.count_images(&before, -1);
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
        self.keeping_away += usize::from(inter_pod::keeps_away(pod));
        self.wishing += usize::from(inter_pod::wishes(pod));
        self.count_owner(node, pod, 1);
        self.rooms.entry(node.to_owned()).or_default().take(pod);
    }

    /// A pod gives its room back.
    pub fn give_back(&mut self, node: &str, pod: &PodView) {
        if let Some(room) = self.rooms.get_mut(node) {
            let there = room.pods.get(&pod.key()).cloned();
            if there.is_some() {
                self.keeping_away = self.keeping_away.saturating_sub(usize::from(inter_pod::keeps_away(pod)));
                self.wishing = self.wishing.saturating_sub(usize::from(inter_pod::wishes(pod)));
            }
            room.give_back(pod);
            // What was counted is what was there.
            if let Some(there) = there {
                self.count_owner(node, &there, -1);
            }
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
    pub(crate) fn seen_by<'a>(&'a self, pod: &PodView, room: &'a Room) -> std::borrow::Cow<'a, Room> {
        if self.nominated.is_empty() {
            return std::borrow::Cow::Borrowed(room);
        }
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
