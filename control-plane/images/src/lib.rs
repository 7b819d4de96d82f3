//! The built-in image registry: OCI distribution 1.1 below `/v2/`, on the API server's own port.
//!
//! Manifests and tags lie in the store, blobs are files below `<data dir>/blobs`. A blob is addressed by its content alone: every
//! repository sees every blob. Whoever the API server lets in may do everything; nobody else gets past the door.
#![forbid(unsafe_code)]

mod blobs;
mod error;
mod manifests;
mod names;
mod pages;
mod route;
mod serve;
mod uploads;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use coracle_store::Store;

pub use serve::{MANIFEST_MAX, REALM};
pub use uploads::{BLOB_MAX, SESSION_IDLE, SESSIONS_MAX};

/// The registry as a router, to be mounted at `/v2` with whole paths. Requests must carry the caller as a
/// `coracle_apiserver::UserInfo` extension; without one, or with the anonymous user, they get 401.
///
/// # Errors
/// The folders below `data_dir` cannot be made.
pub fn router(store: Store, data_dir: &Path) -> anyhow::Result<axum::Router> {
    let root = data_dir.join("blobs");
    let blobs =
        blobs::Blobs::open(&root).with_context(|| format!("making the folders of {}", root.display()))?;
    let registry = Arc::new(serve::Registry {
        manifests: manifests::Manifests::new(store),
        uploads: uploads::Uploads::new(blobs.clone()),
        blobs,
    });
    Ok(axum::Router::new().fallback(serve::call).with_state(registry))
}
