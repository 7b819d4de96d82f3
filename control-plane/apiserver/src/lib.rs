//! The generic API server: TLS, authentication, authorization, verbs, watch, discovery, Tables.
//!
//! It serves every resource it is given as a [`ResourceDef`] and cannot name a kind. Objects are JSON; what a kind adds
//! is a [`Strategy`]. The way of a call: [`server`] (or [`inprocess`]), `handler`, one file below `verbs`, the store.
#![forbid(unsafe_code)]

pub mod admission;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
pub mod ca;
mod call;
mod catalog;
mod codec;
mod compress;
pub mod connect;
mod deadline;
mod decode;
pub mod delegate;
mod discovery;
mod dispatch;
mod dynamic;
pub mod encryption;
mod errors;
mod filters;
pub mod flow;
mod handler;
pub mod inprocess;
pub mod kubelet_proxy;
mod managed;
pub mod metrics;
pub mod negotiate;
pub mod objects;
mod openapi;
pub mod path;
pub mod paths;
mod pretty;
mod protobuf;
pub mod query;
pub mod request;
pub mod resource;
mod respond;
mod select;
pub mod server;
mod stall;
mod state;
pub mod strategy;
pub mod tables;
mod validate;
mod verbs;
pub mod webhook;
mod write;

pub use admission::{Admission, Attributes, Operation, Rounds, Together, Turn};
pub use authz::{AdminsOnly, AuthorizationRequest, Authorizer, Decision};
pub use connect::{SubresourceHandler, SubresourceRequest};
pub use delegate::{Delegated, Delegates};
pub use dynamic::ResourceSource;
pub use inprocess::InProcess;
pub use kubelet_proxy::{KubeletProxy, NodeEndpoint, NotImplemented, ResolveNode};
pub use objects::Objects;
pub use request::{Annotations, FieldValidation, RequestContext, UserInfo, Warnings};
pub use resource::{ResourceDef, ScalePaths, Subresource, SubresourceAction};
pub use server::{ApiServer, ApiServerBuilder, Follower};
pub use strategy::{Column, PlainStrategy, Strategy, StrategyContext};
