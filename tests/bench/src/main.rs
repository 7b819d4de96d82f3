//! The program behind `cargo xtask bench`: starts `coracle up` (`$CORACLE_BIN`) on loopback addresses, measures it from
//! outside and prints the figures. It judges nothing: a figure is never an assertion.

#![forbid(unsafe_code)]

mod api;
mod connection;
mod figures;
mod http;
mod load;
mod peer;
mod pods;
mod process;
mod samples;
mod store;
mod watch;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use coracle_e2e::{Cluster, Profile};

use figures::Figures;

/// As `coracle` has it: what serves our store here allocates as it does there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "coracle-bench", about = "Measure the coracle binary that CORACLE_BIN names")]
struct Options {
    /// What to measure; everything where nothing is named.
    suite: Option<Suite>,
    /// Where to write the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long one rate is measured, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10))]
    seconds: u64,
    /// Keys with which the store's memory and recovery are measured.
    #[arg(long, value_delimiter = ',', default_values_t = [100_000, 1_000_000])]
    keys: Vec<u64>,
    /// Serve a store of this directory instead: the suite `store` starts itself so.
    #[arg(long, hide = true, requires = "at")]
    serve_store: Option<PathBuf>,
    /// Where.
    #[arg(long, hide = true)]
    at: Option<SocketAddr>,
    /// What a Deployment of the suite `pods` grows to at once. The folder of temporary files (`TMPDIR`) should be on a
    /// filesystem with a journal: ext4 without one is slow to make files where many were removed in the last minutes.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000],
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    bursts: Vec<u32>,
    #[command(flatten)]
    cluster: store::Cluster,
    /// Of the suite `store`, only figures whose names begin so: `put/`, `members/3/put/64`.
    #[arg(long)]
    only: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// ConfigMaps over TLS: rates, latencies, CPU per request.
    Api,
    /// Answers of a pod a second, beside `wasmtime serve` and nginx.
    Http,
    /// Pods: create to Ready, Deployments of many, memory of every process.
    Pods,
    /// The store over etcd's API, beside etcd.
    Store,
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    // Another crate of the tree brings a second provider, so that rustls cannot choose by itself.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // Without one, spans are made for a logger that is not there.
    let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let (Some(dir), Some(at)) = (&options.serve_store, options.at) {
        return runtime.block_on(store::serve(dir, at, std::mem::take(&mut options.cluster)));
    }
    let binary = std::env::var("CORACLE_BIN").context("CORACLE_BIN is not set: run `cargo xtask bench`")?;
    println!("{}", process::machine(&binary));
    let mut figures = Figures::default();
    let mut done = Ok(());
    for suite in [Suite::Api, Suite::Http, Suite::Pods, Suite::Store] {
        if done.is_ok() && options.suite.is_none_or(|only| only == suite) {
            done = measure(suite, &options, &runtime, &mut figures);
        }
    }
    // What was measured before a failure is still worth reading.
    println!("{}", figures.table());
    if let Some(path) = &options.json {
        std::fs::write(path, figures.json()?).with_context(|| format!("write {}", path.display()))?;
    }
    done
}

/// Runs one suite on a cluster of its own.
fn measure(
    suite: Suite,
    options: &Options,
    runtime: &tokio::runtime::Runtime,
    figures: &mut Figures,
) -> Result<()> {
    let lasts = Duration::from_secs(options.seconds);
    if suite == Suite::Store {
        let etcd = std::env::var("CORACLE_ETCD")
            .context("CORACLE_ETCD is not set: run `cargo xtask bench store`")?;
        let only = options.only.as_deref();
        return runtime.block_on(store::run(Path::new(&etcd), lasts, &options.keys, only, figures));
    }
    let most = options.bursts.iter().max().copied().unwrap_or_default().max(1000).to_string();
    let mut cluster = Cluster::start_with(Profile::Loopback, &["--max-pods", &most])?;
    let measured = match suite {
        Suite::Api => runtime.block_on(api::run(&cluster, lasts, figures)),
        Suite::Http => http::run(&cluster, lasts, figures),
        Suite::Pods => runtime.block_on(pods::run(&cluster, &options.bursts, figures)),
        Suite::Store => Ok(()),
    };
    let measured = measured.with_context(|| cluster.logs());
    measured.and(cluster.stop().map(drop))
}
