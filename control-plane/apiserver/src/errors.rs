//! Errors of the store and of negotiation as Status answers.

use coracle_api::{GroupResource, Status};
use coracle_store::Error;

use crate::codec::DecodeError;

/// A failure of the store while serving one object or list.
pub(crate) fn store(error: Error, gr: &GroupResource) -> Status {
    match error {
        Error::Compacted { .. } => expired(),
        Error::FutureRevision { requested, current } => too_large_revision(requested, current),
        Error::Invalid(message) => Status::request_entity_too_large(message),
        Error::Timeout(_) => Status::timeout(format!("{gr}: {error}"), 1),
        Error::NotLeader { .. } | Error::Unavailable(_) | Error::Stopped(_) => {
            Status::service_unavailable(format!("{gr}: {error}"))
        }
        Error::Seal(why) => Status::internal(format!("unable to transform: {why}")),
        other => {
            tracing::error!(resource = %gr, error = %other, "store");
            Status::internal(other)
        }
    }
}

/// 410: the history that was asked for is gone.
pub(crate) fn expired() -> Status {
    Status::expired("The resourceVersion for the provided list is too old.")
}

/// 410 for a continue token.
pub(crate) fn continue_expired() -> Status {
    Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    )
}

/// 410 of a watch.
pub(crate) fn watch_expired(requested: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {requested} ({oldest})"))
}

/// 504: the revision lies ahead.
pub(crate) fn too_large_revision(requested: u64, current: u64) -> Status {
    Status::timeout(format!("Too large resource version: {requested}, current: {current}"), 1).with_cause(
        "ResourceVersionTooLarge",
        "Too large resource version",
        "",
    )
}

/// Stored bytes that do not decode.
pub(crate) fn corrupt(error: impl Into<DecodeError>) -> Status {
    let error = match error.into() {
        DecodeError::Conversion(status) => return status,
        DecodeError::Corrupt(error) => error,
    };
    tracing::error!(%error, "stored object does not decode");
    Status::internal(format!("stored object does not decode: {error}"))
}

/// 406 for a representation that does not exist.
pub(crate) fn not_acceptable_form() -> Status {
    Status::not_acceptable(&["application/json", "application/yaml"])
}

/// 406 for media types that are not spoken.
pub(crate) fn not_acceptable_type() -> Status {
    Status::new(
        406,
        "NotAcceptable",
        "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml",
    )
    .with_details(Default::default())
}
