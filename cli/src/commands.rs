//! One file a subcommand.

pub mod apply;
pub mod bench;
pub mod compile_wasm;
pub mod delete;
pub mod explain_schedule;
pub mod get;
pub mod gpu_plugin;
pub mod image;
pub mod logs;
pub mod member;
pub mod node;
pub mod oci_shim;
pub mod runtime;
pub mod server;
pub mod snapshot;
pub mod token;
pub mod top;
pub mod ui;
pub mod up;
pub mod wasm_host;

use std::future::Future;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Logs of a server process go to standard error; `RUST_LOG` chooses what.
fn init_logs() {
    init_logs_at("info,openraft=error");
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

/// Allows this process as many open files as a kubelet asks for, where it may; else as many as it may. Each pod takes some.
fn raise_open_files() -> nix::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const MOST: u64 = 1_000_000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= MOST {
        return Ok(());
    }
    // To raise the hard limit is a privilege.
    setrlimit(Resource::RLIMIT_NOFILE, MOST, hard.max(MOST))
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard.min(MOST), hard))
}

/// Runs a server process until SIGTERM or SIGINT cancels the token that it was given.
fn run_service<F: Future<Output = Result<()>>>(body: impl FnOnce(CancellationToken) -> F) -> Result<()> {
    init_logs();
    let _ = raise_open_files().inspect_err(|error| tracing::warn!(%error, "open files stay limited"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        // A second signal does not wait for what is under way.
        let hurry = CancellationToken::new();
        cancel_on_signal(shutdown.clone(), hurry.clone())?;
        tokio::select! {
            done = body(shutdown) => done,
            () = hurry.cancelled() => anyhow::bail!("told twice to end"),
        }
    })
}

/// Runs a client command.
fn run_client(body: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(body)
}

/// What the user reads of an error. A refusal by the server is told in the server's words, as kubectl does.
pub fn words(error: &anyhow::Error) -> String {
    let mut before = String::new();
    for cause in error.chain() {
        if let Some(kube::Error::Api(status)) = cause.downcast_ref::<kube::Error>() {
            let reason = if status.reason.is_empty() { "Unknown" } else { &status.reason };
            return format!("Error from server ({reason}): {before}{}", status.message);
        }
        before += &format!("{cause}: ");
    }
    format!("coracle: {error:#}")
}

/// Whether an error says that nobody reads our output any more.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<Output>().is_some_and(|output| closed(&output.0)))
}

/// What went wrong with some objects while the others were gone on with.
#[derive(Default)]
struct Failures(Vec<anyhow::Error>);

impl Failures {
    fn add(&mut self, error: anyhow::Error) {
        self.0.push(error);
    }

    /// All but the last are told here, the last by who gets it.
    fn end(mut self) -> Result<()> {
        let Some(last) = self.0.pop() else { return Ok(()) };
        for error in &self.0 {
            eprintln!("{}", words(error));
        }
        Err(last)
    }
}

/// Standard output cannot be written.
#[derive(Debug)]
pub struct Output(std::io::Error);

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "write to standard output: {}", self.0)
    }
}

impl std::error::Error for Output {}

/// Writes to standard output.
fn print(bytes: impl AsRef<[u8]>) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(bytes.as_ref()).and_then(|()| out.flush()).map_err(Output)?;
    Ok(())
}

/// The first SIGTERM or SIGINT cancels `shutdown`, the second one `hurry`.
fn cancel_on_signal(shutdown: CancellationToken, hurry: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    tokio::spawn(async move {
        for token in [shutdown, hurry] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let status = kube::core::Status {
            message: "pods \"x\" not found".into(),
            reason: "NotFound".into(),
            code: 404,
            ..Default::default()
        };
        let error = anyhow::Error::new(kube::Error::Api(Box::new(status)));
        assert_eq!(words(&error), "Error from server (NotFound): pods \"x\" not found");
        assert_eq!(
            words(&error.context("pod/x")),
            "Error from server (NotFound): pod/x: pods \"x\" not found"
        );
        assert_eq!(words(&anyhow::anyhow!("no").context("read")), "coracle: read: no");
    }
}
