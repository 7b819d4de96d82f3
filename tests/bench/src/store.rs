//! The store beside etcd: the same client, over the same API and a socket each, on the same disk. Ours is served by this
//! program itself, in a process of its own (`--serve-store`).

mod served;
mod server;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::figures::{Beside, Figures};
use crate::samples::Samples;

use served::{Program, Served};
pub use server::{Cluster, serve};

/// etcd's messages and clients.
pub mod api {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("etcdserverpb");
}

use api::kv_client::KvClient;
use api::watch_client::WatchClient;
use api::watch_request::RequestUnion;

const VALUE: usize = 1024;
const CLIENTS: [usize; 4] = [1, 16, 64, 256];
const WATCHERS: [usize; 4] = [1, 10, 100, 1000];
/// Members of a cluster.
const MEMBERS: usize = 3;
/// Calls share a connection, as etcd's own benchmark has it.
const PER_CONNECTION: usize = 16;

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Put,
    Get,
    /// A hundred keys in order.
    Range,
}

/// Rate, latencies, CPU time a call in milliseconds.
struct Figure {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
}

fn key(number: u64) -> Vec<u8> {
    format!("/registry/configmaps/default/{:08}", number % 10_000).into_bytes()
}

fn value() -> Vec<u8> {
    // JSON, which is what ours keeps; to etcd it is bytes.
    format!("\"{}\"", "v".repeat(VALUE - 2)).into_bytes()
}

async fn load(served: &Served, work: Work, clients: usize, lasts: Duration) -> Result<Figure> {
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut channels = Vec::new();
    // Of a cluster, each member has its clients.
    for number in 0..clients.div_ceil(PER_CONNECTION) {
        channels.push(served.channel(number).await?);
    }
    let began = Instant::now();
    let before = served.cpu()?;
    let tasks = (0..clients).map(|client| {
        let channel = channels[client % channels.len()].clone();
        let (stop, next) = (stop.clone(), next.clone());
        tokio::spawn(async move {
            let mut kv = KvClient::new(channel).max_decoding_message_size(64 << 20);
            let (mut samples, value) = (Samples::default(), value());
            while !stop.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed).wrapping_mul(7919);
                let started = Instant::now();
                match work {
                    Work::Put => {
                        drop(kv.put(api::PutRequest { key: key(number), value: value.clone() }).await?)
                    }
                    Work::Get => {
                        drop(kv.range(api::RangeRequest { key: key(number), ..Default::default() }).await?)
                    }
                    Work::Range => {
                        let range_end = b"/registry/configmaps/default0".to_vec();
                        let ask = api::RangeRequest { key: key(number), range_end, limit: 100, revision: 0 };
                        drop(kv.range(ask).await?);
                    }
                }
                samples.add(started.elapsed());
            }
            anyhow::Ok(samples)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    tokio::time::sleep(lasts).await;
    stop.store(true, Ordering::Relaxed);
    let mut samples = Samples::default();
    for task in tasks {
        samples.extend(task.await??);
    }
    let (took, cpu) = (began.elapsed(), served.cpu()?.saturating_sub(before));
    let calls = samples.len() as f64;
    let millis = |percent| samples.percentile(percent).unwrap_or_default().as_secs_f64() * 1e3;
    let cpu = cpu.as_secs_f64() * 1e3 / calls;
    Ok(Figure { rate: calls / took.as_secs_f64(), p50: millis(50), p99: millis(99), cpu })
}

/// Events a second that so many watchers of one prefix are sent while sixteen clients write.
async fn watch(served: &Served, watchers: usize, lasts: Duration) -> Result<f64> {
    let seen = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for number in 0..watchers {
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
        let channel = served.channel(0).await?;
        let create = api::WatchCreateRequest {
            key: b"/registry/configmaps/".to_vec(),
            range_end: b"/registry/configmaps0".to_vec(),
            start_revision: 0,
        };
        let ask = api::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The stream of requests stays open: its end ends the watch.
        let asks = futures::StreamExt::chain(futures::stream::iter([ask]), futures::stream::pending());
        let mut events = WatchClient::new(channel).watch(asks).await?.into_inner();
        let created = events.message().await?.context("a watch that ended")?;
        ensure!(created.created, "a watch was not made");
        let seen = seen.clone();
        tasks.push(tokio::spawn(async move {
            while let Ok(Some(some)) = events.message().await {
                seen.fetch_add(some.events.len() as u64, Ordering::Relaxed);
            }
        }));
    }
    let (began, before) = (Instant::now(), seen.load(Ordering::Relaxed));
    load(served, Work::Put, 16, lasts).await?;
    let rate = (seen.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(rate)
}

/// Writes so many keys.
async fn fill(served: &Served, keys: u64) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..256 / PER_CONNECTION {
        let channel = served.channel(0).await?;
        for _ in 0..PER_CONNECTION {
            let (mut kv, next) = (KvClient::new(channel.clone()), next.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= keys {
                        return anyhow::Ok(());
                    }
                    let key = format!("/fill/{number:08}").into_bytes();
                    kv.put(api::PutRequest {
                        key,
                        value: b"\"a value of a few bytes, as most are\"".to_vec(),
                    })
                    .await?;
                }
            }));
        }
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Measures both, one after the other for each figure, so that what else the machine does falls on both. Only figures whose
/// names begin so are measured, where one is given.
pub async fn run(
    etcd: &Path,
    lasts: Duration,
    keys: &[u64],
    only: Option<&str>,
    figures: &mut Figures,
) -> Result<()> {
    let version = Command::new(etcd).arg("--version").output().context("run etcd")?;
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.lines().next().unwrap_or_default().replace(" Version: ", " ");
    let programs = [Program::Ours, Program::Etcd(etcd.to_owned())];
    let mut bench = Bench { programs, version, only, lasts, figures };
    let works = [(Work::Put, "put"), (Work::Get, "get"), (Work::Range, "range-100")];
    let alone = ["put/", "get/", "range-100/", "watch/"];
    if alone.iter().any(|group| bench.wants_of(group)) {
        let [ours, peer] = &bench.start(1).await?;
        for (work, name) in works {
            for clients in CLIENTS {
                let goal = match (work, clients) {
                    (Work::Put, 1) => Some(1.0),
                    (Work::Put, 16) | (Work::Get, 1) => Some(2.0),
                    (Work::Put, 64) | (Work::Get, 64) => Some(3.0),
                    _ => None,
                };
                bench.load([ours, peer], work, &format!("{name}/{clients}"), clients, goal).await?;
            }
        }
        for watchers in WATCHERS {
            let name = format!("watch/{watchers}/events");
            if bench.wants(&name) {
                let (a, b) = (watch(ours, watchers, lasts).await?, watch(peer, watchers, lasts).await?);
                bench.compare(name, "1/s", [a, b], None);
            }
        }
    }
    if bench.wants_of("members/") {
        let [ours, peer] = &bench.start(MEMBERS).await?;
        for clients in [1, 64] {
            let goal = (clients == 64).then_some(1.5);
            let name = format!("members/{MEMBERS}/put/{clients}");
            bench.load([ours, peer], Work::Put, &name, clients, goal).await?;
        }
    }
    for keys in keys {
        if bench.wants_of("keys/") {
            bench.recovery(*keys).await?;
        }
    }
    Ok(())
}

/// What one run measures, and where its rows go.
struct Bench<'a> {
    programs: [Program; 2],
    version: String,
    only: Option<&'a str>,
    lasts: Duration,
    figures: &'a mut Figures,
}

impl Bench<'_> {
    fn wants(&self, name: &str) -> bool {
        self.only.is_none_or(|only| name.starts_with(only))
    }

    /// Whether any row of a group is wanted.
    fn wants_of(&self, group: &str) -> bool {
        self.only.is_none_or(|only| group.starts_with(only) || only.starts_with(group))
    }

    fn compare(&mut self, name: String, unit: &'static str, [ours, peer]: [f64; 2], goal: Option<f64>) {
        let beside = Beside { peer, version: self.version.clone(), goal };
        self.figures.compare("store", name, unit, ours, beside);
    }

    async fn start(&self, members: usize) -> Result<[Served; 2]> {
        let [ours, peer] = self.programs.clone();
        Ok([Served::start(ours, members).await?, Served::start(peer, members).await?])
    }

    async fn load(
        &mut self,
        [ours, peer]: [&Served; 2],
        work: Work,
        name: &str,
        clients: usize,
        goal: Option<f64>,
    ) -> Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let a = load(ours, work, clients, self.lasts).await?;
        let b = load(peer, work, clients, self.lasts).await?;
        self.compare(format!("{name}/rate"), "1/s", [a.rate, b.rate], goal);
        self.compare(format!("{name}/p50"), "ms", [a.p50, b.p50], None);
        self.compare(format!("{name}/p99"), "ms", [a.p99, b.p99], None);
        self.compare(format!("{name}/server-cpu"), "ms/call", [a.cpu, b.cpu], None);
        Ok(())
    }

    /// Memory with so many keys, and how long one that was killed takes until it answers.
    async fn recovery(&mut self, keys: u64) -> Result<()> {
        let mut seen = Vec::new();
        for program in self.programs.clone() {
            let mut served = Served::start(program, 1).await?;
            fill(&served, keys).await?;
            let memory = served.memory()? as f64 / f64::from(1 << 20);
            let recovery = served.recover().await?.as_secs_f64();
            let after = served.memory()? as f64 / f64::from(1 << 20);
            seen.push((memory, recovery, after));
        }
        let [a, b] = seen[..] else { bail!("two are measured") };
        let goal = (keys == 1_000_000).then_some(0.5);
        self.compare(format!("keys/{keys}/memory"), "MiB", [a.0, b.0], None);
        self.compare(format!("keys/{keys}/recovery"), "s", [a.1, b.1], goal);
        self.compare(format!("keys/{keys}/memory-recovered"), "MiB", [a.2, b.2], None);
        Ok(())
    }
}
