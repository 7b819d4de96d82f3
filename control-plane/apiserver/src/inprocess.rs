//! Calls without a network: a tower service under a fixed identity, for `kube::Client::new` inside the server's process.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};

use crate::handler;
use crate::request::UserInfo;
use crate::state::Shared;

/// The API server as a service. Calls are authorized and admitted like any other.
#[derive(Clone)]
pub struct InProcess {
    shared: Arc<Shared>,
    user: UserInfo,
}

impl InProcess {
    pub(crate) fn new(shared: Arc<Shared>, user: UserInfo) -> Self {
        Self { shared, user }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: axum::body::HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (shared, user) = (self.shared.clone(), self.user.clone());
        Box::pin(async move { Ok(handler::serve(shared, request.map(Body::new), Some(user)).await) })
    }
}
