//! What the watches tell: nodes come and go, pods come, are bound by someone, end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;

use super::{Placed, Scheduler};
use crate::view::{NodeView, Pod, PodView};
use crate::wake;
use crate::world::Changed;

impl Scheduler {
    pub(super) fn node_event(&mut self, event: watcher::Event<Node>, listed: &mut Option<HashSet<String>>) {
        match event {
            watcher::Event::Apply(node) => self.node(&node),
            watcher::Event::InitApply(node) => {
                if let (Some(all), Some(name)) = (listed, &node.metadata.name) {
                    all.insert(name.clone());
                }
                self.node(&node);
            }
            watcher::Event::Delete(node) => {
                self.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default())
            }
            watcher::Event::Init => *listed = Some(HashSet::new()),
            // What went while nothing was watched is missing from the list.
            watcher::Event::InitDone => {
                let all = listed.take().unwrap_or_default();
                for name in self.snapshot.node_names() {
                    if !all.contains(&name) {
                        self.snapshot.remove_node(&name);
                    }
                }
            }
        }
    }

    pub(super) fn node(&mut self, node: &Node) {
        let change = self.snapshot.set_node(NodeView::of(node));
        self.queue.wake(Instant::now(), change);
    }

    pub(super) fn pod_event(
        &mut self,
        event: watcher::Event<Pod>,
        listed: &mut Option<HashMap<String, PodView>>,
    ) {
        match event {
            watcher::Event::Apply(pod) => self.pod(PodView::of(&pod)),
            watcher::Event::Delete(pod) => self.forget(&PodView::of(&pod).key()),
            watcher::Event::Init => *listed = Some(HashMap::new()),
            watcher::Event::InitApply(pod) => {
                let view = PodView::of(&pod);
                if let Some(all) = listed {
                    all.insert(view.key(), view);
                }
            }
            watcher::Event::InitDone => {
                let all = listed.take().unwrap_or_default();
                let known = self.placed.keys().chain(self.queue.keys()).chain(self.groups.keys());
                let gone: Vec<String> = known.filter(|key| !all.contains_key(*key)).cloned().collect();
                for key in gone {
                    self.forget(&key);
                }
                for pod in all.into_values() {
                    self.pod(pod);
                }
            }
        }
    }

    pub(super) fn pod(&mut self, pod: PodView) {
        let key = pod.key();
        if pod.ended {
            return self.forget(&key);
        }
        self.join_group(&pod);
        if !pod.node.is_empty() {
            self.queue.remove(&key);
            self.explained.remove(&key);
            // It may be on another node than we thought: someone else may bind too.
            let before = self.placed.remove(&key);
            if let Some(before) = &before {
                self.snapshot.give_back(&before.node, &before.pod);
            }
            let pod = Arc::new(pod);
            self.snapshot.take(&pod.node, &pod);
            // What it is to others: the room that it takes, and whether they want to be near to it.
            let same = before.is_some_and(|before| {
                let old = &before.pod;
                before.node == pod.node && old.requests == pod.requests && old.labels == pod.labels
            });
            self.placed.insert(key, Placed { node: pod.node.clone(), pod, newer: None });
            if !same {
                self.queue.wake(Instant::now(), wake::POD_CAME | wake::POD_GONE);
            }
            return;
        }
        // One that is being bound shows up without its node until the API has it.
        if let Some(placed) = self.placed.get_mut(&key) {
            if placed.pod.uid == pod.uid {
                placed.newer = Some(pod);
                return;
            }
            // Another pod of that name.
            self.release(&key);
        }
        if self.wants(&pod) {
            if pod.nominated.is_empty() {
                self.snapshot.withdraw(&key);
            } else {
                self.snapshot.nominate(&pod.nominated, &Arc::new(pod.clone()));
            }
            self.queue.push(pod, Instant::now());
        } else {
            self.snapshot.withdraw(&key);
            self.queue.remove(&key);
            self.explained.remove(&key);
        }
    }

    pub(super) fn changed(&mut self, change: &Changed) {
        let now = Instant::now();
        match change {
            Changed::Volumes => self.queue.wake(now, wake::VOLUMES),
            Changed::Devices => self.queue.wake(now, wake::DEVICES),
            Changed::Group(group) => {
                self.queue.wake_all(now, self.groups.pods(group));
            }
            Changed::Claim(claim) => self.queue.wake_if(now, wake::CLAIMS, |pod| {
                let mut names = pod.claims.iter().map(|name| format!("{}/{name}", pod.namespace));
                names.any(|name| name == *claim)
            }),
        }
    }

    pub(super) fn forget(&mut self, key: &str) {
        self.groups.leave(key);
        self.snapshot.withdraw(key);
        self.queue.remove(key);
        self.explained.remove(key);
        self.release(key);
    }

    /// The room of a pod is free again.
    pub(super) fn release(&mut self, key: &str) {
        if let Some(placed) = self.placed.remove(key) {
            self.snapshot.give_back(&placed.node, &placed.pod);
            self.queue.wake(Instant::now(), wake::POD_GONE);
        }
    }
}
