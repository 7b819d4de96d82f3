//! How old the state may be that a read shows.

use std::time::Duration;

/// What a read has to see at least. Every member serves each kind; only the first asks another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Every write that any member has acknowledged before the read. The leader is asked.
    Linearizable,
    /// This revision; it is waited for if it has not come yet. 0: whatever this member has, however old.
    AtLeast(u64),
    /// Every write that the leader knew as committed when it last sent word, which has to have come within this time
    /// before the read; otherwise the next word is waited for. How long it was on its way does not count. Leaders send
    /// word several times a second.
    Within(Duration),
}
