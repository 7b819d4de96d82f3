//! A steady load of HTTP requests over keep-alive connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What came of a load.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    pub answered: u64,
    pub failures: Vec<String>,
}

/// Sends requests over `connections` connections until at least `requests` were answered and `stop` is set. A connection
/// that the server closed between two requests is opened again; anything else that goes wrong is a failure.
pub async fn run(address: SocketAddr, connections: usize, requests: u64, stop: Arc<AtomicBool>) -> Outcome {
    let answered = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    for _ in 0..connections {
        let (answered, stop) = (answered.clone(), stop.clone());
        workers.push(tokio::spawn(async move {
            let mut failures = Vec::new();
            while failures.len() < 5
                && !(stop.load(Ordering::Relaxed) && answered.load(Ordering::Relaxed) >= requests)
            {
                if let Err(error) = connection(address, &answered, requests, &stop).await {
                    failures.push(format!("{error:#}"));
                }
            }
            failures
        }));
    }
    let mut outcome = Outcome::default();
    for worker in workers {
        match worker.await {
            Ok(failures) => outcome.failures.extend(failures),
            Err(error) => outcome.failures.push(error.to_string()),
        }
    }
    outcome.answered = answered.load(Ordering::Relaxed);
    outcome
}

async fn connection(
    address: SocketAddr,
    answered: &AtomicU64,
    requests: u64,
    stop: &AtomicBool,
) -> Result<()> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(driver);
    while !(stop.load(Ordering::Relaxed) && answered.load(Ordering::Relaxed) >= requests) {
        if sender.ready().await.is_err() {
            // Closed while idle: the protocol's own way to say "connect again".
            break;
        }
        let request =
            hyper::Request::get("/").header("host", address.to_string()).body(Empty::<Bytes>::new())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let (status, close) = (response.status(), closes(&response));
            response.into_body().collect().await?;
            Ok::<_, hyper::Error>((status, close))
        };
        let (status, close) = tokio::time::timeout(Duration::from_secs(10), exchange)
            .await
            .context("no answer within 10 s")??;
        anyhow::ensure!(status.is_success(), "answered {status}");
        answered.fetch_add(1, Ordering::Relaxed);
        if close {
            break;
        }
    }
    drop(sender);
    let _ = driver.await;
    Ok(())
}

fn closes<B>(response: &hyper::Response<B>) -> bool {
    response.headers().get("connection").is_some_and(|value| value == "close")
}
