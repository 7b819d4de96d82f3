//! Server-side apply: who owns which field of an object, and what an applied configuration makes of it.
//!
//! Follows KEP-555 and the rules of structured-merge-diff: maps and structs merge by field, lists of type `map` by their keys,
//! sets by value; everything atomic is owned as a whole. A set of fields is kept in the form in which `managedFields` writes
//! it, so that nothing is converted on the way of an ordinary write.

mod compare;
mod conflict;
mod fields;
mod managed;
mod merge;
mod remove;
mod shape;
mod typed;

pub use conflict::Conflict;
pub use fields::Fields;
pub use managed::{
    Apply, ApplyError, Operation, Scope, Writer, after_update, apply, decode, encode, same_but_times,
};
pub use shape::Node;

#[cfg(test)]
mod tests;
