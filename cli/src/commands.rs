//! One file a subcommand.

pub mod apply;
pub mod compile_wasm;
pub mod delete;
pub mod get;
pub mod image;
pub mod logs;
pub mod node;
pub mod runtime;
pub mod server;
pub mod up;
pub mod wasm_host;

use std::future::Future;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Logs of a server process go to standard error; `RUST_LOG` chooses what.
fn init_logs() {
    init_logs_at("info");
}

/// A supervisor speaks only of what went wrong.
fn init_logs_quiet() {
    init_logs_at("warn");
}

fn init_logs_at(level: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Runs a server process until SIGTERM or SIGINT cancels the token that it was given.
fn run_service<F: Future<Output = Result<()>>>(body: impl FnOnce(CancellationToken) -> F) -> Result<()> {
    init_logs();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone())?;
        body(shutdown).await
    })
}

/// Runs a client command.
fn run_client(body: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(body)
}

fn cancel_on_signal(token: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(())
}
