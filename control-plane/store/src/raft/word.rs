//! The word of a leader, which it gives with every append: until when it surely led, and what was committed then.
//!
//! A leader does not learn that it was replaced while it is cut off with some of the members, and goes on sending. So its
//! word is as old as the newest of its calls that a majority answered. That a leader's first entry is committed says that all
//! entries before it are known as such; until then its word says nothing of what is committed.

use std::time::Duration;

use http::HeaderValue;
use openraft::Instant as _;
use openraft::metrics::RaftDataMetrics;
use tokio::time::Instant;

use super::{LogId, Types, Vote};

/// Bears the word of whoever sends an append. Leaders of version 1 do not send it.
pub(crate) const HEADER: &str = "coracle-leader-word";

/// Until so long ago nobody else led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub age: Duration,
    /// The entry up to which lies everything that anybody had acknowledged then; `None`: that is not known yet.
    pub committed: Option<u64>,
}

/// The newest word of a leader that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// When it was true.
    pub at: Instant,
    /// As [`Word::committed`].
    pub committed: Option<u64>,
}

impl Word {
    /// What raft knows where it leads by this vote; `None`: no majority has answered it yet.
    pub fn of(metrics: &RaftDataMetrics<Types>, vote: &Vote) -> Option<Self> {
        let age = metrics.last_quorum_acked.as_ref()?.elapsed();
        Some(Self { age, committed: own(metrics.local_committed, vote) })
    }

    /// The word as it travels; none at all is said as well.
    pub fn header(word: Option<Self>) -> (&'static str, HeaderValue) {
        let text = word.map_or_else(String::new, |Self { age, committed }| {
            // Never younger than it is.
            let age = age.as_micros() + 1;
            committed.map_or_else(|| age.to_string(), |index| format!("{age} {index}"))
        });
        (HEADER, HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("")))
    }

    /// The word that came with an append, in its header.
    pub fn read(said: Option<&HeaderValue>, vote: &Vote, leader_commit: Option<LogId>) -> Option<Self> {
        let Some(said) = said else {
            return Some(Self { age: Duration::ZERO, committed: own(leader_commit, vote) });
        };
        let mut numbers = said.to_str().ok()?.split(' ');
        let age = Duration::from_micros(numbers.next()?.parse().ok()?);
        Some(Self { age, committed: numbers.next().and_then(|index| index.parse().ok()) })
    }
}

/// The index of an entry that the leader of this vote has proposed.
fn own(committed: Option<LogId>, vote: &Vote) -> Option<u64> {
    committed.filter(|id| id.leader_id == vote.leader_id).map(|id| id.index)
}

impl Heard {
    /// Takes a word that came at this moment, unless what it says was true before the last one; says whether it was taken.
    pub fn take(&mut self, came: Instant, word: Word) -> bool {
        let newer = came.checked_sub(word.age).filter(|at| *at >= self.at);
        if let Some(at) = newer {
            *self = Self { at, committed: word.committed };
        }
        newer.is_some()
    }
}

#[cfg(test)]
mod tests {
    use openraft::type_config::alias::InstantOf;

    use super::*;

    type Now = InstantOf<Types>;

    fn entry(term: u64, leader: u64, index: u64) -> LogId {
        LogId::new(*Vote::new_committed(term, leader).leader_id(), index)
    }

    #[test]
    fn a_word_travels_and_is_never_younger_than_it_is() {
        let vote = Vote::new_committed(3, 1);
        for committed in [None, Some(70)] {
            let word = Word { age: Duration::from_nanos(1_234_567), committed };
            let (_, said) = Word::header(Some(word));
            let read = Word::read(Some(&said), &vote, Some(entry(3, 1, 80))).unwrap();
            assert_eq!(read.committed, committed);
            assert!(read.age >= word.age && read.age < word.age + Duration::from_micros(2));
        }
        let (_, nothing) = Word::header(None);
        let read = Word::read(Some(&nothing), &vote, Some(entry(3, 1, 80)));
        assert_eq!(read, None, "no majority has answered it");
    }

    #[test]
    fn what_a_leader_found_committed_says_nothing_before_its_own_entry_is() {
        let vote = Vote::new_committed(3, 1);
        let said = |committed| Word::read(None, &vote, Some(committed)).unwrap().committed;
        assert_eq!(said(entry(2, 1, 80)), None, "of an earlier term");
        assert_eq!(said(entry(3, 1, 81)), Some(81));
        let metrics = |committed| RaftDataMetrics::<Types> {
            local_committed: Some(committed),
            last_quorum_acked: Some(openraft::metrics::SerdeInstant::new(Now::now())),
            ..RaftDataMetrics::default()
        };
        assert_eq!(Word::of(&metrics(entry(2, 2, 80)), &vote).unwrap().committed, None);
        assert_eq!(Word::of(&metrics(entry(3, 1, 81)), &vote).unwrap().committed, Some(81));
        assert_eq!(Word::of(&RaftDataMetrics::default(), &vote), None);
    }

    #[test]
    fn an_older_word_is_not_taken() {
        let now = Instant::now();
        let mut heard = Heard { at: now, committed: Some(5) };
        let word = |seconds, committed| Word { age: Duration::from_secs(seconds), committed };
        let later = now + Duration::from_secs(10);
        assert!(!heard.take(later, word(11, Some(9))), "a leader that nobody has answered for long");
        assert_eq!(heard.committed, Some(5));
        assert!(heard.take(later, word(3, Some(7))));
        assert_eq!((heard.at, heard.committed), (now + Duration::from_secs(7), Some(7)));
        assert!(!heard.take(now, word(u64::MAX / 2, None)));
    }
}
