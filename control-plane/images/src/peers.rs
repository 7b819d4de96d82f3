//! Blobs and the other members of a cluster: each serves what it has, asks for what it lacks, and gathers by itself what
//! manifests that are pushed elsewhere name.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use coracle_store::{Range, Store};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::StatusCode;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use crate::blobs::Blobs;
use crate::manifests::{self, MANIFESTS};
use crate::{BLOB_MAX, names};

/// Below it members serve blobs to each other.
const PREFIX: &str = "/blobs/";
/// How often blobs that no member gave are asked for again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long a member may say nothing in the middle of a blob.
const IDLE: Duration = Duration::from_secs(30);

/// The bytes of a blob.
pub type Pieces = BoxStream<'static, io::Result<Bytes>>;
/// Asks the other members for a path; `None`: none has it.
pub type Fetch = Arc<dyn Fn(String) -> BoxFuture<'static, Option<Pieces>> + Send + Sync>;

/// What a member serves the others.
pub(crate) fn router(blobs: Blobs) -> Router {
    Router::new().route(&format!("{PREFIX}{{hex}}"), get(serve)).with_state(blobs)
}

async fn serve(State(blobs): State<Blobs>, Path(hex): Path<String>) -> Response {
    let Ok(hex) = names::sha256(&format!("sha256:{hex}")).map(str::to_owned) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    match blobs.open_here(&hex).await {
        Ok(Some((file, _))) => Body::from_stream(ReaderStream::new(file)).into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Gets a blob from another member, checks it and keeps it. Whether it is here now.
pub(crate) async fn fetch(blobs: &Blobs, fetch: &Fetch, hex: &str) -> io::Result<bool> {
    let Some(mut pieces) = fetch(format!("{PREFIX}{hex}")).await else { return Ok(false) };
    let path = blobs.upload_path(&uuid::Uuid::new_v4().to_string());
    let received = async {
        let mut file = File::create(&path).await?;
        let (mut digest, mut size) = (Sha256::new(), 0_u64);
        loop {
            let piece = tokio::time::timeout(IDLE, pieces.next()).await.map_err(io::Error::other)?;
            let Some(piece) = piece.transpose()? else { break };
            size += piece.len() as u64;
            if size > BLOB_MAX {
                return Err(io::Error::other("another member sends a blob that is too large"));
            }
            digest.update(&piece);
            file.write_all(&piece).await?;
        }
        if hex::encode(digest.finalize()) != hex {
            return Err(io::Error::other("another member sent what is not the blob"));
        }
        blobs.adopt(file, &path, hex).await
    };
    let received = received.await;
    if received.is_err() {
        let _ = fs::remove_file(&path).await;
    }
    received.map(|()| true)
}

/// Gathers the blobs of every manifest, for as long as the store runs.
pub(crate) async fn gather(store: Store, blobs: Blobs) {
    loop {
        let from = store.revision();
        let mut missing = false;
        if let Ok(all) = store.range(&Range::prefix(MANIFESTS)) {
            for kv in all.kvs {
                missing |= !complete(&blobs, &kv.value.json).await;
            }
        }
        let Ok(mut watch) = store.watch(MANIFESTS.into(), from) else { return };
        let again = tokio::time::sleep(if missing { AGAIN } else { Duration::MAX });
        let mut again = std::pin::pin!(again);
        loop {
            let event = tokio::select! {
                event = watch.next() => event,
                () = &mut again => break,
            };
            match event {
                Ok(event) if event.kind == coracle_store::EventKind::Put => {
                    if !complete(&blobs, &event.kv.value.json).await {
                        again.set(tokio::time::sleep(AGAIN));
                    }
                }
                Ok(_) => {}
                Err(coracle_store::Error::Stopped(_)) => return,
                Err(_) => break,
            }
        }
    }
}

/// Gets what a manifest names; whether all of it is here now.
async fn complete(blobs: &Blobs, stored: &Bytes) -> bool {
    let Some(manifest) = manifests::decode(stored) else { return true };
    let Ok(manifest) = serde_json::from_slice::<Value>(&manifest.bytes) else { return true };
    let layers = manifest.get("layers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let named = manifest.get("config").into_iter().chain(layers);
    let mut all = true;
    for digest in named.filter_map(|blob| blob.get("digest")?.as_str()) {
        let Ok(hex) = names::sha256(digest) else { continue };
        match blobs.size(hex).await {
            Ok(found) => all &= found.is_some(),
            Err(error) => {
                tracing::warn!(digest, %error, "get a blob from another member");
                all = false;
            }
        }
    }
    all
}
