//! The loop: watches pods and nodes, decides one pod after the other, binds many at a time.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use coracle_controllers::view::Meta;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::bind;
use crate::config::Configuration;
use crate::cycle::{Choice, Snapshot, choose};
use crate::devices::{Claims, Grant};
use crate::preemption::{Preemption, preempt};
use crate::profile::Profile;
use crate::queue::Queue;
use crate::view::{NodeView, PodView};
use crate::wake;
use crate::world::{Changed, World};

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pods whose `spec.schedulerName` is a profile's name are ours.
    pub configuration: Configuration,
    /// Bindings under way at a time.
    pub bindings: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { configuration: Configuration::default(), bindings: 64 }
    }
}

/// Decisions before events are looked at again.
const BATCH: usize = 256;

struct Scheduler {
    client: Client,
    profiles: Vec<Arc<Profile>>,
    snapshot: Snapshot,
    world: World,
    queue: Queue,
    /// Every pod that takes room: bound ones, and those being bound.
    placed: HashMap<String, Placed>,
    /// What waiting pods were last told, by their UID.
    explained: HashMap<String, (String, String)>,
    /// At which node the next decision begins, where not all nodes are looked at.
    turn: usize,
    slots: Arc<Semaphore>,
    ended: mpsc::UnboundedSender<Ended>,
}

/// A pod that takes room on a node.
struct Placed {
    node: String,
    /// What it took.
    pod: Arc<PodView>,
    /// How it looks since, while it is being bound.
    newer: Option<PodView>,
}

/// A write that is over, so that its slot is free again.
enum Ended {
    Done,
    Unbound(PodView, String),
    Unexplained(PodView, String),
}

/// The pods and nodes of a list under way.
#[derive(Default)]
struct Listed {
    pods: Option<HashMap<String, PodView>>,
    nodes: Option<HashSet<String>>,
}

/// Runs until shutdown.
///
/// # Errors
/// None at present: a lost API server is waited for.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> Result<()> {
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff();
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff();
    let (mut pods, mut nodes) = (pin!(pods), pin!(nodes));
    // Bounded by the semaphore: one entry for each write under way.
    let (ended, mut endings) = mpsc::unbounded_channel();
    let slots = Arc::new(Semaphore::new(options.bindings));
    let world = World::default();
    // Bounded by what the watches tell between two turns of the loop.
    let (changes, mut changed) = mpsc::unbounded_channel();
    world.start(&client, changes, &shutdown).await;
    let configuration = &options.configuration;
    let queue = Queue::new(configuration.first_back_off, configuration.longest_back_off);
    let mut scheduler = Scheduler {
        turn: 0,
        client,
        profiles: options.configuration.profiles.into_iter().map(Arc::new).collect(),
        snapshot: Snapshot::default(),
        world,
        queue,
        placed: HashMap::new(),
        explained: HashMap::new(),
        slots,
        ended,
    };
    let mut listed = Listed::default();
    loop {
        let next = scheduler.queue.tick(Instant::now());
        let more = scheduler.decide();
        let pause = if more {
            Duration::ZERO
        } else {
            next.map_or(Duration::from_secs(60), |at| at.saturating_duration_since(Instant::now()))
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            Some(ending) = endings.recv() => scheduler.ended(ending),
            Some(change) = changed.recv() => scheduler.changed(&change),
            event = nodes.next() => match event {
                Some(Ok(event)) => scheduler.node_event(event, &mut listed.nodes),
                Some(Err(error)) => tracing::debug!(%error, "watch nodes"),
                None => return Ok(()),
            },
            event = pods.next() => match event {
                Some(Ok(event)) => scheduler.pod_event(event, &mut listed.pods),
                Some(Err(error)) => tracing::debug!(%error, "watch pods"),
                None => return Ok(()),
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Scheduler {
    fn node_event(&mut self, event: watcher::Event<Node>, listed: &mut Option<HashSet<String>>) {
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

    fn node(&mut self, node: &Node) {
        let change = self.snapshot.set_node(NodeView::of(node));
        self.queue.wake(Instant::now(), change);
    }

    fn pod_event(&mut self, event: watcher::Event<Pod>, listed: &mut Option<HashMap<String, PodView>>) {
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
                let known = self.placed.keys().chain(self.queue.keys());
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

    fn pod(&mut self, pod: PodView) {
        let key = pod.key();
        if pod.ended {
            return self.forget(&key);
        }
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

    fn changed(&mut self, change: &Changed) {
        let now = Instant::now();
        match change {
            Changed::Volumes => self.queue.wake(now, wake::VOLUMES),
            Changed::Devices => self.queue.wake(now, wake::DEVICES),
            Changed::Claim(claim) => self.queue.wake_if(now, wake::CLAIMS, |pod| {
                let mut names = pod.claims.iter().map(|name| format!("{}/{name}", pod.namespace));
                names.any(|name| name == *claim)
            }),
        }
    }

    fn profile(&self, pod: &PodView) -> Option<Arc<Profile>> {
        self.profiles.iter().find(|profile| profile.name == pod.scheduler).cloned()
    }

    fn wants(&self, pod: &PodView) -> bool {
        self.profile(pod).is_some() && !pod.gated && !pod.deleting
    }

    fn forget(&mut self, key: &str) {
        self.snapshot.withdraw(key);
        self.queue.remove(key);
        self.explained.remove(key);
        self.release(key);
    }

    /// The room of a pod is free again.
    fn release(&mut self, key: &str) {
        if let Some(placed) = self.placed.remove(key) {
            self.snapshot.give_back(&placed.node, &placed.pod);
            self.queue.wake(Instant::now(), wake::POD_GONE);
        }
    }

    /// Decides for some pods. True if there may be more.
    fn decide(&mut self) -> bool {
        for _ in 0..BATCH {
            let Ok(slot) = self.slots.clone().try_acquire_owned() else { return false };
            let Some(pod) = self.queue.pop() else { return false };
            let key = pod.key();
            let Some(profile) = self.profile(&pod) else { continue };
            self.turn = self.turn.wrapping_add(1);
            match choose(&pod, &profile, &self.snapshot, &self.world, self.turn) {
                Choice::Node(node) => {
                    let volumes = bind::volumes(&pod, &node, &self.snapshot, &self.world);
                    if volumes.is_empty() {
                        match self.grants(&pod, &node) {
                            Some(grants) => self.bind(pod, node, grants, slot),
                            None => self.queue.retry(pod, Instant::now()),
                        }
                    } else {
                        // It is tried again when its claims have their volumes; the node is fixed by then.
                        self.queue.park(&key, Instant::now());
                        let (client, ended) = (self.client.clone(), self.ended.clone());
                        tokio::spawn(async move {
                            let done = bind::bind_volumes(&client, &pod, &node, &volumes).await;
                            drop(slot);
                            if let Err(error) = done {
                                tracing::warn!(pod = pod.key(), error = format!("{error:#}"), "bind volumes");
                            }
                            let _ = ended.send(Ended::Done);
                        });
                    }
                }
                Choice::None { why, curable, nodes, wakes } => {
                    self.queue.sleep(&key, Instant::now(), wakes);
                    self.choose_devices_anew(&pod);
                    let (preemption, why) = if profile.preempts {
                        match preempt(&pod, &profile, &curable, nodes, &self.snapshot, &self.world) {
                            Ok(found) => (Some(found), why),
                            Err(words) if nodes > 0 => (None, format!("{why} preemption: {words}")),
                            Err(_) => (None, why),
                        }
                    } else {
                        (None, why)
                    };
                    self.explain(pod, why, preemption, slot);
                }
            }
        }
        true
    }

    /// What claims of devices are to be told before a pod is bound; those devices are nobody else's from now on.
    fn grants(&self, pod: &PodView, node: &str) -> Option<Vec<Grant>> {
        if pod.devices.is_empty() {
            return Some(Vec::new());
        }
        let grants = Claims::of(pod, &self.world).ok()?.grants(pod, self.snapshot.room(node)?)?;
        let mut promised = self.world.promised.lock();
        for grant in &grants {
            if let Some(allocation) = &grant.allocation {
                promised.insert(grant.claim.uid().to_owned(), allocation.clone());
            }
        }
        Some(grants)
    }

    /// A pod that fits nowhere lets go the devices that only it has: others may be had where it fits.
    fn choose_devices_anew(&self, pod: &PodView) {
        if pod.devices.is_empty() {
            return;
        }
        let loose = Claims::of(pod, &self.world).map(|claims| claims.loose(pod)).unwrap_or_default();
        if loose.is_empty() {
            return;
        }
        let (client, key) = (self.client.clone(), pod.key());
        tokio::spawn(async move {
            if let Err(error) = bind::take_back(&client, &loose).await {
                tracing::debug!(pod = key, error = format!("{error:#}"), "take devices back");
            }
        });
    }

    fn bind(&mut self, pod: PodView, node: String, grants: Vec<Grant>, slot: OwnedSemaphorePermit) {
        let key = pod.key();
        let pod = Arc::new(pod);
        self.queue.remove(&key);
        self.snapshot.take(&node, &pod);
        self.placed.insert(key, Placed { node: node.clone(), pod: pod.clone(), newer: None });
        let (client, ended) = (self.client.clone(), self.ended.clone());
        let promised = self.world.promised.clone();
        tokio::spawn(async move {
            let granted = bind::grant(&client, &pod, &grants).await;
            if granted.is_err() {
                let mut promised = promised.lock();
                grants.iter().for_each(|grant| drop(promised.remove(grant.claim.uid())));
            }
            let bound = match granted {
                Ok(()) => bind::bind(&client, &pod, &node).await,
                Err(error) => Err(error),
            };
            drop(slot);
            let _ = ended.send(match bound {
                Ok(()) => Ended::Done,
                Err(error) => Ended::Unbound((*pod).clone(), format!("{error:#}")),
            });
        });
    }

    // Says why a pod waits, once for each reason, and makes room for it where that helps.
    fn explain(
        &mut self,
        pod: PodView,
        why: String,
        preemption: Option<Preemption>,
        slot: OwnedSemaphorePermit,
    ) {
        let told = (pod.uid.clone(), why.clone());
        let said = self.explained.insert(pod.key(), told.clone()).as_ref() == Some(&told);
        if said && preemption.is_none() {
            return;
        }
        if let Some(found) = &preemption {
            self.snapshot.nominate(&found.node, &Arc::new(pod.clone()));
        }
        let (client, ended) = (self.client.clone(), self.ended.clone());
        tokio::spawn(async move {
            let mut explained = if said { Ok(()) } else { bind::explain(&client, &pod, &why).await };
            if let Some(found) = preemption {
                explained = explained.and(bind::make_room(&client, &pod, &found).await);
            }
            drop(slot);
            let _ = ended.send(match explained {
                Ok(()) => Ended::Done,
                Err(error) => Ended::Unexplained(pod, format!("{error:#}")),
            });
        });
    }

    /// A write ended. A pod that could not be bound gives its room back, and is tried again if it still waits.
    fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Done => {}
            Ended::Unexplained(pod, error) => {
                tracing::debug!(pod = pod.key(), error, "explain why it waits");
                let key = pod.key();
                if self.explained.get(&key).is_some_and(|(uid, _)| *uid == pod.uid) {
                    self.explained.remove(&key);
                }
            }
            Ended::Unbound(pod, error) => {
                let key = pod.key();
                let ours = |placed: &Placed| placed.pod.uid == pod.uid && placed.pod.node.is_empty();
                if !self.placed.get(&key).is_some_and(ours) {
                    // Deleted or bound by someone else in the meantime.
                    return tracing::debug!(pod = key, error, "bind");
                }
                tracing::warn!(pod = key, error, "bind");
                let newer = self.placed.get_mut(&key).and_then(|placed| placed.newer.take());
                self.release(&key);
                let pod = newer.unwrap_or(pod);
                if self.wants(&pod) {
                    self.queue.retry(pod, Instant::now());
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "run/tests.rs"]
mod tests;
