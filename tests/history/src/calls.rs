//! What clients asked for and what they were told.

use std::collections::BTreeMap;

/// A value; every write writes one that nobody wrote before.
pub type Val = u64;

/// What a client asks of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The key must not exist.
    Create(Val),
    /// The key must exist, whatever its value.
    Put(Val),
    /// The key must exist with the first value; it becomes the second.
    Cas(Val, Val),
    /// The key must exist.
    Delete,
    /// Reads the newest state.
    Get,
}

impl Op {
    /// The value that it writes.
    pub fn value(&self) -> Option<Val> {
        match self {
            Self::Create(new) | Self::Put(new) | Self::Cas(_, new) => Some(*new),
            Self::Delete | Self::Get => None,
        }
    }
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Written, at this revision (of a deletion it is not told).
    Done(Option<u64>),
    /// There is such a key already.
    Exists,
    /// There is no such key.
    Missing,
    /// The key has another value.
    Conflict,
    /// The value and its revision.
    Read(Val, u64),
    /// Surely not done, for a reason that says nothing about the key.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Who called.
    pub client: usize,
    /// Nanoseconds since the run began.
    pub began: u64,
    /// When it was answered; of an unknown outcome: never.
    pub ended: u64,
    /// What was asked.
    pub op: Op,
    /// What was told.
    pub answer: Answer,
}

/// A read of all keys.
#[derive(Clone, Debug)]
pub struct List {
    /// Nanoseconds since the run began.
    pub began: u64,
    /// When it was answered.
    pub ended: u64,
    /// The revision that it says it is of.
    pub revision: u64,
    /// Key, value, revision.
    pub items: BTreeMap<String, (Val, u64)>,
}

/// All calls by key, and all lists.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Calls by key.
    pub calls: BTreeMap<String, Vec<Call>>,
    /// Lists.
    pub lists: Vec<List>,
}

impl History {
    /// Adds what another client saw.
    pub fn extend(&mut self, other: Self) {
        for (key, calls) in other.calls {
            self.calls.entry(key).or_default().extend(calls);
        }
        self.lists.extend(other.lists);
    }

    /// How many calls had an answer that says something, and how many nobody knows of.
    pub fn counts(&self) -> (usize, usize) {
        let all = || self.calls.values().flatten();
        let unknown = all().filter(|call| call.answer == Answer::Unknown).count();
        let refused = all().filter(|call| call.answer == Answer::Refused).count();
        (all().count() - unknown - refused, unknown)
    }
}
