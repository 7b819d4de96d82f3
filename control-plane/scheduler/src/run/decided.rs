//! What becomes of a decision: a pod is bound, told why it waits, or gets room made for it.

use std::sync::Arc;
use std::time::Instant;

use coracle_controllers::view::Meta;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{BATCH, Ended, Placed, Scheduler};
use crate::bind::{self, VolumeBinding};
use crate::cycle::{Choice, choose};
use crate::devices::{Claims, Grant};
use crate::plugins::gang_scheduling::Gate;
use crate::preemption::{Preemption, preempt};
use crate::profile::Profile;
use crate::view::PodView;
use crate::wake;

/// A write that may be under way; where there is none yet, it is waited for.
pub(super) type Slot = Option<OwnedSemaphorePermit>;

/// A pod that has a node and is not bound yet.
pub(super) struct Reserved {
    pub pod: Arc<PodView>,
    pub node: String,
    pub grants: Vec<Grant>,
    /// What must be bound before it.
    pub volumes: Vec<VolumeBinding>,
}

/// A pod that no node would take.
pub(super) struct Refused {
    pub pod: PodView,
    pub why: String,
    pub curable: Vec<String>,
    pub nodes: usize,
    pub wakes: u32,
}

impl Scheduler {
    /// Decides for some pods. True if there may be more.
    pub(super) fn decide(&mut self) -> bool {
        for _ in 0..BATCH {
            let Ok(slot) = self.slots.clone().try_acquire_owned() else { return false };
            let Some(pod) = self.queue.pop() else { return false };
            let Some(profile) = self.profile(&pod) else { continue };
            match self.gate(&pod, &profile) {
                Gate::Alone => match self.reserve(pod, &profile) {
                    Ok(reserved) => self.commit(reserved, Some(slot)),
                    Err(refused) => self.refuse(*refused, &profile, Some(slot)),
                },
                Gate::Together(least) => {
                    drop(slot);
                    self.decide_together(&pod, least, &profile);
                }
                Gate::Closed(why) => {
                    self.queue.park(&pod.key(), Instant::now(), wake::GROUP);
                    self.explain(pod, why, None, Some(slot));
                }
            }
        }
        true
    }

    /// Chooses a node for a pod and takes its room there.
    pub(super) fn reserve(&mut self, pod: PodView, profile: &Profile) -> Result<Reserved, Box<Refused>> {
        self.turn = self.turn.wrapping_add(1);
        let node = match choose(&pod, profile, &self.snapshot, &self.world, self.turn) {
            Choice::Node(node) => node,
            Choice::None { why, curable, nodes, wakes } => {
                return Err(Box::new(Refused { pod, why, curable, nodes, wakes }));
            }
        };
        let volumes = bind::volumes(&pod, &node, &self.snapshot, &self.world);
        let grants = if volumes.is_empty() { self.grants(&pod, &node) } else { Some(Vec::new()) };
        let Some(grants) = grants else {
            let why = "the devices of its claims have just been given to others".to_owned();
            let refused = Refused { pod, why, curable: Vec::new(), nodes: 0, wakes: wake::DEVICES };
            return Err(Box::new(refused));
        };
        let pod = Arc::new(pod);
        self.snapshot.take(&node, &pod);
        self.placed.insert(pod.key(), Placed { node: node.clone(), pod: pod.clone(), newer: None });
        Ok(Reserved { pod, node, grants, volumes })
    }

    /// Gives a reserved pod's room back.
    pub(super) fn unreserve(&mut self, reserved: &Reserved) {
        self.placed.remove(&reserved.pod.key());
        self.snapshot.give_back(&reserved.node, &reserved.pod);
        self.world.forget_promises(&reserved.grants);
    }

    /// Binds a reserved pod, or first its volumes.
    pub(super) fn commit(&mut self, reserved: Reserved, slot: Slot) {
        if reserved.volumes.is_empty() {
            return self.bind(reserved, slot);
        }
        // It is tried again when its claims have their volumes; the node is fixed by then.
        self.unreserve(&reserved);
        self.queue.park(&reserved.pod.key(), Instant::now(), wake::ANYTHING);
        let (client, ended, slots) = (self.client.clone(), self.ended.clone(), self.slots.clone());
        tokio::spawn(async move {
            let slot = had(slot, slots).await;
            let Reserved { pod, node, volumes, .. } = reserved;
            let done = bind::bind_volumes(&client, &pod, &node, &volumes).await;
            drop(slot);
            if let Err(error) = done {
                tracing::warn!(pod = pod.key(), error = format!("{error:#}"), "bind volumes");
            }
            let _ = ended.send(Ended::Done);
        });
    }

    /// Says why a pod waits, and makes room for it where that helps.
    pub(super) fn refuse(&mut self, refused: Refused, profile: &Profile, slot: Slot) {
        let Refused { pod, mut why, curable, nodes, wakes } = refused;
        self.queue.sleep(&pod.key(), Instant::now(), wakes);
        self.choose_devices_anew(&pod);
        let mut preemption = None;
        if profile.preempts {
            match preempt(&pod, profile, &curable, nodes, &self.snapshot, &self.world) {
                Ok(found) => preemption = Some(found),
                Err(words) if nodes > 0 => why = format!("{why} preemption: {words}"),
                Err(_) => {}
            }
        }
        self.explain(pod, why, preemption, slot);
    }

    /// What claims of devices are to be told before a pod is bound; those devices are nobody else's from now on.
    pub(super) fn grants(&self, pod: &PodView, node: &str) -> Option<Vec<Grant>> {
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
    pub(super) fn choose_devices_anew(&self, pod: &PodView) {
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

    fn bind(&mut self, reserved: Reserved, slot: Slot) {
        self.queue.remove(&reserved.pod.key());
        let (client, ended, slots) = (self.client.clone(), self.ended.clone(), self.slots.clone());
        let world = self.world.clone();
        tokio::spawn(async move {
            let slot = had(slot, slots).await;
            let Reserved { pod, node, grants, .. } = reserved;
            let granted = bind::grant(&client, &pod, &grants).await;
            if granted.is_err() {
                world.forget_promises(&grants);
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
    pub(super) fn explain(&mut self, pod: PodView, why: String, preemption: Option<Preemption>, slot: Slot) {
        let told = (pod.uid.clone(), why.clone());
        let said = self.explained.insert(pod.key(), told.clone()).as_ref() == Some(&told);
        if said && preemption.is_none() {
            return;
        }
        if let Some(found) = &preemption {
            self.snapshot.nominate(&found.node, &Arc::new(pod.clone()));
        }
        let (client, ended, slots) = (self.client.clone(), self.ended.clone(), self.slots.clone());
        tokio::spawn(async move {
            let slot = had(slot, slots).await;
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
    pub(super) fn ended(&mut self, ended: Ended) {
        match ended {
            Ended::Done => {}
            Ended::Unexplained(pod, error) => {
                tracing::debug!(pod = pod.key(), error, "explain why it waits");
                let key = pod.key();
                if self.explained.get(&key).is_some_and(|(uid, _)| *uid == pod.uid) {
                    self.explained.remove(&key);
                }
            }
            Ended::GroupUntold(group, error) => {
                tracing::debug!(group, error, "say how a group fares");
                self.groups.forget_told(&group);
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

/// The permit to write; none only where nobody writes any more.
async fn had(slot: Slot, slots: Arc<Semaphore>) -> Slot {
    match slot {
        Some(slot) => Some(slot),
        None => slots.acquire_owned().await.ok(),
    }
}
