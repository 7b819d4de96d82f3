//! How busy each revision and each endpoint is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::table::Backend;

/// A revision of a namespace.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct RevisionKey {
    pub namespace: String,
    pub revision: String,
}

impl RevisionKey {
    /// The revision behind a backend, where there is one.
    pub fn of(backend: &Backend) -> Option<Self> {
        let revision = backend.revision.clone()?;
        Some(Self { namespace: backend.key.namespace.clone(), revision })
    }
}

/// What a gateway has seen of a revision since it started. Sums only grow, so that any number of readers can take differences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    #[serde(flatten)]
    pub key: RevisionKey,
    /// Requests times the seconds that each was here: its growth over a second is the mean concurrency.
    pub request_seconds: f64,
    /// Requests that have come.
    pub requests: u64,
    /// Requests that are here now, held ones too.
    pub in_flight: u32,
    /// Of these, how many wait for a pod.
    pub held: u32,
}

struct Meter {
    request_seconds: f64,
    at: Instant,
    requests: u64,
    in_flight: u32,
    held: u32,
}

impl Meter {
    fn advance(&mut self, now: Instant) {
        self.request_seconds += now.duration_since(self.at).as_secs_f64() * f64::from(self.in_flight);
        self.at = now;
    }
}

/// The meters of a gateway.
pub struct Meters {
    revisions: Mutex<HashMap<RevisionKey, Meter>>,
    endpoints: Mutex<HashMap<SocketAddr, u32>>,
    /// Counts the moments at which a request began to wait.
    held: watch::Sender<u64>,
    /// Counts the moments at which an endpoint became less busy.
    freed: watch::Sender<u64>,
}

impl Meters {
    pub fn new() -> Self {
        let (held, freed) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { revisions: Mutex::default(), endpoints: Mutex::default(), held, freed }
    }

    /// Notes that a request is here.
    pub fn enter(&self, key: &RevisionKey) {
        let now = Instant::now();
        let mut revisions = self.revisions.lock();
        let meter = revisions.entry(key.clone()).or_insert_with(|| Meter {
            request_seconds: 0.0,
            at: now,
            requests: 0,
            in_flight: 0,
            held: 0,
        });
        meter.advance(now);
        meter.requests += 1;
        meter.in_flight += 1;
    }

    /// Notes that a request has been answered in full, or given up.
    pub fn leave(&self, key: &RevisionKey) {
        if let Some(meter) = self.revisions.lock().get_mut(key) {
            meter.advance(Instant::now());
            meter.in_flight = meter.in_flight.saturating_sub(1);
        }
    }

    /// Notes that a request begins (`true`) or ends to wait for a pod.
    pub fn hold(&self, key: &RevisionKey, waits: bool) {
        if let Some(meter) = self.revisions.lock().get_mut(key) {
            meter.held = if waits { meter.held + 1 } else { meter.held.saturating_sub(1) };
        }
        if waits {
            self.held.send_modify(|count| *count += 1);
        }
    }

    /// Changes when a request begins to wait.
    pub fn held(&self) -> watch::Receiver<u64> {
        self.held.subscribe()
    }

    /// Changes when an endpoint becomes less busy.
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    /// The least busy of some endpoints, taken for a request, unless each already has `limit` requests (0: no limit).
    pub fn take(&self, endpoints: &[SocketAddr], limit: u32, draw: u32) -> Option<SocketAddr> {
        let mut busy = self.endpoints.lock();
        // Starts at a random one, so that equally busy ones take turns.
        let start = usize::try_from(draw).ok()?.checked_rem(endpoints.len())?;
        let (later, first) = endpoints.split_at_checked(start)?;
        let load = |endpoint: &&SocketAddr| busy.get(*endpoint).copied().unwrap_or(0);
        let chosen = *first.iter().chain(later).min_by_key(load)?;
        if limit > 0 && load(&&chosen) >= limit {
            return None;
        }
        *busy.entry(chosen).or_insert(0) += 1;
        Some(chosen)
    }

    /// Gives back what [`Self::take`] took.
    pub fn give_back(&self, endpoint: SocketAddr) {
        let mut busy = self.endpoints.lock();
        if let Some(count) = busy.get_mut(&endpoint) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                busy.remove(&endpoint);
            }
        }
        drop(busy);
        self.freed.send_modify(|count| *count += 1);
    }

    /// Every meter as it stands.
    pub fn read(&self) -> Vec<Reading> {
        let now = Instant::now();
        let mut revisions = self.revisions.lock();
        let read = revisions.iter_mut().map(|(key, meter)| {
            meter.advance(now);
            Reading {
                key: key.clone(),
                request_seconds: meter.request_seconds,
                requests: meter.requests,
                in_flight: meter.in_flight,
                held: meter.held,
            }
        });
        read.collect()
    }

    /// Forgets revisions that no route leads to and no request waits for.
    pub fn retain(&self, routed: impl Fn(&RevisionKey) -> bool) {
        self.revisions.lock().retain(|key, meter| meter.in_flight > 0 || routed(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 64, 0, last], 8080))
    }

    #[test]
    fn the_least_busy_endpoint_is_taken_until_all_are_full() {
        let meters = Meters::new();
        let endpoints = [address(1), address(2)];
        let mut taken: Vec<_> = (0..4).filter_map(|draw| meters.take(&endpoints, 2, draw)).collect();
        taken.sort();
        assert_eq!(taken, [address(1), address(1), address(2), address(2)]);
        assert_eq!(meters.take(&endpoints, 2, 0), None);
        meters.give_back(address(2));
        assert_eq!(meters.take(&endpoints, 2, 0), Some(address(2)));
        assert_eq!(meters.take(&[], 0, 3), None);
    }

    #[test]
    fn sums_grow_while_requests_are_here() {
        let meters = Meters::new();
        let key = RevisionKey { namespace: "a".into(), revision: "r".into() };
        meters.enter(&key);
        meters.enter(&key);
        meters.hold(&key, true);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let reading = meters.read().pop().expect("a reading");
        assert!(reading.request_seconds >= 0.04, "{reading:?}");
        assert_eq!((reading.requests, reading.in_flight, reading.held), (2, 2, 1));
        meters.hold(&key, false);
        meters.leave(&key);
        meters.retain(|_| false);
        assert_eq!(meters.read().len(), 1, "a request is still here");
        meters.leave(&key);
        meters.retain(|_| false);
        assert!(meters.read().is_empty());
    }
}
