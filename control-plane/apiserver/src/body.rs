//! Bodies of calls: read whole and bounded.

use axum::body::Body;
use bytes::Bytes;
use coracle_api::Status;
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Most bytes of a body: 3 MiB, as in Kubernetes.
pub const LIMIT: usize = 3 << 20;

/// Reads a whole body of at most [`LIMIT`] bytes; 413 beyond.
pub async fn read(body: Body) -> Result<Bytes, Status> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            Err(Status::request_entity_too_large(format!("limit is {LIMIT}")))
        }
        Err(e) => Err(Status::bad_request(format!("reading the body: {e}"))),
    }
}
