//! Devices for pods that claim them (`resource.k8s.io`, structured parameters): which claims a pod has, what is offered, and
//! which devices a claim gets on a node. Pure but for the list of what is promised and not yet seen in the API.

mod requests;
mod search;
mod selectors;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_controllers::placement::matches;
use coracle_controllers::view::{Meta, ResourceClaim, ResourceSlice};
use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{
    AllocationResult, Device, DeviceAllocationConfiguration, DeviceToleration,
};

use crate::snapshot::Room;
use crate::view::PodView;
use crate::world::World;

/// Most users of a claim.
const USERS: usize = 256;

/// Driver, pool and name of a device.
pub type DeviceId = (String, String, String);

/// Allocations that are decided and that the API does not show yet, by the claim's uid.
pub type Promised = HashMap<String, AllocationResult>;

/// From where a device can be reached.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    Node(String),
    Some(NodeSelector),
    Everywhere,
}

impl Place {
    fn of(all: Option<bool>, node: Option<&String>, selector: Option<&NodeSelector>) -> Option<Self> {
        match (node, selector, all) {
            (Some(node), _, _) => Some(Self::Node(node.clone())),
            (None, Some(selector), _) => Some(Self::Some(selector.clone())),
            (None, None, Some(true)) => Some(Self::Everywhere),
            _ => None,
        }
    }

    fn has(&self, room: &Room) -> bool {
        match self {
            Self::Node(node) => *node == room.node.name,
            Self::Some(selector) => matches(selector, &room.node.labels, &room.node.name),
            Self::Everywhere => true,
        }
    }
}

/// A device that a driver offers.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    id: DeviceId,
    device: Device,
    place: Place,
    /// Somebody has it.
    taken: bool,
}

/// One way to meet a request.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// The request, with its subrequest behind a slash.
    name: String,
    /// None: all that match.
    count: Option<usize>,
    admin: bool,
    /// The offers that match, by their place in the list.
    offers: Vec<usize>,
    tolerations: Vec<DeviceToleration>,
    config: Vec<DeviceAllocationConfiguration>,
}

/// A claim without devices, and the ways to meet each of its requests.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    claim: Arc<ResourceClaim>,
    requests: Vec<Vec<Way>>,
}

/// The claims of a pod, and what could be given to them.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Those that have devices, with their allocation.
    held: Vec<(Arc<ResourceClaim>, AllocationResult)>,
    wanted: Vec<Wanted>,
    offers: Vec<Offer>,
}

/// What is to be written to a claim before its pod is bound.
#[derive(Clone, Debug)]
pub struct Grant {
    pub claim: Arc<ResourceClaim>,
    /// None: it has its devices.
    pub allocation: Option<AllocationResult>,
}

impl Claims {
    /// The claims of a pod.
    ///
    /// # Errors
    /// Why the pod can be on no node now, in Kubernetes' words.
    pub fn of(pod: &PodView, world: &World) -> Result<Self, String> {
        let mut this = Self::default();
        if pod.devices.is_empty() {
            return Ok(this);
        }
        let promised = world.promised.lock().clone();
        let mut wanted = Vec::new();
        for (entry, name) in &pod.devices {
            let name = name.as_ref().ok_or_else(|| {
                format!("waiting for dynamic resource controller to create the resourceclaim \"{entry}\"")
            })?;
            let claim = world.resource_claims.get(&format!("{}/{name}", pod.namespace));
            let claim = claim.ok_or_else(|| format!("resourceclaim \"{name}\" not found"))?;
            if claim.is_terminating() {
                return Err(format!("resourceclaim \"{name}\" is being deleted"));
            }
            if claim.controller().is_some_and(|owner| owner.kind == "Pod" && owner.uid != pod.uid) {
                return Err(format!("resourceclaim \"{name}\" was not created for the pod"));
            }
            match claim.status.allocation.clone().or_else(|| promised.get(claim.uid()).cloned()) {
                Some(_)
                    if claim.status.reserved_for.iter().flatten().count() >= USERS
                        && !claim.is_reserved_for(&pod.uid) =>
                {
                    return Err(format!("resourceclaim \"{name}\" in use"));
                }
                Some(allocation) => this.held.push((claim, allocation)),
                None => wanted.push(claim),
            }
        }
        if !wanted.is_empty() {
            this.offers = offers(world, &promised);
            for claim in wanted {
                let requests = requests::requests(&claim, &this.offers, world)?;
                this.wanted.push(Wanted { claim, requests });
            }
        }
        Ok(this)
    }

    /// Why a node cannot take the pod.
    pub fn refuse(&self, room: &Room) -> Option<&'static str> {
        let elsewhere = self.held.iter().any(|(_, allocation)| {
            let selector = allocation.node_selector.as_ref();
            selector.is_some_and(|selector| !matches(selector, &room.node.labels, &room.node.name))
        });
        if elsewhere {
            return Some("resourceclaim not available on the node");
        }
        search::allocate(&self.wanted, &self.offers, room).is_none().then_some("cannot allocate all claims")
    }

    /// What must be written to the claims before the pod is bound to a node; None where they do not fit any more.
    pub fn grants(&self, pod: &PodView, room: &Room) -> Option<Vec<Grant>> {
        let mut grants: Vec<Grant> = search::allocate(&self.wanted, &self.offers, room)?
            .into_iter()
            .zip(&self.wanted)
            .map(|(allocation, wanted)| Grant { claim: wanted.claim.clone(), allocation: Some(allocation) })
            .collect();
        let unreserved = self.held.iter().filter(|(claim, _)| !claim.is_reserved_for(&pod.uid));
        // Of one that is promised to another pod nothing is known to add to: that other write comes first.
        grants.extend(unreserved.map(|(claim, _)| Grant { claim: claim.clone(), allocation: None }));
        Some(grants)
    }

    /// Claims whose devices nobody but this pod keeps: they may be chosen anew where the pod fits nowhere.
    pub fn loose(&self, pod: &PodView) -> Vec<Arc<ResourceClaim>> {
        let others = |claim: &ResourceClaim| {
            claim.status.reserved_for.iter().flatten().any(|user| user.uid != pod.uid)
        };
        let held = self.held.iter().map(|(claim, _)| claim);
        held.filter(|claim| claim.status.allocation.is_some() && !others(claim)).cloned().collect()
    }
}

/// The devices of complete pools, in the order of their names.
fn offers(world: &World, promised: &Promised) -> Vec<Offer> {
    let mut pools: BTreeMap<(String, String), Vec<Arc<ResourceSlice>>> = BTreeMap::new();
    for slice in world.resource_slices.all() {
        pools.entry((slice.spec.driver.clone(), slice.spec.pool.name.clone())).or_default().push(slice);
    }
    let taken = taken(world, promised);
    let mut offers = Vec::new();
    for ((driver, pool), mut slices) in pools {
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max().unwrap_or(0);
        slices.retain(|slice| slice.spec.pool.generation == newest);
        let complete = slices.first().is_some_and(|slice| {
            usize::try_from(slice.spec.pool.resource_slice_count).is_ok_and(|count| slices.len() == count)
        });
        if !complete {
            continue;
        }
        slices.sort_by(|a, b| a.name().cmp(b.name()));
        for (slice, device) in
            slices.iter().flat_map(|s| s.spec.devices.iter().flatten().map(move |d| (s, d)))
        {
            let of = &slice.spec;
            let place = if of.per_device_node_selection == Some(true) {
                Place::of(device.all_nodes, device.node_name.as_ref(), device.node_selector.as_ref())
            } else {
                Place::of(of.all_nodes, of.node_name.as_ref(), of.node_selector.as_ref())
            };
            // What a part of a device takes of the whole is not counted here: parts are left alone.
            let counts = device.consumes_counters.as_ref().is_some_and(|c| !c.is_empty());
            let Some(place) = place.filter(|_| !counts) else { continue };
            let id = (driver.clone(), pool.clone(), device.name.clone());
            let taken = taken.contains(&id);
            offers.push(Offer { id, device: device.clone(), place, taken });
        }
    }
    offers
}

/// The devices that claims have, but for those with administrators' access.
fn taken(world: &World, promised: &Promised) -> HashSet<DeviceId> {
    let claims = world.resource_claims.all();
    let shown = claims.iter().filter_map(|claim| claim.status.allocation.as_ref());
    let results = shown.chain(promised.values()).filter_map(|one| one.devices.as_ref());
    let results = results.flat_map(|devices| devices.results.iter().flatten());
    let used = results.filter(|result| result.admin_access != Some(true));
    used.map(|r| (r.driver.clone(), r.pool.clone(), r.device.clone())).collect()
}
