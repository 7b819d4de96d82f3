//! A server over an in-memory store with a few resources whose types the schema table knows.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use coracle_apiserver::{ApiServer, PlainStrategy, ResourceDef, Strategy, Subresource, UserInfo};
use coracle_store::{Options, Store};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

/// A kind with spec, status, scale and generation.
pub struct Workload;

impl Strategy for Workload {
    fn has_generation(&self) -> bool {
        true
    }
    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.paused"]
    }
    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        (path == "spec.paused").then(|| obj.pointer("/spec/paused").map(Value::to_string).unwrap_or_default())
    }
}

/// A kind that is deleted gracefully.
pub struct Graceful;

impl Strategy for Graceful {
    fn has_generation(&self) -> bool {
        true
    }
    fn grace_period(&self, _: &Value, requested: Option<i64>) -> Option<i64> {
        Some(requested.unwrap_or(30))
    }
    fn returns_deleted_object(&self) -> bool {
        true
    }
}

pub fn resources() -> Vec<ResourceDef> {
    vec![
        ResourceDef::new("", "v1", "ConfigMap", "configmaps", Arc::new(PlainStrategy)).short_names(&["cm"]),
        ResourceDef::new("", "v1", "Namespace", "namespaces", Arc::new(PlainStrategy)).cluster_scoped(),
        ResourceDef::new("", "v1", "Pod", "pods", Arc::new(Graceful)).subresource(Subresource::status("Pod")),
        ResourceDef::new("", "v1", "Event", "events", Arc::new(PlainStrategy)).ttl(Duration::from_secs(3600)),
        ResourceDef::new("apps", "v1", "Deployment", "deployments", Arc::new(Workload))
            .categories(&["all"])
            .subresource(Subresource::status("Deployment"))
            .subresource(Subresource::scale()),
    ]
}

pub fn admin() -> UserInfo {
    UserInfo::new("admin", &["system:masters"])
}

pub fn server() -> ApiServer {
    let store = Store::in_memory(&Options::new("unused"));
    ApiServer::builder(Arc::new(store))
        .resources(resources())
        .token("secret", admin())
        .token("weak", UserInfo::new("jane", &[]))
        .build()
}

/// One call as the administrator; the answer's code, headers and JSON (or text).
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn at(&self, pointer: &str) -> &Value {
        self.body.pointer(pointer).unwrap_or(&Value::Null)
    }
    pub fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or("")
    }
    pub fn message(&self) -> &str {
        self.text("/message")
    }
    pub fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().filter_map(|w| w.to_str().ok()).collect()
    }
}

pub fn request(method: &str, path: &str, content_type: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).expect("method"))
        .uri(path)
        .header("content-type", content_type)
        .body(body.into())
        .expect("request")
}

pub async fn send(server: &ApiServer, request: Request<Body>) -> Response<Body> {
    server.service_as(admin()).oneshot(request).await.expect("infallible")
}

pub async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("body").to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

pub async fn call(server: &ApiServer, method: &str, path: &str, body: Value) -> Answer {
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    read(send(server, request(method, path, content_type, body)).await).await
}

pub async fn get(server: &ApiServer, path: &str) -> Answer {
    call(server, "GET", path, Value::Null).await
}

pub async fn get_as(server: &ApiServer, path: &str, accept: &str) -> Answer {
    let mut request = request("GET", path, "application/json", Body::empty());
    request.headers_mut().insert("accept", accept.parse().expect("header"));
    read(send(server, request).await).await
}

pub async fn patch(server: &ApiServer, path: &str, content_type: &str, body: impl Into<Body>) -> Answer {
    read(send(server, request("PATCH", path, content_type, body)).await).await
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/n/configmaps";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/n/deployments";
