//! Calls that go on to a node: streamed, with the server's own certificate, over the cluster's authority.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Extension;
use axum::body::Body;
use coracle_api::Status;
use coracle_apiserver::ca::ClusterCa;
use coracle_apiserver::kubelet_proxy::CLIENT_USER;
use coracle_apiserver::{
    ApiServer, KubeletProxy, NodeEndpoint, NotImplemented, PlainStrategy, ResolveNode, ResourceDef,
    Subresource, SubresourceRequest, UserInfo,
};
use coracle_store::{Options, Store};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::fixture::*;

struct Fixed(SocketAddr);

#[async_trait]
impl ResolveNode for Fixed {
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status> {
        if request.context.name.as_deref() == Some("lost") {
            return Err(Status::bad_request("pod lost does not have a host assigned"));
        }
        Ok(NodeEndpoint {
            host: self.0.ip().to_string(),
            port: self.0.port(),
            path: format!("/containerLogs/{}", request.context.name.as_deref().unwrap_or("")),
            query: request.http.uri().query().unwrap_or("").to_owned(),
            plain: false,
        })
    }
}

/// A node is itself a small server of this crate: it sees who calls.
async fn node(ca: &ClusterCa, log: mpsc::Receiver<String>) -> (ApiServer, SocketAddr) {
    let log = Arc::new(tokio::sync::Mutex::new(Some(log)));
    let logs = axum::routing::get(move |uri: http::Uri, Extension(user): Extension<UserInfo>| async move {
        let head = futures::stream::iter([format!("{} {uri}\n", user.name)]);
        let receiver = log.lock().await.take().expect("one call");
        let lines = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Body::from_stream(head.chain(lines).map(Ok::<_, std::convert::Infallible>))
    });
    let refused = axum::routing::get(|| async {
        let words = "container \"a\" in pod \"waits\" is waiting to start: ContainerCreating\n";
        (http::StatusCode::BAD_REQUEST, words)
    });
    let long =
        axum::routing::get(|| async { (http::StatusCode::INTERNAL_SERVER_ERROR, "x".repeat(1 << 20)) });
    let json = axum::routing::get(|| async {
        let kind = [("content-type", "application/json")];
        (http::StatusCode::CONFLICT, kind, r#"{"said":"by the node"}"#)
    });
    let router = axum::Router::new()
        .route("/containerLogs/{pod}", logs)
        .route("/containerLogs/waits", refused)
        .route("/containerLogs/long", long)
        .route("/containerLogs/json", json);
    let store = Arc::new(Store::in_memory(&Options::new("unused")));
    let node = ApiServer::builder(store).mount("/containerLogs", router).build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let identity = ca.server("system:node:n1", &["127.0.0.1".to_owned()]).expect("certificate");
    let tls = ca.server_config(&identity).expect("tls");
    let running = node.clone();
    tokio::spawn(async move { running.serve(listener, tls).await });
    (node, address)
}

fn api_server(ca: &ClusterCa, address: SocketAddr) -> ApiServer {
    let client = ca.client(CLIENT_USER, &["system:masters"]).expect("certificate");
    let proxy = KubeletProxy::new(ca.client_config(Some(&client)).expect("tls"));
    let pods = ResourceDef::new("", "v1", "Pod", "pods", Arc::new(PlainStrategy))
        .subresource(Subresource::handler("log", "Pod", &["get"], proxy.handler(Arc::new(Fixed(address)))))
        .subresource(Subresource::handler(
            "exec",
            "PodExecOptions",
            &["create", "get"],
            Arc::new(NotImplemented { what: "exec" }),
        ));
    ApiServer::builder(Arc::new(Store::in_memory(&Options::new("unused")))).resource(pods).build()
}

#[tokio::test]
async fn logs_are_streamed_from_the_node() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = ClusterCa::open(dir.path()).expect("authority");
    let (lines, receiver) = mpsc::channel(4);
    let (node, address) = node(&ca, receiver).await;
    let s = api_server(&ca, address);
    let path = "/api/v1/namespaces/n/pods/p/log?follow=true&tailLines=5";
    let response = send(&s, request("GET", path, "", Body::empty())).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body().into_data_stream();
    let mut next = async || {
        let chunk = tokio::time::timeout(Duration::from_secs(10), body.next()).await.expect("in time");
        chunk.map(|c| String::from_utf8_lossy(&c.expect("chunk")).into_owned())
    };
    assert_eq!(
        next().await.as_deref(),
        Some("kube-apiserver-kubelet-client /containerLogs/p?follow=true&tailLines=5\n")
    );
    // Nothing is held back until the log ends.
    lines.send("one\n".into()).await.expect("open");
    assert_eq!(next().await.as_deref(), Some("one\n"));
    drop(lines);
    assert_eq!(next().await, None);
    node.shutdown_token().cancel();
}

#[tokio::test]
async fn what_cannot_be_reached_says_so() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = ClusterCa::open(dir.path()).expect("authority");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
    let s = api_server(&ca, closed);
    let unreachable = get(&s, "/api/v1/namespaces/n/pods/p/log").await;
    assert_eq!(unreachable.code, 503);
    assert!(
        unreachable.message().starts_with("error trying to reach the node at 127.0.0.1:"),
        "{}",
        unreachable.message()
    );
    assert_eq!(get(&s, "/api/v1/namespaces/n/pods/lost/log").await.code, 400);
    let exec = get(&s, "/api/v1/namespaces/n/pods/p/exec?command=sh").await;
    assert_eq!((exec.code, exec.text("/reason")), (501, "NotImplemented"));
    assert_eq!(
        call(&s, "DELETE", "/api/v1/namespaces/n/pods/p/exec", serde_json::Value::Null).await.code,
        405
    );
}

#[tokio::test]
async fn what_a_node_refuses_is_a_status() {
    let dir = tempfile::tempdir().expect("dir");
    let ca = ClusterCa::open(dir.path()).expect("authority");
    let (node, address) = node(&ca, mpsc::channel(1).1).await;
    let s = api_server(&ca, address);
    let refused = get(&s, "/api/v1/namespaces/n/pods/waits/log").await;
    assert_eq!((refused.code, refused.text("/kind"), refused.text("/reason")), (400, "Status", "BadRequest"));
    assert_eq!(refused.message(), "container \"a\" in pod \"waits\" is waiting to start: ContainerCreating");
    // Words without an end are not read to it.
    let long = get(&s, "/api/v1/namespaces/n/pods/long/log").await;
    assert_eq!((long.code, long.text("/reason")), (500, "InternalError"));
    assert_eq!(long.message(), "the node answered 500 Internal Server Error");
    // What is no plain text is the node's own answer.
    let json = get(&s, "/api/v1/namespaces/n/pods/json/log").await;
    assert_eq!((json.code, json.text("/said")), (409, "by the node"));
    node.shutdown_token().cancel();
}
