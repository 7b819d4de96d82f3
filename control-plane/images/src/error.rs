//! Errors in the words of the OCI distribution specification, section "Error Codes".

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

/// One error answer.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Error {
    /// HTTP status.
    pub status: StatusCode,
    /// `BLOB_UNKNOWN` and the like.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Error {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// 404: no such blob.
    pub fn blob_unknown(digest: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("blob {digest} is not in this registry"))
    }

    /// 404: no such manifest.
    pub fn manifest_unknown(repository: &str, reference: &str) -> Self {
        let message = format!("manifest {reference} is not in repository {repository}");
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
    }

    /// 404: nothing was ever pushed there.
    pub fn name_unknown(repository: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", format!("repository {repository} does not exist"))
    }

    /// 400: a manifest names a blob that is not here.
    pub fn manifest_blob_unknown(digest: &str) -> Self {
        let message =
            format!("the manifest refers to {digest}, which is not in this registry: push it first");
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", message)
    }

    /// 400: no manifest at all, or one that contradicts itself.
    pub fn manifest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    /// 400: the content has another digest, or the digest is none.
    pub fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    /// 400: a name that breaks the rules for names.
    pub fn name_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
    }

    /// 404: no such upload, or not any more.
    pub fn upload_unknown(id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "BLOB_UPLOAD_UNKNOWN",
            format!("upload {id} does not exist or has expired"),
        )
    }

    /// 400: an upload that cannot be.
    pub fn upload_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    /// 416: a chunk that does not follow the one before, or a range that is not there.
    pub fn range(message: impl Into<String>) -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
    }

    /// 413: more bytes than are allowed.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
    }

    /// 429: too many uploads at a time.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
    }

    /// 405: not on this path.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    /// 404: not a path of the distribution API.
    pub fn not_found(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", format!("{path} is not served by this registry"))
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            "log in with any user name and a token of the cluster as password",
        )
    }

    /// 500: a failure of ours. The cause goes to the log.
    pub fn internal(what: &str, cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "image registry: {what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", format!("{what}: {cause}"))
    }

    /// The answer.
    pub fn response(&self) -> Response<Body> {
        let body = json!({"errors": [{"code": self.code, "message": self.message}]});
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
