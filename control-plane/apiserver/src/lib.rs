//! The generic API server: TLS, authentication, authorization, verbs, watch, discovery, Tables.
//!
//! It serves every resource it is given as a [`ResourceDef`] and cannot name a kind. Objects are JSON; what a kind adds
//! is a [`Strategy`].
#![forbid(unsafe_code)]

pub mod admission;
pub mod connect;
pub mod objects;
pub mod request;
pub mod resource;
pub mod strategy;
pub mod tables;

pub use admission::{Admission, Attributes, Operation};
pub use connect::{SubresourceHandler, SubresourceRequest};
pub use objects::Objects;
pub use request::{FieldValidation, RequestContext, UserInfo};
pub use resource::{ResourceDef, ScalePaths, Subresource, SubresourceAction};
pub use strategy::{Column, PlainStrategy, Strategy, StrategyContext};
