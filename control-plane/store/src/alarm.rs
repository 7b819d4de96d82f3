//! What is wrong with a member although it still works: told as conditions and as metrics before it becomes worse.

use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::Stats;

/// With less room than this on its disk a member says so; with none, it stops at its next write.
const LITTLE_ROOM: u64 = 256 << 20;
/// A sync that takes longer is slow.
pub(crate) const SLOW: Duration = Duration::from_secs(1);
/// A slow sync is told for so long.
const REMEMBERED: Duration = Duration::from_secs(60);

/// A condition of a member.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Alarm {
    /// `DiskFull`, `SlowDisk`, `NoMajority`.
    pub name: String,
    /// Whether it is so.
    pub on: bool,
    /// What was seen; empty when all is well.
    pub message: String,
}

/// Remembers what counters alone do not tell.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    /// Slow syncs that were counted, and when that last was another number.
    slow: Mutex<(u64, Option<Instant>)>,
}

impl Alarms {
    /// The conditions now. `free`: bytes left on the disk, where known.
    pub fn look(&self, stats: &Stats, free: Option<u64>, adrift: bool) -> Vec<Alarm> {
        let slow = {
            let mut slow = self.slow.lock();
            let count = stats.slow_syncs.load(Ordering::Relaxed);
            if slow.0 != count {
                *slow = (count, Some(Instant::now()));
            }
            slow.1.filter(|at| at.elapsed() < REMEMBERED).map(|_| count)
        };
        let little = free.filter(|free| *free < LITTLE_ROOM);
        let alarm = |name: &str, message: Option<String>| Alarm {
            name: name.to_owned(),
            on: message.is_some(),
            message: message.unwrap_or_default(),
        };
        vec![
            alarm("DiskFull", little.map(|free| format!("{} MiB are left on the disk", free >> 20))),
            alarm("SlowDisk", slow.map(|count| format!("{count} syncs took more than {SLOW:?}"))),
            alarm("NoMajority", adrift.then(|| "no majority of the members was heard for long".into())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_sync_is_told_for_a_while() {
        let (alarms, stats) = (Alarms::default(), Stats::default());
        let on = |free| -> Vec<String> {
            let all = alarms.look(&stats, free, false).into_iter();
            all.filter(|alarm| alarm.on).map(|alarm| alarm.name).collect()
        };
        assert_eq!(on(None), Vec::<String>::new());
        assert_eq!(on(Some(5 << 20)), ["DiskFull"]);
        stats.slow_syncs.fetch_add(1, Ordering::Relaxed);
        assert_eq!(on(Some(u64::MAX)), ["SlowDisk"]);
        tokio::time::advance(REMEMBERED * 2).await;
        assert_eq!(on(Some(u64::MAX)), Vec::<String>::new());
    }
}
