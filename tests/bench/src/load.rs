//! A closed loop: each of N clients sends its next request when the last one was answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::connection::{Ask, Connection, Endpoint};
use crate::process;
use crate::samples::Samples;

/// Not measured: the server's caches and the clients' connections warm up.
const WARM_UP: Duration = Duration::from_millis(500);
/// More than these are no figure any more, and might never end.
const MOST_ERRORS: u64 = 100;

/// What to send, how much of it, and whose CPU time to read.
pub struct Load {
    pub endpoint: Endpoint,
    pub clients: usize,
    pub duration: Duration,
    /// Ends the measurement early.
    pub most_requests: u64,
    /// The server.
    pub pid: i32,
}

/// What came of it. Requests that failed are in `errors` alone.
pub struct Outcome {
    pub samples: Samples,
    pub errors: u64,
    pub first_error: Option<String>,
    /// From the first request measured to the last answer.
    pub elapsed: Duration,
    pub server_cpu: Duration,
    pub client_cpu: Duration,
}

/// One client's share.
#[derive(Default)]
struct Share {
    samples: Samples,
    errors: u64,
    first_error: Option<String>,
    ended: Option<Instant>,
}

/// What the clients share.
struct Plan<F> {
    endpoint: Endpoint,
    start: Instant,
    end: Instant,
    most: u64,
    serial: Arc<AtomicU64>,
    measured: AtomicU64,
    make: F,
}

impl Load {
    /// Sends what `make` makes of growing serial numbers.
    pub async fn run<F>(&self, serial: &Arc<AtomicU64>, make: F) -> Result<Outcome>
    where
        F: Fn(u64) -> Ask + Send + Sync + 'static,
    {
        let mut connections = Vec::new();
        for _ in 0..self.clients {
            connections.push(self.endpoint.connect().await?);
        }
        let start = Instant::now() + WARM_UP;
        let plan = Arc::new(Plan {
            endpoint: self.endpoint.clone(),
            start,
            end: start + self.duration,
            most: self.most_requests,
            serial: serial.clone(),
            measured: AtomicU64::new(0),
            make,
        });
        let clients: Vec<_> = connections
            .into_iter()
            .map(|connection| {
                let plan = plan.clone();
                tokio::spawn(async move { plan.client(connection).await })
            })
            .collect();
        tokio::time::sleep_until(start.into()).await;
        let own = i32::try_from(std::process::id())?;
        let before = (process::cpu(self.pid)?, process::cpu(own)?);
        let mut all = Share::default();
        for client in clients {
            all.join(client.await?);
        }
        let after = (process::cpu(self.pid)?, process::cpu(own)?);
        Ok(Outcome {
            samples: all.samples,
            errors: all.errors,
            first_error: all.first_error,
            elapsed: all.ended.map_or(self.duration, |ended| ended.saturating_duration_since(start)),
            server_cpu: after.0.saturating_sub(before.0),
            client_cpu: after.1.saturating_sub(before.1),
        })
    }
}

impl<F: Fn(u64) -> Ask> Plan<F> {
    async fn client(&self, connection: Connection) -> Share {
        let mut connection = Some(connection);
        let mut share = Share::default();
        while share.errors < MOST_ERRORS {
            let began = Instant::now();
            if began >= self.end || self.measured.load(Ordering::Relaxed) >= self.most {
                break;
            }
            let answer = self.one(&mut connection).await;
            let ended = Instant::now();
            if let Err(error) = answer {
                // Errors while warming up count too: they are never to be expected.
                share.errors += 1;
                share.first_error.get_or_insert_with(|| format!("{error:#}"));
                connection = None;
            } else if began >= self.start {
                self.measured.fetch_add(1, Ordering::Relaxed);
                share.samples.add(ended - began);
                share.ended = Some(ended);
            }
        }
        share
    }

    async fn one(&self, connection: &mut Option<Connection>) -> Result<()> {
        if connection.is_none() {
            *connection = Some(self.endpoint.connect().await?);
        }
        let Some(connection) = connection else { bail!("not connected") };
        let ask = (self.make)(self.serial.fetch_add(1, Ordering::Relaxed));
        connection.ask(ask).await.map(drop)
    }
}

impl Share {
    fn join(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.ended = self.ended.max(other.ended);
    }
}
