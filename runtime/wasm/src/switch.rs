//! A flag that is turned on once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// Turned on once, for good. Each request looks at it several times, so that looking is one load; a `CancellationToken` takes
/// a lock, which all connections share.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<State>);

#[derive(Default)]
struct State {
    on: AtomicBool,
    waiting: Notify,
}

impl Switch {
    /// Turns it on and wakes who waits for that.
    pub fn turn_on(&self) {
        self.0.on.store(true, Ordering::SeqCst);
        self.0.waiting.notify_waiters();
    }

    /// Whether it has been turned on. In one order with other `SeqCst` operations: see [`crate::handler::Handler::enter`].
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::SeqCst)
    }

    /// Waits until it has been turned on.
    pub async fn turned_on(&self) {
        let mut waiting = std::pin::pin!(self.0.waiting.notified());
        // Who turns it on from now on wakes this one.
        waiting.as_mut().enable();
        if !self.is_on() {
            waiting.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_and_who_comes_later_hears_of_it() {
        let switch = Switch::default();
        let waiting = tokio::spawn({
            let switch = switch.clone();
            async move { switch.turned_on().await }
        });
        tokio::task::yield_now().await;
        assert!(!switch.is_on() && !waiting.is_finished());
        switch.turn_on();
        waiting.await.unwrap();
        switch.turned_on().await;
        assert!(switch.is_on());
    }
}
