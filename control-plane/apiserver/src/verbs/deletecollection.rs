//! deletecollection: every object that a list would show.

use axum::body::Body;
use coracle_api::Status;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Response, StatusCode};
use serde_json::Value;

use super::delete::{delete_object, read_options};
use super::list;
use crate::call::Call;
use crate::codec;
use crate::select::Selection;

/// How many objects are deleted at a time.
const WORKERS: usize = 8;

/// Deletes what the selectors choose and answers with the list of it.
pub(crate) async fn delete_collection(mut call: Call) -> Result<Response<Body>, Status> {
    let mut options = read_options(&call)?;
    call.target.cx.dry_run |= !options.dry_run.is_empty();
    // Preconditions name one object.
    (options.uid, options.resource_version) = (None, None);
    let selection = Selection::of(&call.served, &call.query, None)?;
    let prefix = call.served.list_prefix(call.cx.namespace.as_deref());
    let found = call.shared.objects.range(&coracle_store::Range::prefix(prefix), &call.served.gr).await?;
    let mut targets = Vec::new();
    for kv in &found.kvs {
        if selection.matches(&call.served, kv)? {
            let (namespace, name) = codec::key_parts(&call.served.def, call.served.prefix.len(), &kv.key);
            let mut target = call.target.clone();
            target.cx.namespace = namespace.map(str::to_owned);
            target.cx.name = Some(name.to_owned());
            targets.push(target);
        }
    }
    let options = &options;
    let deleted: Vec<Option<Value>> = stream::iter(targets)
        .map(|target| async move {
            match delete_object(&target, options).await {
                Ok(deleted) => Ok(Some(deleted.obj)),
                Err(e) if e.is_not_found() => Ok(None),
                Err(e) => Err(e),
            }
        })
        .buffered(WORKERS)
        .try_collect()
        .await?;
    let objects: Vec<Value> = deleted.into_iter().flatten().collect();
    let revision = call.shared.objects.store().revision();
    list::respond(&call, StatusCode::OK, &objects, &list::Page { revision, ..list::Page::default() })
}
