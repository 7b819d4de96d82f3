//! Groups that other servers serve: their calls are passed on, and discovery and OpenAPI list them beside what is served here.
//!
//! Who serves what is a [`Delegates`]' business; how a call reaches another server is a [`Remote`]'s.

mod discovery;
mod remote;

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use coracle_api::Status;
use http::{Request, Response};
use serde_json::Value;

use crate::objects::Objects;
use crate::request::UserInfo;

pub(crate) use discovery::{aggregated, group, groups};
pub use remote::{Remote, Trust};

/// What another server serves in one group and version.
#[derive(Clone, Debug, Default)]
pub struct Delegated {
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Its resources as its own discovery lists them (an APIResourceList); null where it does not answer.
    pub resources: Value,
    /// Its OpenAPI v3 document, where it has one.
    pub openapi: Option<Bytes>,
    /// The OpenAPI v2 document of the whole server, where it has one.
    pub openapi_v2: Option<Bytes>,
}

/// Who serves groups that are not served here.
#[async_trait]
pub trait Delegates: Send + Sync + 'static {
    /// Whether another server serves this group and version.
    fn has(&self, group: &str, version: &str) -> bool;

    /// Everything that others serve, the most important first.
    fn all(&self) -> Arc<Vec<Delegated>>;

    /// Passes on a call that was authorized.
    ///
    /// # Errors
    /// 503 where the other server does not answer.
    async fn forward(
        &self,
        objects: &Objects,
        to: (&str, &str),
        user: &UserInfo,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status>;
}
