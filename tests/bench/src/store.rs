//! The store beside etcd: the same client, over the same API and a socket each, on the same disk. Ours is served by this
//! program itself, in a process of its own (`--serve-store`).

mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::figures::{Beside, Figures};
use crate::process;
use crate::samples::Samples;

pub use server::serve;

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
/// Calls share a connection, as etcd's own benchmark has it.
const PER_CONNECTION: usize = 16;
const START: Duration = Duration::from_secs(120);

/// One of the two, as a process.
struct Served {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
    program: Program,
}

#[derive(Clone)]
enum Program {
    Ours,
    Etcd(PathBuf),
}

impl Served {
    async fn start(program: Program) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coracle-bench-store-").tempdir()?;
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Self::spawn(&program, dir.path(), address)?;
        let served = Self { child, address, dir, program };
        served.ready().await?;
        Ok(served)
    }

    fn spawn(program: &Program, dir: &Path, address: SocketAddr) -> Result<Child> {
        let mut command = match program {
            Program::Ours => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("--serve-store").arg(dir.join("data")).arg("--at").arg(address.to_string());
                command
            }
            Program::Etcd(etcd) => {
                let peer = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
                let mut command = Command::new(etcd);
                command.arg("--data-dir").arg(dir.join("data")).arg("--quota-backend-bytes=8589934592");
                command.args([
                    format!("--listen-client-urls=http://{address}"),
                    format!("--advertise-client-urls=http://{address}"),
                ]);
                command.args([
                    format!("--listen-peer-urls=http://{peer}"),
                    format!("--initial-advertise-peer-urls=http://{peer}"),
                ]);
                command.arg(format!("--initial-cluster=default=http://{peer}"));
                command
            }
        };
        let log = std::fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("start {command:?}"))
    }

    async fn channel(&self) -> Result<Channel> {
        Ok(Channel::from_shared(format!("http://{}", self.address))?.tcp_nodelay(true).connect().await?)
    }

    /// Waits until a read is answered.
    async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Ok(channel) = self.channel().await {
                let asked = api::RangeRequest { key: b"/ready".to_vec(), ..Default::default() };
                if KvClient::new(channel).range(asked).await.is_ok() {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                bail!("it does not start:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Kills it and starts it again; how long that takes until it answers.
    async fn recover(&mut self) -> Result<Duration> {
        self.child.kill()?;
        self.child.wait()?;
        let started = Instant::now();
        self.child = Self::spawn(&self.program, self.dir.path(), self.address)?;
        self.ready().await?;
        Ok(started.elapsed())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
    for _ in 0..clients.div_ceil(PER_CONNECTION) {
        channels.push(served.channel().await?);
    }
    let began = Instant::now();
    let before = process::cpu(served.pid())?;
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
    let (took, cpu) = (began.elapsed(), process::cpu(served.pid())?.saturating_sub(before));
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
        let channel = served.channel().await?;
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
        let channel = served.channel().await?;
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

/// Measures both, one after the other for each figure, so that what else the machine does falls on both.
pub async fn run(etcd: &Path, lasts: Duration, keys: &[u64], figures: &mut Figures) -> Result<()> {
    let version = Command::new(etcd).arg("--version").output().context("run etcd")?;
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.lines().next().unwrap_or_default().replace(" Version: ", " ");
    let programs = || [Program::Ours, Program::Etcd(etcd.to_owned())];
    let beside = |peer: f64, goal: Option<f64>| Beside { peer, version: version.clone(), goal };
    let mut both = Vec::new();
    for program in programs() {
        both.push(Served::start(program).await?);
    }
    let [ours, peer] = &both[..] else { bail!("two are measured") };
    for (work, name) in [(Work::Put, "put"), (Work::Get, "get"), (Work::Range, "range-100")] {
        for clients in CLIENTS {
            let a = load(ours, work, clients, lasts).await?;
            let b = load(peer, work, clients, lasts).await?;
            let goal = match (work, clients) {
                (Work::Put, 1) => Some(1.0),
                (Work::Put, 16) | (Work::Get, 1) => Some(2.0),
                (Work::Put, 64) | (Work::Get, 64) => Some(3.0),
                _ => None,
            };
            figures.compare("store", format!("{name}/{clients}/rate"), "1/s", a.rate, beside(b.rate, goal));
            figures.compare("store", format!("{name}/{clients}/p50"), "ms", a.p50, beside(b.p50, None));
            figures.compare("store", format!("{name}/{clients}/p99"), "ms", a.p99, beside(b.p99, None));
            figures.compare(
                "store",
                format!("{name}/{clients}/server-cpu"),
                "ms/call",
                a.cpu,
                beside(b.cpu, None),
            );
        }
    }
    for watchers in WATCHERS {
        let (a, b) = (watch(ours, watchers, lasts).await?, watch(peer, watchers, lasts).await?);
        figures.compare("store", format!("watch/{watchers}/events"), "1/s", a, beside(b, None));
    }
    drop(both);
    for keys in keys {
        let mut seen = Vec::new();
        for program in programs() {
            let mut served = Served::start(program).await?;
            fill(&served, *keys).await?;
            let memory = process::memory(served.pid())?.rss as f64 / f64::from(1 << 20);
            let recovery = served.recover().await?.as_secs_f64();
            let after = process::memory(served.pid())?.rss as f64 / f64::from(1 << 20);
            seen.push((memory, recovery, after));
        }
        let [a, b] = seen[..] else { bail!("two are measured") };
        let goal = (*keys == 1_000_000).then_some(0.5);
        figures.compare("store", format!("keys/{keys}/memory"), "MiB", a.0, beside(b.0, None));
        figures.compare("store", format!("keys/{keys}/recovery"), "s", a.1, beside(b.1, goal));
        figures.compare("store", format!("keys/{keys}/memory-recovered"), "MiB", a.2, beside(b.2, None));
    }
    Ok(())
}
