//! Everything that can go wrong in the store, as callers branch on it.

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The revision lies before the window that is kept; list again (HTTP 410).
    #[error("revision is too old: the store keeps what came after revision {compact_revision}")]
    Compacted {
        /// Reads and watches must name this revision or a later one.
        compact_revision: u64,
    },
    /// The revision has not been reached yet.
    #[error("revision {requested} is in the future, the store is at {current}")]
    FutureRevision {
        /// What was asked for.
        requested: u64,
        /// The last applied revision.
        current: u64,
    },
    /// The request itself is wrong: too large, an empty key, one key written twice.
    #[error("invalid store request: {0}")]
    Invalid(String),
    /// The bytes given as a value are not JSON.
    #[error("value is not valid JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// A value could not be sealed, or not be opened.
    #[error("encryption at rest: {0}")]
    Seal(String),
    /// There is no such lease: it was never granted, was revoked, or its time has ended.
    #[error("there is no lease {lease}")]
    NoLease {
        /// Its id.
        lease: u64,
    },
    /// This member cannot serve the request; another one may.
    #[error("this member is not the leader{}", match .leader { Some(id) => format!(", member {id} is"), None => String::new() })]
    NotLeader {
        /// The leader's node id where known.
        leader: Option<u64>,
    },
    /// No majority of the members can be reached. Nothing was written.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// No answer came in time. A write may have been done, or may yet be.
    #[error("the store did not answer in time: {0}")]
    Timeout(String),
    /// The data directory is in use by another process.
    #[error("data directory {path} is in use by another process")]
    Locked {
        /// The data directory.
        path: String,
    },
    /// The data on disk was written by a newer version.
    #[error("{file}: on-disk format {found} is newer than {supported}, the newest that this version reads")]
    FormatTooNew {
        /// The file.
        file: String,
        /// The version found.
        found: u64,
        /// The newest version understood.
        supported: u64,
    },
    /// The data on disk belongs to another member.
    #[error("data directory belongs to node {found}, this is node {expected}")]
    WrongNode {
        /// The node id found on disk.
        found: u64,
        /// The node id configured.
        expected: u64,
    },
    /// The data on disk is damaged; nothing of it is served. Restore a snapshot.
    #[error("{file} is damaged: {detail}; restore it from a snapshot or remove the data directory")]
    Corrupt {
        /// The file.
        file: String,
        /// What was found.
        detail: String,
    },
    /// Reading or writing the disk failed. After a failed write the store accepts nothing more.
    #[error("store disk error while {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The store stopped, by `shutdown` or because the disk failed.
    #[error("store is stopped: {0}")]
    Stopped(String),
}
