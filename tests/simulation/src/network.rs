//! A network between members that is none: calls are late, lost on their way there or back, or done by a member that the
//! caller has long given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use coracle_store::{Lost, Transport};
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;
use tower::ServiceExt;

/// A connection that nothing comes through is given up after so long, as the real one is by its pings.
const GIVE_UP: Duration = Duration::from_secs(6);
/// What a connection attempt waits for an answer.
const NO_ANSWER: Duration = Duration::from_secs(2);

/// The network.
pub struct Net {
    inner: Mutex<Inner>,
}

struct Inner {
    rng: StdRng,
    /// Who answers at an address, and whether that process still lives.
    listeners: BTreeMap<String, (Router, Arc<AtomicBool>)>,
    /// From whom nothing comes through to whom.
    cuts: BTreeSet<(u64, u64)>,
    /// Whose calls are lost now and then.
    lossy: BTreeSet<u64>,
    /// The longest that a message is under way, in microseconds.
    slow: u64,
}

/// The name of a member on the network.
pub fn name(id: u64) -> String {
    format!("m{id}:1")
}

impl Net {
    /// One without faults.
    pub fn new(rng: StdRng) -> Arc<Self> {
        let (listeners, cuts, lossy) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Arc::new(Self { inner: Mutex::new(Inner { rng, listeners, cuts, lossy, slow: 1500 }) })
    }

    /// Nothing comes through from one to the other.
    pub fn cut(&self, from: u64, to: u64) {
        self.inner.lock().cuts.insert((from, to));
    }

    /// A third of what this member says and hears is lost.
    pub fn lose(&self, id: u64) {
        self.inner.lock().lossy.insert(id);
    }

    /// Messages take up to so long.
    pub fn slow_down(&self, most: Duration) {
        self.inner.lock().slow = most.as_micros() as u64;
    }

    /// Everything is well again.
    pub fn heal(&self) {
        let mut inner = self.inner.lock();
        (inner.cuts, inner.lossy, inner.slow) = (BTreeSet::new(), BTreeSet::new(), 1500);
    }

    /// How long a message is under way; `None`: it is lost.
    fn way(&self, from: u64, to: u64) -> Option<Duration> {
        let mut inner = self.inner.lock();
        let slow = inner.slow;
        let mut took = inner.rng.random_range(50..slow);
        // Now and then one is far behind the others.
        if inner.rng.random_bool(0.01) {
            took *= 20;
        }
        let lossy = inner.lossy.contains(&from) || inner.lossy.contains(&to);
        let lost = lossy && inner.rng.random_bool(0.3);
        (!inner.cuts.contains(&(from, to)) && !lost).then(|| Duration::from_micros(took))
    }

    fn coin(&self) -> bool {
        self.inner.lock().rng.random_bool(0.5)
    }
}

/// What a member sees of the network.
pub struct Port {
    net: Arc<Net>,
    from: u64,
    /// Cleared when the process is killed: it hears and says nothing any more.
    alive: Arc<AtomicBool>,
}

impl Port {
    /// For a new process of a member.
    pub fn new(net: &Arc<Net>, from: u64, alive: &Arc<AtomicBool>) -> Self {
        Self { net: net.clone(), from, alive: alive.clone() }
    }
}

impl Transport for Port {
    fn serve(&self, address: &str, router: Router) {
        let listener = (router, self.alive.clone());
        self.net.inner.lock().listeners.insert(address.to_owned(), listener);
    }

    fn send(
        &self,
        address: &str,
        request: Request<Body>,
    ) -> BoxFuture<'static, Result<Response<Body>, Lost>> {
        let (net, from, address, alive) =
            (self.net.clone(), self.from, address.to_owned(), self.alive.clone());
        Box::pin(async move {
            let to = address.trim_start_matches('m').split(':').next().and_then(|id| id.parse().ok());
            let to: u64 = to.unwrap_or_default();
            let lives = |alive: &AtomicBool| alive.load(Ordering::Relaxed);
            let way = net.way(from, to).filter(|_| lives(&alive));
            let Some(way) = way else {
                // Into the void: by a connection that was there, or by one that never came to be.
                let there = net.coin();
                sleep(if there { GIVE_UP } else { NO_ANSWER }).await;
                return Err(if there { Lost::Unknown } else { Lost::Unsent });
            };
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(|_| Lost::Unsent)?.to_bytes();
            sleep(way).await;
            let listener = net.inner.lock().listeners.get(&address).cloned();
            let Some((router, there)) = listener.filter(|(_, there)| lives(there)) else {
                // Nobody listens: the machine itself says so.
                return Err(Lost::Unsent);
            };
            let request = Request::from_parts(head, Body::from(body));
            let answer = async move {
                let Ok(response) = router.oneshot(request).await;
                let (head, body) = response.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                (head, body)
            };
            // Who is asked may or may not learn that nobody waits for the answer any more.
            let (head, body): (_, Bytes) = match net.coin() {
                true => tokio::spawn(answer).await.map_err(|_| Lost::Unknown)?,
                false => answer.await,
            };
            let way = net.way(to, from).filter(|_| lives(&there) && lives(&alive));
            let Some(way) = way else {
                sleep(GIVE_UP).await;
                return Err(Lost::Unknown);
            };
            sleep(way).await;
            Ok(Response::from_parts(head, Body::from(body)))
        })
    }
}
