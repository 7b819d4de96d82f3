//! Durable puts and reads a second, at 1, 16 and 64 clients: `cargo bench -p coracle-store --bench put -- [DIR] [SECONDS]`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_store::{Options, Store, Txn, Value};

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("coracle-store-bench"), PathBuf::from);
    let seconds = args.next().and_then(|text| text.parse().ok()).unwrap_or(3);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(bench(dir, Duration::from_secs(seconds))),
        Err(error) => eprintln!("no runtime: {error}"),
    }
}

async fn bench(dir: PathBuf, time: Duration) {
    let started = Instant::now();
    let store = match Store::open(Options::new(&dir)).await {
        Ok(store) => store,
        Err(error) => return eprintln!("{}: {error}", dir.display()),
    };
    println!("open   revision {} in {:?}", store.revision(), started.elapsed());
    for clients in [1, 16, 64] {
        let mut latencies = puts(&store, clients, time).await;
        latencies.sort();
        let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or_default();
        let rate = latencies.len() as f64 / time.as_secs_f64();
        println!("put    {clients:>3} clients {rate:>9.0}/s  p50 {:?}  p99 {:?}", at(50), at(99));
    }
    let started = Instant::now();
    let mut reads = 0_u64;
    while started.elapsed() < time {
        if store.linearizable().await.is_err()
            || store.get(b"/registry/core/configmaps/default/0-0").is_none()
        {
            return eprintln!("read failed");
        }
        reads += 1;
    }
    println!("get      1 clients {:>9.0}/s  linearizable", reads as f64 / time.as_secs_f64());
    if let Err(error) = store.shutdown().await {
        eprintln!("shutdown: {error}");
    }
    let started = Instant::now();
    match Store::open(Options::new(&dir)).await {
        Ok(store) => println!("open   revision {} in {:?}", store.revision(), started.elapsed()),
        Err(error) => eprintln!("{error}"),
    }
}

async fn puts(store: &Store, clients: usize, time: Duration) -> Vec<Duration> {
    let value =
        format!(r#"{{"apiVersion":"v1","data":{{"a":"{}"}},"metadata":{{"name":"x"}}}}"#, "v".repeat(960));
    let started = Instant::now();
    let tasks = (0..clients).map(|client| {
        let (store, value) = (store.clone(), value.clone());
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while started.elapsed() < time {
                let begun = Instant::now();
                let key = format!("/registry/core/configmaps/default/{client}-{}", latencies.len() % 1000);
                let Ok(value) = Value::new(value.clone()) else { break };
                if let Err(error) = store.txn(Txn::put(key.into(), value)).await {
                    eprintln!("put failed: {error}");
                    break;
                }
                latencies.push(begun.elapsed());
            }
            latencies
        })
    });
    let mut all = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        all.extend(task.await.unwrap_or_default());
    }
    all
}
