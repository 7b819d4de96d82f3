//! The loop: watches pods and nodes, decides one pod after the other, binds many at a time.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::Configuration;
use crate::profile::Profile;
use crate::queue::Queue;
use crate::snapshot::Snapshot;
use crate::view::{Pod, PodView};
use crate::world::World;

mod decided;
mod gangs;
mod watched;

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
    groups: gangs::Groups,
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
    /// The group, and why.
    GroupUntold(String, String),
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
        groups: gangs::Groups::default(),
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
    fn profile(&self, pod: &PodView) -> Option<Arc<Profile>> {
        self.profiles.iter().find(|profile| profile.name == pod.scheduler).cloned()
    }

    fn wants(&self, pod: &PodView) -> bool {
        self.profile(pod).is_some() && !pod.gated && !pod.deleting
    }
}

#[cfg(test)]
mod tests;
