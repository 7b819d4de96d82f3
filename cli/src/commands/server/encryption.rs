//! With which keys Secrets are sealed: a file that the user names, or one that a new cluster makes for itself and hands to
//! every server that joins.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use coracle_apiserver::encryption::Encryption;
use coracle_store::Seal;

use crate::kubeconfig::write_secret;

/// The cluster's own configuration, below `pki`.
pub const FILE: &str = "encryption.yaml";

/// Who seals values. `named` is the user's file; a cluster without one makes its own when it is `new`. Clusters that were
/// made without one go on without.
pub fn sealer(named: Option<&Path>, pki: &Path, new: bool) -> Result<Option<Arc<dyn Seal>>> {
    let own = pki.join(FILE);
    if named.is_none() && new && !own.exists() {
        write_secret(&own, &Encryption::generate())?;
    }
    let file = named.unwrap_or(&own);
    if named.is_none() && !own.exists() {
        tracing::warn!("Secrets lie unencrypted: this cluster was made without a key for them");
        return Ok(None);
    }
    let encryption = Encryption::open(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Some(Arc::new(encryption)))
}
