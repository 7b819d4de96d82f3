//! What subresource handlers share: reading a body, finding the object, the answer to a create that makes no object.

use std::sync::Arc;

use axum::body::Body;
use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::kubelet_proxy::{NotImplemented, ResolveNode};
use coracle_apiserver::{Objects, SubresourceHandler};
use http::{Request, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::options::RegistryOptions;

/// An object, or 404.
pub async fn existing(
    objects: &Objects,
    group: &str,
    plural: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<Value, Status> {
    match objects.get(group, plural, namespace, name).await? {
        Some(obj) => Ok(obj),
        None => Err(Status::not_found(&GroupResource::new(group, plural), name)),
    }
}

/// The body of a call as JSON, bounded.
pub async fn read_json(request: Request<Body>) -> Result<Value, Status> {
    let bytes = coracle_apiserver::body::read(request.into_body()).await?;
    serde_json::from_slice(&bytes).map_err(|e| Status::bad_request(format!("the body is not JSON: {e}")))
}

/// 201 with a Status of success.
pub fn created() -> Response<Body> {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A subresource that is not there yet and says so.
pub fn not_implemented(what: &'static str) -> Arc<dyn SubresourceHandler> {
    Arc::new(NotImplemented { what })
}

/// A call that the server hands on to a node; says that it cannot where it has no client for nodes.
pub fn on_node(
    options: &RegistryOptions,
    resolver: Arc<dyn ResolveNode>,
    what: &'static str,
) -> Arc<dyn SubresourceHandler> {
    match &options.kubelet {
        Some(proxy) => proxy.handler(resolver),
        None => Arc::new(Unconnected { resolver, what }),
    }
}

/// Resolves, so that a caller's mistakes are answered, and then says that there is no way to the node.
struct Unconnected {
    resolver: Arc<dyn ResolveNode>,
    what: &'static str,
}

#[async_trait::async_trait]
impl SubresourceHandler for Unconnected {
    async fn handle(&self, request: coracle_apiserver::SubresourceRequest) -> Result<Response<Body>, Status> {
        let (request, _) = request.split();
        let endpoint = self.resolver.resolve(&request).await?;
        Err(Status::service_unavailable(format!(
            "{}: this server has no client for the node at {}:{}",
            self.what, endpoint.host, endpoint.port
        )))
    }
}
