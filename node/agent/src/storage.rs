//! Data of persistent volumes that were made on this node: removed when their volume goes.

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::volumes::claims::storage;

/// On a Node: where the provisioner may have directories made.
pub const DIRECTORY_ANNOTATION: &str = "coracle.dev/volumes-dir";
/// On a PersistentVolume: its data lies on a node, which removes it first.
const FINALIZER: &str = "coracle.dev/local-data";

/// Follows the persistent volumes until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let mut volumes =
        std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff().applied_objects());
    loop {
        let volume = tokio::select! {
            volume = volumes.next() => volume,
            () = shutdown.cancelled() => return,
        };
        match volume {
            Some(Ok(volume)) => {
                if let Err(error) = reclaim(&context, &volume).await {
                    let name = volume.metadata.name.as_deref().unwrap_or_default();
                    tracing::warn!(
                        error = format!("{error:#}"),
                        volume = name,
                        "the data of a volume could not be removed"
                    );
                }
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "the watch of persistent volumes was interrupted; it goes on")
            }
            None => return,
        }
    }
}

/// Removes the data of a volume that is on its way out, if it lies here.
async fn reclaim(context: &Context, volume: &PersistentVolume) -> anyhow::Result<()> {
    let meta = &volume.metadata;
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    let leaves = meta.deletion_timestamp.is_some() && finalizers.iter().any(|f| f == FINALIZER);
    let local = volume.spec.as_ref().and_then(|s| s.local.as_ref());
    let (true, Some(local), Some(name)) = (leaves, local, meta.name.as_deref()) else { return Ok(()) };
    let path = Path::new(&local.path);
    // Every node of a machine may see the path; only the one whose directory it is in removes it.
    if path.parent() != Some(storage(&context.root).as_path()) || path.file_name().is_none_or(|f| f != name) {
        return Ok(());
    }
    let owned = path.to_owned();
    tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(owned) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
    .await??;
    tracing::info!(volume = name, "its data is removed");
    let left: Vec<&String> = finalizers.iter().filter(|f| *f != FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": left}});
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        // Changed meanwhile: the watch brings it again. Gone: fine.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        other => Ok(other.map(drop)?),
    }
}
