//! Subresources that are no plain read or write of the object: logs, exec, proxies, bindings, evictions.

use async_trait::async_trait;
use axum::body::Body;
use coracle_api::status::Status;

use crate::objects::Objects;
use crate::request::RequestContext;

/// A call to a subresource, authenticated, authorized and admitted. Without its body (`B = ()`) it can be shared.
pub struct SubresourceRequest<B = Body> {
    /// Who, which object, which subresource.
    pub context: RequestContext,
    /// What follows the subresource in the path, without a leading `/` (`nodes/n/proxy/<tail>`).
    pub tail: String,
    /// The call itself. The body is unread and not bounded: use [`crate::body::read`].
    pub http: http::Request<B>,
    /// Other objects, and guarded writes.
    pub objects: Objects,
}

impl SubresourceRequest {
    /// The call without its body, and the body.
    pub fn split(self) -> (SubresourceRequest<()>, Body) {
        let Self { context, tail, http, objects } = self;
        let (parts, body) = http.into_parts();
        (SubresourceRequest { context, tail, http: http::Request::from_parts(parts, ()), objects }, body)
    }
}

/// Serves one subresource.
#[async_trait]
pub trait SubresourceHandler: Send + Sync + 'static {
    /// Answers the call. Errors become `Status` answers.
    async fn handle(&self, request: SubresourceRequest) -> Result<http::Response<Body>, Status>;
}
