//! Linear memory and tables of a container's instances, counted together against one limit.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use wasmtime::ResourceLimiterAsync;

/// The most elements of one table.
const MAX_TABLE: usize = 1 << 20;

/// What a container's instances hold together.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Bytes; `u64::MAX` for none.
    limit: AtomicU64,
    held: AtomicUsize,
    exceeded: AtomicBool,
}

impl Account {
    /// An account with this limit in bytes, or none.
    pub fn new(limit: Option<u64>) -> Arc<Account> {
        let account = Account::default();
        account.limit.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
        Arc::new(account)
    }

    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit != u64::MAX)
    }

    /// Sets another limit, unless more than that is held: `Err` is how much.
    pub fn set_limit(&self, limit: Option<u64>) -> Result<(), usize> {
        let (held, limit) = (self.held(), limit.unwrap_or(u64::MAX));
        if held as u64 > limit {
            return Err(held);
        }
        self.limit.store(limit, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// An instance has asked for more than the limit.
    pub fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Acquire)
    }

    /// Counts bytes, of guests or of the host for them.
    pub fn take(&self, bytes: usize) -> Result<(), OverLimit> {
        let limit = self.limit.load(Ordering::Relaxed);
        let taken = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            let sum = held.checked_add(bytes)?;
            (sum as u64 <= limit).then_some(sum)
        });
        taken.map(drop).map_err(|held| {
            self.exceeded.store(true, Ordering::Release);
            OverLimit { asked: held.saturating_add(bytes), limit }
        })
    }

    /// They are free again.
    pub fn give(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// A guest asked for more memory than its container may have. Like the kernel's killer this ends it, rather than
/// tell it: a guest that lives on without the memory would mostly trap elsewhere, and less clearly.
#[derive(Debug, thiserror::Error)]
#[error("the container asked for {asked} bytes of memory; its limit is {limit}")]
pub(crate) struct OverLimit {
    asked: usize,
    limit: u64,
}

/// One instance's part of an account; gives it back when dropped.
pub(crate) struct Share {
    account: Arc<Account>,
    held: usize,
    last: usize,
}

impl Share {
    /// An empty share of `account`.
    pub fn new(account: Arc<Account>) -> Share {
        Share { account, held: 0, last: 0 }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.give(self.held);
    }
}

#[wasmtime_wasi::async_trait]
impl ResourceLimiterAsync for Share {
    async fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current);
        self.account.take(more)?;
        self.held += more;
        self.last = more;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.account.give(self.last);
        self.held -= self.last;
        self.last = 0;
        Ok(())
    }

    async fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE)
    }

    fn instances(&self) -> usize {
        256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shares_count_together_and_are_given_back() {
        let account = Account::new(Some(100));
        let (mut one, mut two) = (Share::new(account.clone()), Share::new(account.clone()));
        assert!(one.memory_growing(0, 60, None).await.is_ok());
        assert!(two.memory_growing(0, 60, None).await.is_err());
        assert!(account.exceeded());
        drop(one);
        assert!(two.memory_growing(0, 60, None).await.is_ok());
        assert_eq!(account.held(), 60);
        assert!(two.memory_grow_failed(wasmtime::Error::msg("no room")).is_ok());
        assert_eq!(account.held(), 0);
    }
}
