//! What becomes of a decision: a pod is bound, told why it waits, or gets room made for it.

use std::sync::Arc;
use std::time::Instant;

use coracle_controllers::view::Meta;
use tokio::sync::OwnedSemaphorePermit;

use super::{BATCH, Ended, Placed, Scheduler};
use crate::bind;
use crate::cycle::{Choice, choose};
use crate::devices::{Claims, Grant};
use crate::preemption::{Preemption, preempt};
use crate::view::PodView;

impl Scheduler {
    /// Decides for some pods. True if there may be more.
    pub(super) fn decide(&mut self) -> bool {
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

    pub(super) fn bind(
        &mut self,
        pod: PodView,
        node: String,
        grants: Vec<Grant>,
        slot: OwnedSemaphorePermit,
    ) {
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
    pub(super) fn explain(
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
