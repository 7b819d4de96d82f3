//! Pods that are placed together: all of a group are tried in one go, and bound only if the permits allow it.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use coracle_controllers::view::Meta;

use super::decided::{Refused, Reserved};
use super::{Ended, Scheduler};
use crate::bind;
use crate::plugins::gang_scheduling::{self, Gate};
use crate::profile::Profile;
use crate::view::PodView;
use crate::wake;

/// Which pods there are of each group, all by `namespace/name`.
#[derive(Default)]
pub(super) struct Groups {
    /// The pods of a group that are there and have not ended, whether they wait or not.
    pods: HashMap<String, BTreeSet<String>>,
    /// The group of a pod.
    of: HashMap<String, String>,
    /// What groups were last told: their uid, and why they wait; none: they have their nodes.
    told: HashMap<String, (String, Option<String>)>,
    /// Groups that failed of late: how often one after the other, and until when they are not tried.
    resting: HashMap<String, (u32, Instant)>,
}

impl Groups {
    /// The pods of a group.
    pub fn pods(&self, group: &str) -> impl Iterator<Item = &String> {
        self.pods.get(group).into_iter().flatten()
    }

    /// Every pod that has a group.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.of.keys()
    }

    /// What a group was told did not reach it.
    pub fn forget_told(&mut self, group: &str) {
        self.told.remove(group);
    }

    fn len(&self, group: &str) -> usize {
        self.pods.get(group).map_or(0, BTreeSet::len)
    }

    /// A pod is there. True if it was not known to be in its group.
    fn join(&mut self, pod: &PodView) -> bool {
        let key = pod.key();
        if self.of.get(&key).is_none_or(|group| *group != pod.group) {
            self.leave(&key);
        }
        if pod.group.is_empty() {
            return false;
        }
        self.of.insert(key.clone(), pod.group.clone());
        self.pods.entry(pod.group.clone()).or_default().insert(key)
    }

    /// A pod is gone, or has ended.
    pub fn leave(&mut self, key: &str) {
        let Some(group) = self.of.remove(key) else { return };
        let Some(pods) = self.pods.get_mut(&group) else { return };
        pods.remove(key);
        if pods.is_empty() {
            self.pods.remove(&group);
            self.told.remove(&group);
            self.resting.remove(&group);
        }
    }
}

impl Scheduler {
    /// Whether a pod may be tried, and with whom.
    pub(super) fn gate(&self, pod: &PodView, profile: &Profile) -> Gate {
        if !profile.has_permit("GangScheduling") {
            return Gate::Alone;
        }
        gang_scheduling::gate(pod, &self.world, self.groups.len(&pod.group))
    }

    /// A pod is there. One that makes its gang complete wakes the others.
    pub(super) fn join_group(&mut self, pod: &PodView) {
        if !self.groups.join(pod) {
            return;
        }
        let pods = self.groups.len(&pod.group);
        if gang_scheduling::gate(pod, &self.world, pods) == Gate::Together(pods) {
            self.queue.wake_all(Instant::now(), self.groups.pods(&pod.group));
        }
    }

    /// Tries all waiting pods of a gang, of which so many must have a node; `first` is the one whose turn it is.
    pub(super) fn decide_together(&mut self, first: &PodView, least: usize, profile: &Profile) {
        let (group, now) = (first.group.as_str(), Instant::now());
        if let Some((_, until)) = self.groups.resting.get(group).filter(|(_, until)| now < *until) {
            return self.queue.rest(&first.key(), *until);
        }
        let pods = self.groups.pods(group);
        let before = pods.filter(|key| self.placed.contains_key(*key)).count();
        let mut waiting: Vec<PodView> =
            self.groups.pods(group).filter_map(|key| self.queue.take(key)).collect();
        waiting.sort_by_key(|pod| (std::cmp::Reverse(pod.priority), pod.created));
        let (mut reserved, mut refused): (Vec<Reserved>, Vec<Refused>) = Default::default();
        for pod in waiting {
            match self.reserve(pod, profile) {
                Ok(one) => reserved.push(one),
                Err(one) => refused.push(*one),
            }
        }
        let placed = before + reserved.len();
        let permitted =
            |one: &Reserved| profile.permits().all(|permit| permit(&one.pod, &self.world, placed));
        // Where none has a node there is nobody to ask for.
        if placed < least || !reserved.iter().all(permitted) {
            return self.wait_together(group, least, placed, reserved, refused);
        }
        self.groups.resting.remove(group);
        // The volumes of all are bound before any pod, unless enough of them run already: then each counts for itself.
        let volumes = before < least && reserved.iter().any(|one| !one.volumes.is_empty());
        if !volumes {
            self.tell_group(group, None);
        }
        for one in reserved {
            if volumes && one.volumes.is_empty() {
                self.unreserve(&one);
                self.queue.park(&one.pod.key(), now, wake::ANYTHING);
            } else {
                self.commit(one, None);
            }
        }
        refused.into_iter().for_each(|one| self.refuse(one, profile, None));
    }

    /// None of a gang has a node, for too few would.
    fn wait_together(
        &mut self,
        group: &str,
        least: usize,
        placed: usize,
        reserved: Vec<Reserved>,
        refused: Vec<Refused>,
    ) {
        let now = Instant::now();
        let failures = self.groups.resting.get(group).map_or(0, |(failures, _)| *failures) + 1;
        self.groups.resting.insert(group.to_owned(), (failures, now + self.queue.pause(failures)));
        let why = refused.first().map(|one| one.why.clone());
        let words = gang_scheduling::words(group, least, placed, why.as_deref());
        let wakes = refused.iter().fold(wake::GROUP, |wakes, one| wakes | one.wakes);
        self.tell_group(group, Some(words.clone()));
        for one in &reserved {
            self.unreserve(one);
        }
        let reserved = reserved.into_iter().map(|one| (*one.pod).clone());
        for pod in reserved.chain(refused.into_iter().map(|one| one.pod)) {
            self.queue.sleep(&pod.key(), now, wakes);
            self.choose_devices_anew(&pod);
            self.explain(pod, words.clone(), None, None);
        }
    }

    /// Says on the group whether its pods have nodes, once for each reason.
    fn tell_group(&mut self, group: &str, why: Option<String>) {
        let Some(object) = self.world.pod_groups.get(group) else { return };
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let told = (uid, why);
        if self.groups.told.insert(group.to_owned(), told.clone()).as_ref() == Some(&told) {
            return;
        }
        let (client, ended) = (self.client.clone(), self.ended.clone());
        tokio::spawn(async move {
            let said = bind::explain_group(&client, &object, told.1.as_deref()).await;
            let group = format!("{}/{}", object.namespace(), object.name());
            let _ = ended.send(match said {
                Ok(()) => Ended::Done,
                Err(error) => Ended::GroupUntold(group, format!("{error:#}")),
            });
        });
    }
}
