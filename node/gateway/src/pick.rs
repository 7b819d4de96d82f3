//! Choosing the endpoint of a request, and waiting for one where a revision has none yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::forward::State;
use crate::meters::RevisionKey;
use crate::table::{Backend, BackendKey};

/// Longest wait for the first pod of a revision.
const HOLD: Duration = Duration::from_secs(60);

/// An endpoint that a request uses; given back when dropped.
pub struct Taken {
    state: Arc<State>,
    pub endpoint: SocketAddr,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.state.meters.give_back(self.endpoint);
    }
}

/// A request of a revision that counts as being here; until dropped.
pub struct Counted {
    state: Arc<State>,
    key: RevisionKey,
}

impl Counted {
    pub fn new(state: &Arc<State>, key: RevisionKey) -> Self {
        state.meters.enter(&key);
        Self { state: state.clone(), key }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.state.meters.leave(&self.key);
    }
}

/// A request that counts as waiting; until dropped.
struct Held<'a>(&'a State, &'a RevisionKey);

impl<'a> Held<'a> {
    fn new(state: &'a State, key: &'a RevisionKey) -> Self {
        state.meters.hold(key, true);
        Self(state, key)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.meters.hold(self.1, false);
    }
}

/// Why a request has no endpoint.
#[derive(Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// The Service has no ready endpoint, and nothing will start one.
    NoneReady,
    /// Too many requests wait already.
    TooManyWait,
    /// No pod was ready, or none had room, in time.
    TimedOut,
}

/// Takes the least busy endpoint of a backend but those that failed. Requests of a revision wait until one is ready and has room.
pub async fn pick(state: &Arc<State>, backend: &Backend, failed: &[SocketAddr]) -> Result<Taken, NoEndpoint> {
    if let Some(taken) = try_pick(state, &backend.key, failed) {
        return Ok(taken);
    }
    let Some(revision) = RevisionKey::of(backend) else { return Err(NoEndpoint::NoneReady) };
    let _place = state.waiting.try_acquire().map_err(|_| NoEndpoint::TooManyWait)?;
    let (mut table, mut freed) = (state.changed(), state.meters.freed());
    let _held = Held::new(state, &revision);
    let end = Instant::now() + HOLD;
    loop {
        // Looked at after the subscriptions: a change in between is not missed.
        if let Some(taken) = try_pick(state, &backend.key, failed) {
            return Ok(taken);
        }
        tokio::select! {
            _ = table.changed() => {}
            _ = freed.changed() => {}
            () = tokio::time::sleep_until(end) => return Err(NoEndpoint::TimedOut),
        }
    }
}

fn try_pick(state: &Arc<State>, key: &BackendKey, failed: &[SocketAddr]) -> Option<Taken> {
    let table = state.table();
    let backend = table.backend(key)?;
    let limit = backend.concurrency;
    let endpoint = if failed.is_empty() {
        state.meters.take(&backend.endpoints, limit, rand::random())
    } else {
        let left: Vec<_> = backend.endpoints.iter().filter(|e| !failed.contains(e)).copied().collect();
        state.meters.take(&left, limit, rand::random())
    }?;
    Some(Taken { state: state.clone(), endpoint })
}
