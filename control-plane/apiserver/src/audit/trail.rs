//! What is told of one call, from its arrival to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::HeaderMap;
use coracle_api::time;
use futures::StreamExt;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Audit;
use super::policy::{Asked, Level, Stage, Verdict};
use crate::request::{Annotations, UserInfo};

const AUDIT_ID: &str = "audit-id";
/// Longest id of a caller's own.
const MAX_ID: usize = 64;
/// Bodies beyond this are left out of events.
const MAX_BODY: u64 = 1 << 20;
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// The id of a call: the caller's own, or a new one.
pub(crate) fn id_of(headers: &HeaderMap) -> String {
    let own = headers.get(AUDIT_ID).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
    match own {
        Some(own) => own.chars().take(MAX_ID).collect(),
        None => uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string(),
    }
}

/// One call that is told.
pub(crate) struct Trail {
    audit: Arc<Audit>,
    verdict: Verdict,
    /// What is the same in all of its events.
    event: Map<String, Value>,
    annotations: Annotations,
}

/// A call as it came in.
pub(crate) struct Arrived<'a> {
    pub request: &'a Request<Body>,
    pub id: &'a str,
    pub from: Option<SocketAddr>,
    pub at: Timestamp,
}

impl Trail {
    /// Begins to tell of a call; `None`: the policy leaves it out.
    pub fn begin(audit: &Arc<Audit>, asked: &Asked<'_>, arrived: &Arrived<'_>) -> Option<Self> {
        let verdict = audit.policy.verdict(asked);
        let level = verdict.map_or(Level::None, |v| v.level);
        if let Some(count) = audit.counts.levels.get(level as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let verdict = verdict?.clone();
        let event = common(asked, arrived, level);
        let annotations = Annotations::kept();
        let trail = Self { audit: audit.clone(), verdict, event, annotations };
        trail.tell(Stage::RequestReceived, Map::new());
        Some(trail)
    }

    /// Where plugins put what they have to say.
    pub fn annotations(&self) -> Annotations {
        self.annotations.clone()
    }

    /// The caller acts as somebody else.
    pub fn impersonates(&mut self, user: &UserInfo) {
        self.event.insert("impersonatedUser".into(), user_value(user));
    }

    /// What the authorizer said.
    pub fn decided(&self, allowed: bool, reason: &str) {
        let decision = if allowed { "allow" } else { "forbid" };
        self.annotations.add("authorization.k8s.io/decision", decision);
        self.annotations.add("authorization.k8s.io/reason", reason);
    }

    /// Whether bodies of requests are told.
    pub fn wants_request(&self) -> bool {
        self.verdict.level >= Level::Request
    }

    /// The end of a call that did not get that far: the server failed.
    pub fn panicked(&self, response: &Response<Body>) {
        self.tell(Stage::Panic, status_of(response, None));
    }

    /// Tells the answer: at once, or at its end where it is a stream.
    pub async fn answered(self, response: Response<Body>, streams: bool) -> Response<Body> {
        if streams && response.status().is_success() {
            self.tell(Stage::ResponseStarted, status_of(&response, None));
            let (parts, body) = response.into_parts();
            let end = End { trail: self, more: status_parts(&parts) };
            let body = body.into_data_stream().map(move |piece| {
                let _until_dropped = &end;
                piece
            });
            return Response::from_parts(parts, Body::from_stream(body));
        }
        let wanted = self.verdict.level == Level::RequestResponse || response.status().as_u16() >= 400;
        let known = axum::body::HttpBody::size_hint(response.body()).exact();
        if !wanted || known.is_none_or(|n| n > MAX_BODY) {
            if wanted {
                self.annotations.add(TRUNCATED, "true");
            }
            self.tell(Stage::ResponseComplete, status_of(&response, None));
            return response;
        }
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let value = serde_json::from_slice::<Value>(&body).ok();
        let response = Response::from_parts(parts, Body::from(body));
        let mut more = status_of(&response, value.as_ref());
        if self.verdict.level == Level::RequestResponse
            && let Some(value) = value
        {
            more.insert("responseObject".into(), self.told(value));
        }
        self.tell(Stage::ResponseComplete, more);
        response
    }

    /// An object as it is told.
    fn told(&self, mut value: Value) -> Value {
        if self.verdict.omit_managed_fields {
            without_managed_fields(&mut value);
            let items = value.get_mut("items").and_then(Value::as_array_mut);
            items.into_iter().flatten().for_each(without_managed_fields);
        }
        value
    }

    fn tell(&self, stage: Stage, more: Map<String, Value>) {
        if self.verdict.omit.contains(&stage) {
            return;
        }
        let mut event = self.event.clone();
        event.insert("stage".into(), stage.name().into());
        event.insert("stageTimestamp".into(), time::micros(Timestamp::now()).into());
        if stage != Stage::RequestReceived {
            self.request(&mut event);
            let annotations = self.annotations.all();
            if !annotations.is_empty() {
                event.insert("annotations".into(), json!(annotations));
            }
        }
        event.extend(more);
        self.audit.write(Value::Object(event));
    }

    /// Adds the body of the request, and the name in it where the path has none.
    fn request(&self, event: &mut Map<String, Value>) {
        let Some(body) = self.annotations.body().filter(|_| self.wants_request()) else { return };
        if body.len() as u64 > MAX_BODY {
            self.annotations.add(TRUNCATED, "true");
            return;
        }
        let object = serde_json::from_slice::<Value>(&body).ok();
        let object = object.or_else(|| coracle_api::yaml::one_document(&body).ok().map(|d| d.value));
        let Some(object) = object else { return };
        if let Some(reference) = event.get_mut("objectRef").and_then(Value::as_object_mut)
            && !reference.contains_key("name")
            && let Some(name) = object.pointer("/metadata/name").filter(|n| n.is_string())
        {
            reference.insert("name".into(), name.clone());
        }
        event.insert("requestObject".into(), self.told(object));
    }
}

/// Tells the end of a stream when it is dropped.
struct End {
    trail: Trail,
    more: Map<String, Value>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.trail.tell(Stage::ResponseComplete, std::mem::take(&mut self.more));
    }
}

fn without_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

fn status_parts(parts: &http::response::Parts) -> Map<String, Value> {
    let mut more = Map::new();
    more.insert("responseStatus".into(), json!({"metadata": {}, "code": parts.status.as_u16()}));
    more
}

/// `responseStatus`; of a refusal, what it says.
fn status_of(response: &Response<Body>, body: Option<&Value>) -> Map<String, Value> {
    let mut status = json!({"metadata": {}, "code": response.status().as_u16()});
    let said = body.filter(|b| b.get("kind").and_then(Value::as_str) == Some("Status"));
    if let (Some(object), Some(said)) = (status.as_object_mut(), said) {
        for name in ["status", "message", "reason", "details"] {
            if let Some(value) = said.get(name) {
                object.insert(name.into(), value.clone());
            }
        }
    }
    let mut more = Map::new();
    more.insert("responseStatus".into(), status);
    more
}

fn user_value(user: &UserInfo) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if let Some(object) = value.as_object_mut() {
        if !user.uid.is_empty() {
            object.insert("uid".into(), user.uid.as_str().into());
        }
        if !user.extra.is_empty() {
            object.insert("extra".into(), json!(user.extra));
        }
    }
    value
}

fn common(asked: &Asked<'_>, arrived: &Arrived<'_>, level: Level) -> Map<String, Value> {
    let (request, headers) = (arrived.request, arrived.request.headers());
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let uri = request.uri().path_and_query().map_or("", |p| p.as_str());
    let mut event = Map::new();
    let mut set = |name: &str, value: Value| event.insert(name.to_owned(), value);
    set("kind", "Event".into());
    set("apiVersion", "audit.k8s.io/v1".into());
    set("level", level.name().into());
    set("auditID", arrived.id.into());
    set("requestURI", uri.into());
    set("verb", asked.verb.into());
    set("user", user_value(asked.user));
    set("sourceIPs", sources(headers, arrived.from).into());
    if !agent.is_empty() {
        set("userAgent", agent.chars().take(1024).collect::<String>().into());
    }
    set("requestReceivedTimestamp", time::micros(arrived.at).into());
    if let Some(path) = asked.resource {
        let mut reference = Map::new();
        let mut add = |name: &str, value: Option<&str>| {
            if let Some(value) = value.filter(|v| !v.is_empty()) {
                reference.insert(name.to_owned(), value.into());
            }
        };
        add("resource", Some(&path.resource));
        add("namespace", path.namespace.as_deref());
        add("name", path.name.as_deref());
        add("apiGroup", Some(&path.group));
        add("apiVersion", Some(&path.version));
        add("subresource", path.subresource.as_deref());
        set("objectRef", Value::Object(reference));
    }
    event
}

/// Where a call comes from: what proxies say, then who connected.
fn sources(headers: &HeaderMap, from: Option<SocketAddr>) -> Vec<String> {
    let forwarded = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok()).unwrap_or("");
    let said = forwarded.split(',').filter_map(|part| part.trim().parse::<std::net::IpAddr>().ok()).take(8);
    let mut all: Vec<String> = said.map(|ip| ip.to_string()).collect();
    // Clients in this process come from nowhere else.
    let own = from.map_or_else(|| "127.0.0.1".to_owned(), |from| from.ip().to_string());
    if all.last() != Some(&own) {
        all.push(own);
    }
    all
}
