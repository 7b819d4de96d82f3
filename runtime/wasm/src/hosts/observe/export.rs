//! Spans leave for a collector: OTLP over HTTP, as JSON, in batches. What a collector that is away does not take within
//! a few tries is given up, and a guest never waits.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
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
/// How long a batch that is not full is gathered.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a batch is tried.
const TRIES: u32 = 4;

/// How long the log says nothing more about spans that were given up.
const QUIET: Duration = Duration::from_secs(30);

/// Spans that were given up, and that the log has not told of.
static GIVEN_UP: AtomicU64 = AtomicU64::new(0);
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
    if let Some(queue) = QUEUED.get()
        && queue.try_send(said).is_err()
    {
        // A guest waits for no collector.
        GIVEN_UP.fetch_add(1, Ordering::Relaxed);
    }
}

async fn run(uri: Uri, mut spans: mpsc::Receiver<Said>) {
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut told: Option<Instant> = None;
    let mut batch = Vec::new();
    while gather(&mut spans, &mut batch).await {
        let body = Bytes::from(body(&batch).to_string());
        let sent = deliver(&client, &uri, body).await;
        if sent.is_err() {
            GIVEN_UP.fetch_add(batch.len() as u64, Ordering::Relaxed);
        }
        batch.clear();
        if told.is_none_or(|told| told.elapsed() > QUIET) {
            let given_up = GIVEN_UP.swap(0, Ordering::Relaxed);
            if given_up > 0 {
                let reason = sent.err().unwrap_or_else(|| "they end faster than it takes them".into());
                tracing::warn!(collector = %uri, given_up, reason, "spans of guests were given up");
                told = Some(Instant::now());
            }
        }
    }
}

/// The next batch: what ends within a while, or as soon as it is full. False: there will be no more.
async fn gather(spans: &mut mpsc::Receiver<Said>, batch: &mut Vec<Said>) -> bool {
    if spans.recv_many(batch, BATCH).await == 0 {
        return false;
    }
    let full =
        async { while batch.len() < BATCH && spans.recv_many(batch, BATCH - batch.len()).await > 0 {} };
    let _ = tokio::time::timeout(GATHER, full).await;
    true
}

/// Why a collector did not take a batch, and whether it may later.
struct Refusal {
    reason: String,
    again: bool,
}

async fn deliver(client: &Client<HttpConnector, Full<Bytes>>, uri: &Uri, body: Bytes) -> Result<(), String> {
    let mut pause = GATHER;
    for _ in 1..TRIES {
        match post(client, uri, body.clone()).await {
            Err(refusal) if refusal.again => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answered => return answered.map_err(|refusal| refusal.reason),
        }
    }
    post(client, uri, body).await.map_err(|refusal| refusal.reason)
}

async fn post(client: &Client<HttpConnector, Full<Bytes>>, uri: &Uri, body: Bytes) -> Result<(), Refusal> {
    let away = |reason: String| Refusal { reason, again: true };
    let request = Request::post(uri.clone())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|e| Refusal { reason: e.to_string(), again: false })?;
    match tokio::time::timeout(ANSWER, client.request(request)).await {
        Err(_) => Err(away(format!("no answer within {ANSWER:?}"))),
        Ok(Err(error)) => Err(away(error.to_string())),
        Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
        // The others say that it will not take these spans (OTLP, "failures").
        Ok(Ok(answer)) => Err(Refusal {
            reason: format!("it answered {}", answer.status()),
            again: matches!(answer.status().as_u16(), 429 | 502..=504),
        }),
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn said(name: &str) -> Said {
        Said {
            resource: Arc::default(),
            trace: "t".into(),
            id: "s".into(),
            parent: None,
            name: name.into(),
            started_at_ns: 1,
            ended_at_ns: 2,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        }
    }

    #[tokio::test]
    async fn a_full_batch_does_not_wait() {
        let (send, mut spans) = mpsc::channel(QUEUE);
        for _ in 0..2 * BATCH + 1 {
            send.try_send(said("a")).unwrap();
        }
        let mut batch = Vec::new();
        for full in [Some(true), Some(true), None] {
            batch.clear();
            assert_eq!(gather(&mut spans, &mut batch).now_or_never(), full);
        }
        assert_eq!(batch.len(), 1);
    }

    #[tokio::test]
    async fn what_a_collector_will_never_take_is_sent_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/v1/traces", listener.local_addr().unwrap()).parse().unwrap();
        let (send, spans) = mpsc::channel(QUEUE);
        tokio::spawn(run(uri, spans));
        let answers = ["400 Bad Request", "503 Service Unavailable", "200 OK"];
        // The second one is asked for again.
        for (answer, name) in answers.into_iter().zip(["first", "second", "second"]) {
            if name == "first" || answer.starts_with("503") {
                send.send(said(name)).await.unwrap();
            }
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 64 << 10];
            let mut length = 0;
            while !asked[..length].ends_with(b"}") {
                length += stream.read(&mut asked[length..]).await.unwrap();
            }
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            assert!(asked.contains(&format!("\"name\":\"{name}\"")), "{answer}: {asked}");
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}
