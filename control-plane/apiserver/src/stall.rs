//! A reader that takes nothing of a stream for long loses its connection, so that what waits for it is let go.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How often a stream is looked at by default. One that hands out nothing between two looks is cut off.
pub(crate) const PERIOD: Duration = Duration::from_secs(30);

/// The connection that a call came over.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Ends it.
    pub end: CancellationToken,
    pub period: Duration,
}

/// Counts the turns of one stream: odd while a piece was handed out and the next was not asked for.
pub(crate) struct Turns(Option<Arc<AtomicU64>>);

impl Turns {
    /// Looks after a stream that goes over this connection; nobody does where there is none.
    pub fn of(connection: Option<&Connection>) -> Self {
        let Some(connection) = connection.cloned() else { return Self(None) };
        let turns = Arc::<AtomicU64>::default();
        tokio::spawn(look(Arc::downgrade(&turns), connection));
        Self(Some(turns))
    }

    /// The reader asks for the next piece.
    pub fn asked(&self) {
        if let Some(turns) = &self.0 {
            let turn = turns.load(Ordering::Relaxed);
            turns.store(turn + turn % 2, Ordering::Relaxed);
        }
    }

    /// It is handed out.
    pub fn given(&self) {
        if let Some(turns) = &self.0 {
            turns.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn look(turns: Weak<AtomicU64>, connection: Connection) {
    let mut seen = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(connection.period) => {}
            () = connection.end.cancelled() => return,
        }
        let Some(turn) = turns.upgrade().map(|t| t.load(Ordering::Relaxed)) else { return };
        if turn % 2 == 1 && seen == Some(turn) {
            tracing::info!("a client that does not read is cut off");
            return connection.end.cancel();
        }
        seen = Some(turn);
    }
}
