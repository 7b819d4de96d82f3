//! Watches in suite `api`: how many events reach watchers, and how long after the write was begun.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use crate::connection::{Ask, Endpoint};
use crate::figures::Figures;
use crate::load::Load;
use crate::samples::Samples;

const NAMESPACE: &str = "bench-watch";
/// Objects that are written over and over.
const OBJECTS: u64 = 256;
const WRITERS: usize = 16;
/// What stands before the time in an event.
const MARK: &[u8] = b"\"at\":\"";
/// Events that are still on their way when the writers end.
const DRAIN: Duration = Duration::from_millis(300);

fn folder() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
}

/// An object of 1 KiB that says when it was made, in microseconds since `start`.
fn object(start: Instant, number: u64) -> (String, Bytes) {
    let name = format!("bench-{:08}", number % OBJECTS);
    let at = format!("{:012}", start.elapsed().as_micros());
    let filler = "x".repeat(1000);
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"at": at, "filler": filler}});
    (name, Bytes::from(body.to_string()))
}

pub async fn run(endpoint: &Endpoint, pid: i32, duration: Duration, figures: &mut Figures) -> Result<()> {
    let start = Instant::now();
    let mut connection = endpoint.connect().await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    connection.ask(Ask::post("/api/v1/namespaces".into(), namespace.to_string().into())).await?;
    for number in 0..OBJECTS {
        connection.ask(Ask::post(folder(), object(start, number).1)).await?;
    }
    for watchers in [1, 50] {
        let mut running = Vec::new();
        for _ in 0..watchers {
            let path =
                format!("{}?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", folder());
            let mut connection = endpoint.connect().await?;
            let body = connection.stream(path).await?;
            running.push(tokio::spawn(follow(start, body, connection)));
        }
        let load =
            Load { endpoint: endpoint.clone(), clients: WRITERS, duration, most_requests: u64::MAX, pid };
        let write = move |number| {
            let (name, body) = object(start, number);
            Ask::put(format!("{}/{name}", folder()), body)
        };
        let began = Instant::now();
        let outcome = load.run(&Arc::new(AtomicU64::new(0)), write).await?;
        let elapsed = began.elapsed();
        tokio::time::sleep(DRAIN).await;
        let mut all = Samples::default();
        for watcher in running {
            all.extend(tokio::time::timeout(DRAIN * 4, watcher).await.context("a watcher goes on")??);
        }
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        let mut add =
            |name: &str, unit, value| figures.add("api", format!("watch/{watchers}/{name}"), unit, value);
        add("events", "1/s", Some(all.len() as f64 / elapsed.as_secs_f64()));
        add("writes", "1/s", Some(outcome.samples.len() as f64 / outcome.elapsed.as_secs_f64()));
        add("p50", "ms", all.percentile(50).map(millis));
        add("p99", "ms", all.percentile(99).map(millis));
        add("server-cpu", "ms/event", Some(millis(outcome.server_cpu) / all.len().max(1) as f64));
    }
    Ok(())
}

/// Reads a watch until nothing comes for a while after the first event.
async fn follow(start: Instant, mut body: Incoming, _connection: crate::connection::Connection) -> Samples {
    let mut samples = Samples::default();
    let mut rest: Vec<u8> = Vec::new();
    // Before the writers begin, nothing comes.
    let mut patience = Duration::from_secs(30);
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(patience, body.frame()).await {
        patience = DRAIN / 2;
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        let now = start.elapsed();
        let mut used = 0;
        while let Some(line) = rest.get(used..).and_then(|r| r.iter().position(|b| *b == b'\n')) {
            let text = &rest[used..used + line];
            used += line + 1;
            let at = text.windows(MARK.len()).position(|w| w == MARK).map(|at| at + MARK.len());
            let micros = at
                .and_then(|at| text.get(at..at + 12))
                .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            if let Some(micros) = micros {
                samples.add(now.saturating_sub(Duration::from_micros(micros)));
            }
        }
        rest.drain(..used);
    }
    samples
}
