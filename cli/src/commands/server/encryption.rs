//! With which keys Secrets are sealed: a file that the user names, or one that a new cluster makes for itself and hands to
//! every server that joins.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_apiserver::encryption::Encryption;
use coracle_store::{Seal, Store};
use tokio_util::sync::CancellationToken;

use crate::kubeconfig::write_secret;

/// How objects lie on disk.
#[derive(Args, Clone, Debug)]
pub struct Encrypting {
    /// A file of kind EncryptionConfiguration (apiserver.config.k8s.io/v1) that says which resources are encrypted at rest, and
    /// with which keys; all servers need the same keys. Otherwise Secrets are encrypted with a key of the cluster's own.
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
}

impl Encrypting {
    /// The flags, as a server takes them.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let file = self.encryption_provider_config.iter();
        file.map(|file| ("encryption-provider-config", file.display().to_string())).collect()
    }
}

const RETRY: Duration = Duration::from_secs(5);

/// The cluster's own configuration, below `pki`.
pub const FILE: &str = "encryption.yaml";

/// Who seals values, and the configuration that says so.
type Sealer = (Arc<dyn Seal>, Arc<str>);

/// Opens it. `named` is the user's file; a cluster without one makes its own when
/// it is `new`. Clusters that were made without one go on without.
pub fn sealer(named: Option<&Path>, pki: &Path, new: bool) -> Result<Option<Sealer>> {
    let own = pki.join(FILE);
    if named.is_none() && new && !own.exists() {
        write_secret(&own, &Encryption::generate())?;
    }
    let file = named.unwrap_or(&own);
    if named.is_none() && !own.exists() {
        tracing::warn!("Secrets lie unencrypted: this cluster was made without a key for them");
        return Ok(None);
    }
    let read = || -> Result<Sealer> {
        let text = std::fs::read_to_string(file)?;
        Ok((Arc::new(Encryption::parse(&text)?), text.into()))
    };
    read().map(Some).with_context(|| format!("read {}", file.display()))
}

/// Writes again what lies open or under an old key. Without a leader it is tried until there is one.
pub async fn renew(store: Store, shutdown: CancellationToken) {
    loop {
        match coracle_apiserver::encryption::renew(&store).await {
            Ok(0) => return,
            Ok(objects) => return tracing::info!(objects, "written again under the first key"),
            Err(error) => tracing::warn!(%error, "not everything lies under the first key yet"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
