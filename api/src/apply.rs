//! Server-side apply: who owns which field of an object, and what an applied configuration makes of it.
//!
//! Follows KEP-555 and the rules of structured-merge-diff: maps and structs merge by field, lists of type `map` by their keys,
//! sets by value; everything atomic is owned as a whole. A set of fields is kept in the form in which `managedFields` writes
//! it, so that nothing is converted on the way of an ordinary write.

mod compare;
mod configuration;
mod conflict;
mod fields;
mod managed;
mod merge;
mod remove;
mod shape;
mod typed;
mod versions;

pub use configuration::{Apply, ApplyError, apply};
pub use conflict::Conflict;
pub use fields::Fields;
pub use managed::{Entry, Operation, Scope, Writer, after_update, decode, encode, same_but_times};
pub use shape::Node;
pub use versions::{Form, OneVersion, Versions};

#[cfg(test)]
mod tests;
