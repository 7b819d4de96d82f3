//! Bodies of calls: read whole and bounded.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use coracle_api::Status;
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Most bytes of a body: 3 MiB, as in Kubernetes.
pub const LIMIT: usize = 3 << 20;

/// How long a body may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a whole body of at most [`LIMIT`] bytes; 413 beyond, 408 when it takes longer than a minute.
pub async fn read(body: Body) -> Result<Bytes, Status> {
    let too_large = || Status::request_entity_too_large(format!("limit is {LIMIT}"));
    if HttpBody::size_hint(&body).lower() > LIMIT as u64 {
        // It says so itself: there is no need to wait for it.
        return Err(too_large());
    }
    let Ok(read) = tokio::time::timeout(TIMEOUT, Limited::new(body, LIMIT).collect()).await else {
        return Err(Status::new(408, "Timeout", "the body did not arrive in time"));
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(too_large()),
        Err(e) => Err(Status::bad_request(format!("reading the body: {e}"))),
    }
}
