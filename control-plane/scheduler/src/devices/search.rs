//! Which devices each claim gets on a node: tried one after the other, and taken back where the rest does not fit.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationResult, DeviceAttribute, DeviceConstraint,
    DeviceRequestAllocationResult,
};

use super::{Offer, Place, Wanted, Way};
use crate::snapshot::Room;

/// Most devices of a claim.
const RESULTS: usize = 32;
/// Most tries for a node: what has not been found by then counts as not there.
const TRIES: usize = 20_000;

/// A device that is tried for a request.
#[derive(Clone, Copy)]
struct Tried<'a> {
    claim: usize,
    way: &'a Way,
    offer: usize,
}

struct Search<'a> {
    wanted: &'a [Wanted],
    offers: &'a [Offer],
    /// The offers that the node can reach.
    here: HashSet<usize>,
    used: HashSet<usize>,
    tried: Vec<Tried<'a>>,
    tries: usize,
}

/// An allocation for each claim, or None where the node cannot meet all.
pub(crate) fn allocate(wanted: &[Wanted], offers: &[Offer], room: &Room) -> Option<Vec<AllocationResult>> {
    if wanted.is_empty() {
        return Some(Vec::new());
    }
    let here =
        offers.iter().enumerate().filter(|(_, offer)| offer.place.has(room)).map(|(at, _)| at).collect();
    let mut search = Search { wanted, offers, here, used: HashSet::new(), tried: Vec::new(), tries: 0 };
    if !search.request(0, 0) {
        return None;
    }
    Some((0..wanted.len()).map(|claim| search.result(claim, room)).collect())
}

/// An attribute of a device by its full name; one without a domain is of the driver's.
fn attribute<'a>(offer: &'a Offer, name: &str) -> Option<&'a DeviceAttribute> {
    let all = offer.device.attributes.as_ref()?;
    let short = name.strip_prefix(&offer.id.0).and_then(|rest| rest.strip_prefix('/'));
    all.get(name).or_else(|| all.get(short?))
}

impl<'a> Search<'a> {
    // From this request of this claim on to the end.
    fn request(&mut self, claim: usize, request: usize) -> bool {
        let Some(wanted) = self.wanted.get(claim) else { return true };
        let Some(ways) = wanted.requests.get(request) else { return self.request(claim + 1, 0) };
        ways.iter().any(|way| match way.count {
            Some(count) => self.pick(claim, request, way, 0, count),
            None => self.all(claim, request, way),
        })
    }

    fn free(&self, way: &Way, offer: usize) -> bool {
        let taken = self.offers.get(offer).is_none_or(|offer| offer.taken);
        self.here.contains(&offer) && (way.admin || !(taken || self.used.contains(&offer)))
    }

    // So many of the devices that match, from this one on.
    fn pick(&mut self, claim: usize, request: usize, way: &'a Way, from: usize, left: usize) -> bool {
        if left == 0 {
            return self.request(claim, request + 1);
        }
        for (at, offer) in way.offers.iter().enumerate().skip(from) {
            self.tries += 1;
            if self.tries > TRIES {
                return false;
            }
            if !self.free(way, *offer) || !self.agrees(claim, way, *offer) {
                continue;
            }
            self.take(claim, way, *offer);
            if self.pick(claim, request, way, at + 1, left - 1) {
                return true;
            }
            self.take_back();
        }
        false
    }

    // Every device of the node that matches, if each is free.
    fn all(&mut self, claim: usize, request: usize, way: &'a Way) -> bool {
        let matching: Vec<usize> =
            way.offers.iter().filter(|offer| self.here.contains(offer)).copied().collect();
        let before = self.tried.len();
        for offer in &matching {
            self.tries += 1;
            if !self.free(way, *offer) || !self.agrees(claim, way, *offer) {
                break;
            }
            self.take(claim, way, *offer);
        }
        if !matching.is_empty()
            && self.tried.len() == before + matching.len()
            && self.request(claim, request + 1)
        {
            return true;
        }
        while self.tried.len() > before {
            self.take_back();
        }
        false
    }

    fn take(&mut self, claim: usize, way: &'a Way, offer: usize) {
        self.tried.push(Tried { claim, way, offer });
        if !way.admin {
            self.used.insert(offer);
        }
    }

    fn take_back(&mut self) {
        if let Some(last) = self.tried.pop()
            && !last.way.admin
        {
            self.used.remove(&last.offer);
        }
    }

    // Whether a device goes with those that its claim has.
    fn agrees(&self, claim: usize, way: &Way, offer: usize) -> bool {
        let own = || self.tried.iter().filter(move |tried| tried.claim == claim);
        if own().count() >= RESULTS {
            return false;
        }
        let spec = self.wanted.get(claim).and_then(|wanted| wanted.claim.spec.devices.as_ref());
        let constraints = spec.and_then(|devices| devices.constraints.as_deref()).unwrap_or_default();
        let Some(new) = self.offers.get(offer) else { return false };
        let about = |constraint: &DeviceConstraint, way: &Way| {
            let main = way.name.split('/').next().unwrap_or_default();
            let named = constraint.requests.as_deref().unwrap_or_default();
            named.is_empty() || named.iter().any(|name| *name == way.name || name == main)
        };
        constraints.iter().filter(|constraint| about(constraint, way)).all(|constraint| {
            let (name, same) = match (&constraint.match_attribute, &constraint.distinct_attribute) {
                (Some(name), _) => (name, true),
                (None, Some(name)) => (name, false),
                (None, None) => return false,
            };
            let Some(value) = attribute(new, name) else { return false };
            own().filter(|tried| about(constraint, tried.way)).all(|tried| {
                let other = self.offers.get(tried.offer).and_then(|other| attribute(other, name));
                (other == Some(value)) == same
            })
        })
    }

    fn result(&self, claim: usize, room: &Room) -> AllocationResult {
        let own: Vec<&Tried<'_>> = self.tried.iter().filter(|tried| tried.claim == claim).collect();
        let mut config = Vec::new();
        for one in own.iter().flat_map(|tried| &tried.way.config) {
            if !config.contains(one) {
                config.push(one.clone());
            }
        }
        let results = own.iter().filter_map(|tried| {
            let (driver, pool, device) = self.offers.get(tried.offer)?.id.clone();
            let tolerations = Some(tried.way.tolerations.clone()).filter(|all| !all.is_empty());
            let admin_access = tried.way.admin.then_some(true);
            let request = tried.way.name.clone();
            Some(DeviceRequestAllocationResult {
                request,
                driver,
                pool,
                device,
                admin_access,
                tolerations,
                ..Default::default()
            })
        });
        let devices = DeviceAllocationResult {
            results: Some(results.collect()),
            config: Some(config).filter(|all| !all.is_empty()),
        };
        let places = own.iter().filter_map(|tried| self.offers.get(tried.offer)).map(|offer| &offer.place);
        AllocationResult { devices: Some(devices), node_selector: reach(places, room), ..Default::default() }
    }
}

/// The nodes from which all of these places can be reached; None is all.
fn reach<'a>(places: impl Iterator<Item = &'a Place>, room: &Room) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for place in places {
        match place {
            Place::Everywhere => {}
            Place::Node(_) => {
                let name = NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![room.node.name.clone()]),
                };
                return Some(NodeSelector {
                    node_selector_terms: vec![NodeSelectorTerm {
                        match_fields: Some(vec![name]),
                        match_expressions: None,
                    }],
                });
            }
            Place::Some(selector) => {
                // The API takes one term.
                for one in selector.node_selector_terms.iter().take(1) {
                    let (fields, labels) = (term.match_fields.get_or_insert_default(), &one.match_fields);
                    fields.extend(
                        labels.iter().flatten().filter(|r| !fields.contains(r)).cloned().collect::<Vec<_>>(),
                    );
                    let labels = term.match_expressions.get_or_insert_default();
                    let new: Vec<_> = one
                        .match_expressions
                        .iter()
                        .flatten()
                        .filter(|r| !labels.contains(r))
                        .cloned()
                        .collect();
                    labels.extend(new);
                }
            }
        }
    }
    term.match_fields = term.match_fields.filter(|all| !all.is_empty());
    term.match_expressions = term.match_expressions.filter(|all| !all.is_empty());
    (term != NodeSelectorTerm::default()).then(|| NodeSelector { node_selector_terms: vec![term] })
}
