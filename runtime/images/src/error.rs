//! Why an image is not there, in classes that a caller branches on.

use std::path::PathBuf;

/// What one registry answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The registry, as `host:port`.
    pub registry: String,
    /// What went wrong there.
    pub reason: String,
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.registry, self.reason)
    }
}

fn join(attempts: &[Attempt]) -> String {
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why an image could not be named, pulled, stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("image name {reference:?} is invalid: {reason}")]
    InvalidReference { reference: String, reason: String },
    /// A registry that answered does not have it.
    #[error("image {image} not found ({})", join(.attempts))]
    NotFound { image: String, attempts: Vec<Attempt> },
    #[error("not allowed to pull image {image} ({})", join(.attempts))]
    Unauthorized { image: String, attempts: Vec<Attempt> },
    /// No registry answered, or not with what a registry answers.
    #[error("no registry could be asked for image {image} ({})", join(.attempts))]
    Unreachable { image: String, attempts: Vec<Attempt> },
    /// It is there, but it is nothing that runs here.
    #[error("image {image} {reason}")]
    Unsupported { image: String, reason: String },
    #[error("image {image}: {what} has {size} bytes; {limit} is the most")]
    TooLarge { image: String, what: &'static str, size: u64, limit: u64 },
    /// What came is not what its digest says.
    #[error("image {image}: {reason}")]
    Corrupt { image: String, reason: String },
    /// The word in front is the one that Kubernetes knows it by.
    #[error("SignatureValidationFailed: image {image} {reason}")]
    Unsigned { image: String, reason: String },
    #[error("image {0} is not on this node: pull it first")]
    NotPresent(String),
    #[error("{doing} {}", .path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { doing, path, source }
    }
}
