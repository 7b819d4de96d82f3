//! A client of a server in this process.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use coracle_apiserver::{ApiServer, UserInfo};
use coracle_registry::{Cidr, RegistryOptions};
use coracle_store::{Options, Store};
use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

/// How long an event is waited for.
const EVENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most events that are read.
const EVENTS_MAX: usize = 100;

/// What a call was answered: code and body.
pub type Answer = (u16, Value);

pub struct Client {
    server: ApiServer,
}

impl Client {
    /// An administrator of a new cluster, with the namespace and the account that pods need.
    pub async fn new() -> Self {
        let store = Arc::new(Store::in_memory(&Options::new("unused")));
        let options = RegistryOptions {
            pod_cidr: Cidr::parse("10.42.0.0/16").expect("range"),
            api_server: ("10.0.0.1".parse().expect("address"), 6443),
            ..RegistryOptions::default()
        };
        let builtin = coracle_registry::builtin(&options, &store).expect("options");
        let server = builtin.install(ApiServer::builder(store)).build();
        coracle_registry::bootstrap(&server, &options).await.expect("bootstrap");
        let client = Self { server };
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let (code, made) = client.post("/api/v1/namespaces/default/serviceaccounts", &account).await;
        assert_eq!(code, 201, "{made}");
        client
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], &Value::Null).await
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.call("GET", path, &[("accept", accept)], &Value::Null).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[("content-type", "application/json")], body).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call("PUT", path, &[("content-type", "application/json")], body).await
    }

    pub async fn delete(&self, path: &str, options: &Value) -> Answer {
        self.call("DELETE", path, &[("content-type", "application/json")], options).await
    }

    /// `form` is `json`, `merge`, `strategic-merge` or `apply`.
    pub async fn patch(&self, path: &str, form: &str, body: &Value) -> Answer {
        let form = if form == "apply" {
            "application/apply-patch+yaml".into()
        } else {
            format!("application/{form}-patch+json")
        };
        self.call("PATCH", path, &[("content-type", form.as_str())], body).await
    }

    async fn response(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> http::Response<Body> {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("user-agent", "conformance/1");
        let request = headers.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        let service = self.server.service_as(UserInfo::new("admin", &["system:masters"]));
        let Ok(response) = service.oneshot(request.body(body).expect("request")).await;
        response
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let response = self.response(method, path, headers, body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Waits until a path is answered with this code, for a while.
    pub async fn until(&self, path: &str, code: u16) {
        let wait = async {
            while self.get(path).await.0 != code {
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::time::timeout(EVENT_TIMEOUT, wait).await;
    }

    /// The events of a watch until the first DELETED, or until none comes for a while.
    pub async fn watch(&self, path: &str) -> Vec<(String, Value)> {
        let response = self.response("GET", path, &[], &Value::Null).await;
        let mut stream = response.into_body().into_data_stream();
        let (mut events, mut text) = (Vec::new(), String::new());
        while events.len() < EVENTS_MAX {
            let Ok(Some(Ok(bytes))) = tokio::time::timeout(EVENT_TIMEOUT, stream.next()).await else { break };
            text.push_str(&String::from_utf8_lossy(&bytes));
            while let Some((line, rest)) = text.split_once('\n') {
                let mut event: Value = serde_json::from_str(line).expect("event");
                let kind = event["type"].as_str().unwrap_or("").to_owned();
                let last = kind == "DELETED" || kind == "ERROR";
                events.push((kind, event["object"].take()));
                text = rest.to_owned();
                if last {
                    return events;
                }
            }
        }
        events
    }
}
