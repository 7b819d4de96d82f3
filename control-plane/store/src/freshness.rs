//! How old the state may be that a read shows.

use std::time::Duration;

/// What a read has to see at least. Every member serves each kind; only the first asks another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Every write that any member has acknowledged before the read. The leader is asked.
    Linearizable,
    /// This revision; it is waited for if it has not come yet. 0: whatever this member has, however old.
    AtLeast(u64),
    /// Every write that any member had acknowledged at a moment within this time before the read. Nobody is asked: leaders
    /// send word several times a second, and say how long ago a majority last answered them; how long the word was on its
    /// way does not count. Where the last word is older the next one is waited for.
    Within(Duration),
}
