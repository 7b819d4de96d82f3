//! The built-in image registry: OCI distribution 1.1 below `/v2/`, on the API server's own port.
//!
//! Manifests and tags lie in the store, blobs are files below `<data dir>/blobs`. A blob is addressed by its content alone: every
//! repository sees every blob. Members of a cluster give each other the blobs that they lack. Whoever the API server lets in may do everything; nobody else gets past the door.
#![forbid(unsafe_code)]

mod blobs;
mod error;
mod manifests;
mod names;
mod pages;
mod peers;
mod route;
mod serve;
mod uploads;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use coracle_store::Store;

pub use peers::{Fetch, Pieces};
pub use serve::{MANIFEST_MAX, REALM};
pub use uploads::{BLOB_MAX, SESSION_IDLE, SESSIONS_MAX};

/// The registry of a server.
pub struct ImageRegistry {
    blobs: blobs::Blobs,
}

impl ImageRegistry {
    /// Opens the folders below `data_dir`, or makes them.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let root = data_dir.join("blobs");
        let blobs = blobs::Blobs::open(&root);
        Ok(Self { blobs: blobs.with_context(|| format!("making the folders of {}", root.display()))? })
    }

    /// What this server serves the other members of its cluster, below `/blobs/`.
    pub fn member_router(&self) -> axum::Router {
        peers::router(self.blobs.clone())
    }

    /// The registry as a router, to be mounted at `/v2` with whole paths. Requests must carry the caller as a
    /// `coracle_apiserver::UserInfo` extension; without one, or with the anonymous user, they get 401. Blobs that are not
    /// here are fetched from other members, those of new manifests at once.
    pub fn router(&self, store: Store, fetch: Option<Fetch>) -> axum::Router {
        let blobs = match fetch {
            Some(fetch) => {
                let blobs = self.blobs.with_members(fetch);
                tokio::spawn(peers::gather(store.clone(), blobs.clone()));
                blobs
            }
            None => self.blobs.clone(),
        };
        let registry = Arc::new(serve::Registry {
            manifests: manifests::Manifests::new(store),
            uploads: uploads::Uploads::new(blobs.clone()),
            blobs,
        });
        axum::Router::new().fallback(serve::call).with_state(registry)
    }
}
