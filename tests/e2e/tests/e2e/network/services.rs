//! Kinds of Services.
