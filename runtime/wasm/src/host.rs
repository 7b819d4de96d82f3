//! The body of the wasm-host process: it owns the sandboxes and outlives the CRI service that made them.

use std::path::PathBuf;

/// How a host process runs.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The unix socket to listen on (mode 0600); a stale one is replaced.
    pub socket: PathBuf,
    /// Where the host keeps the Service table and its lock; mode 0700.
    pub state_dir: PathBuf,
}

/// Serves clients until one asks for shutdown.
pub async fn serve(_options: HostOptions) -> anyhow::Result<()> {
    anyhow::bail!("the host is not built yet")
}
