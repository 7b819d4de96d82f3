//! get: one object.

use axum::body::Body;
use coracle_api::{Status, field};
use coracle_store::Freshness;
use futures::FutureExt;
use http::{Response, StatusCode};

use crate::call::Call;
use crate::respond;

/// Answers with the object.
pub(crate) async fn get(call: Call) -> Result<Response<Body>, Status> {
    if let Some(text) = call.query.text("resourceVersion") {
        let revision = revision(text).map_err(Status::plain)?;
        not_older_than(&call, revision).await?;
    }
    if let Some(objects) = call.served.def.strategy.computed(call.cx.namespace.as_deref()) {
        let name = call.cx.name.as_deref();
        let found = objects.iter().find(|o| o.pointer("/metadata/name").and_then(|n| n.as_str()) == name);
        return respond::object(&call, StatusCode::OK, found.ok_or_else(|| call.not_found())?);
    }
    let kv = call.fetch().await?;
    respond::stored(&call, StatusCode::OK, &kv)
}

/// A revision from a query; the error is in Kubernetes' words.
pub(crate) fn revision(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        let quoted = field::go_quote(text);
        format!(
            "resourceVersion: Invalid value: {quoted}: strconv.ParseUint: parsing {quoted}: invalid syntax"
        )
    })
}

/// Waits a little until the store has reached a revision; 504 if it does not.
pub(crate) async fn not_older_than(call: &Call, revision: u64) -> Result<(), Status> {
    let read = call.shared.objects.store().fresh(Freshness::AtLeast(revision)).boxed().await;
    read.map_err(|error| crate::errors::store(error, &call.served.gr))
}
