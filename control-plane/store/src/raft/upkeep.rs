//! Keeps the log small when entries are large: raft itself counts entries only.

use std::sync::atomic::{AtomicBool, Ordering};

use openraft::Raft;
use openraft::async_runtime::WatchReceiver;

use super::Types;
use super::log::Log;
use super::state_machine::StateMachine;

pub(super) struct Upkeep {
    /// Bytes appended after which a snapshot is due.
    most: u64,
    /// Whether one was asked for, whose entries are to go.
    asked: AtomicBool,
}

impl Upkeep {
    pub fn new(most: u64) -> Self {
        Self { most, asked: AtomicBool::new(false) }
    }

    /// Asks for a snapshot when one is due, and drops the entries of the one asked for before. Called now and then.
    pub async fn run(&self, raft: &Raft<Types, StateMachine>, log: &Log) {
        let due = log.appended() >= self.most;
        let asked = self.asked.swap(due, Ordering::Relaxed);
        let snapshot = raft.metrics().borrow_watched().snapshot.map(|id| id.index);
        // An error says that raft has ended, which others notice by themselves.
        if let (true, Some(upto)) = (asked, snapshot) {
            let _ = raft.trigger().purge_log(upto).await;
        }
        if due {
            log.forget_appended();
            let _ = raft.trigger().snapshot().await;
        }
    }
}
