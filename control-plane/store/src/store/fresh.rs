//! Reads at a freshness that the caller names.

use std::time::Duration;

use futures::FutureExt;

use super::{Engine, Store};
use crate::{Error, Freshness, Range, RangeResponse};

/// How long a revision is waited for that has not come yet.
const AHEAD: Duration = Duration::from_secs(3);

impl Store {
    /// Returns when reads from this member's memory are as fresh as asked.
    ///
    /// # Errors
    /// [`Error::FutureRevision`] for a revision that did not come within three seconds; otherwise as
    /// [`Self::linearizable`].
    pub async fn fresh(&self, freshness: Freshness) -> Result<(), Error> {
        match freshness {
            Freshness::Linearizable => self.linearizable().await,
            Freshness::AtLeast(revision) => self.at_least(revision).await,
            Freshness::Within(age) => {
                self.machine.hub.check()?;
                match &*self.engine {
                    Engine::Memory(_) => Ok(()),
                    Engine::Raft(node) if node.handle.is_alone() => Ok(()),
                    Engine::Raft(node) => node.handle.fresh_within(age).boxed().await,
                }
            }
        }
    }

    /// The keys of a range, as fresh as asked, all at one revision.
    ///
    /// # Errors
    /// Those of [`Self::fresh`] and [`Self::range`].
    pub async fn read(&self, range: &Range, freshness: Freshness) -> Result<RangeResponse, Error> {
        self.fresh(freshness).await?;
        self.range(range)
    }

    async fn at_least(&self, revision: u64) -> Result<(), Error> {
        let hub = &self.machine.hub;
        let reached = async {
            loop {
                let moved = hub.moved.notified();
                if self.revision() >= revision {
                    return Ok(());
                }
                hub.check()?;
                moved.await;
            }
        };
        match tokio::time::timeout(AHEAD, reached).await {
            Ok(reached) => reached,
            Err(_) => Err(Error::FutureRevision { requested: revision, current: self.revision() }),
        }
    }
}
