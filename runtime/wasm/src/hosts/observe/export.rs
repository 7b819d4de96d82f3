//! Spans leave for a collector: OTLP over HTTP, as JSON, in batches. What a collector that is away does not take within
//! a few tries is given up, and a guest never waits.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Uri, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Said;

/// Spans that wait to leave; more are given up.
const QUEUE: usize = 4096;
/// The most spans of a batch.
const BATCH: usize = 512;
/// How long a batch is gathered.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a batch is tried.
const TRIES: u32 = 4;

static QUEUED: OnceLock<mpsc::Sender<Said>> = OnceLock::new();

/// From now on spans go to this collector: `http://host:port`, to which `/v1/traces` is added. `Err` says what is wrong
/// with it.
pub(crate) fn start(endpoint: &str) -> Result<(), String> {
    let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let uri: Uri = url.parse().map_err(|e| format!("the collector {endpoint:?}: {e}"))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(format!("the collector {endpoint:?} is not http://host:port"));
    }
    let (send, spans) = mpsc::channel(QUEUE);
    if QUEUED.set(send).is_ok() {
        tokio::spawn(run(uri, spans));
    }
    Ok(())
}

/// A span has ended. Without a collector it goes nowhere.
pub(super) fn send(said: Said) {
    if let Some(queue) = QUEUED.get() {
        // What does not fit is given up: a guest waits for no collector.
        let _ = queue.try_send(said);
    }
}

async fn run(uri: Uri, mut spans: mpsc::Receiver<Said>) {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut away = false;
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        tokio::time::sleep(GATHER).await;
        while batch.len() < BATCH {
            let Ok(next) = spans.try_recv() else { break };
            batch.push(next);
        }
        let body = Bytes::from(body(&batch).to_string());
        batch.clear();
        let mut pause = GATHER;
        for attempt in 1..=TRIES {
            match post(&client, &uri, body.clone()).await {
                Ok(()) => {
                    away = false;
                    break;
                }
                Err(reason) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(collector = %uri, reason, "spans of guests cannot be sent");
                    }
                    if attempt < TRIES {
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                }
            }
        }
    }
}

async fn post(client: &Client<HttpConnector, Full<Bytes>>, uri: &Uri, body: Bytes) -> Result<(), String> {
    let request = Request::post(uri.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|e| e.to_string())?;
    match tokio::time::timeout(ANSWER, client.request(request)).await {
        Err(_) => Err(format!("no answer within {ANSWER:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
        Ok(Ok(answer)) => Err(format!("it answered {}", answer.status())),
    }
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// ExportTraceServiceRequest in OTLP's JSON: ids in hex, 64-bit numbers as text.
fn body(batch: &[Said]) -> Value {
    let mut by_container: HashMap<*const Vec<(&str, String)>, Vec<&Said>> = HashMap::new();
    for said in batch {
        by_container.entry(Arc::as_ptr(&said.resource).cast()).or_default().push(said);
    }
    let of_container = |spans: &Vec<&Said>| {
        let resource = spans.first().map(|said| said.resource.clone()).unwrap_or_default();
        let attributes: Vec<Value> = resource.iter().map(|(key, value)| text(key, value)).collect();
        let spans: Vec<Value> = spans.iter().map(|said| span(said)).collect();
        json!({"resource": {"attributes": attributes},
            "scopeSpans": [{"scope": {"name": "coracle:observe"}, "spans": spans}]})
    };
    json!({"resourceSpans": by_container.values().map(of_container).collect::<Vec<_>>()})
}

fn span(said: &Said) -> Value {
    let attributes: Vec<Value> = said.attributes.iter().map(|(key, value)| text(key, value)).collect();
    let event = |(name, at): &(String, i64)| json!({"name": name, "timeUnixNano": at.to_string()});
    let mut span = json!({
        "traceId": said.trace, "spanId": said.id, "name": said.name, "kind": 1,
        "startTimeUnixNano": said.started_at_ns.to_string(), "endTimeUnixNano": said.ended_at_ns.to_string(),
        "attributes": attributes, "events": said.events.iter().map(event).collect::<Vec<_>>(),
        "status": {},
    });
    if let Some(parent) = &said.parent {
        span["parentSpanId"] = parent.as_str().into();
    }
    if let Some(failure) = &said.failure {
        span["status"] = json!({"code": 2, "message": failure});
    }
    span
}
