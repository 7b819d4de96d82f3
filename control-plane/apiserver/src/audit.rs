//! The audit log: who did what, when, and what came of it, as `audit.k8s.io/v1` events, one JSON object a line.
//!
//! A policy says which calls are told, and how much of each. Lines go through a bounded queue to one thread that writes them;
//! a disk that is slower than the calls loses events, which are counted, and never holds up a call.

mod log;
mod policy;
mod trail;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

pub use log::LogFile;
pub(crate) use policy::Asked;
pub(crate) use trail::{Arrived, Trail, id_of};

use log::Log;
use policy::{Level, Policy};

/// Why there can be no audit log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The policy says something that cannot be done.
    #[error("audit policy: {0}")]
    Policy(String),
}

/// A policy and where its events go.
pub struct Audit {
    policy: Policy,
    log: Log,
    counts: Counts,
}

/// What became of events, for metrics.
#[derive(Default)]
pub(crate) struct Counts {
    events: AtomicU64,
    lost: AtomicU64,
    levels: [AtomicU64; Level::ALL.len()],
}

impl Audit {
    /// An audit log with the policy in this file.
    ///
    /// # Errors
    /// When the policy cannot be read or the log not be written.
    pub fn open(policy: &Path, file: LogFile) -> Result<Arc<Self>, Error> {
        let text = std::fs::read_to_string(policy);
        let text = text.map_err(|source| Error::File { path: policy.to_owned(), source })?;
        let policy = Policy::parse(&text).map_err(Error::Policy)?;
        let path = file.path.clone();
        let log = Log::start(file).map_err(|source| Error::File { path, source })?;
        Ok(Arc::new(Self { policy, log, counts: Counts::default() }))
    }

    fn write(&self, event: Value) {
        self.counts.events.fetch_add(1, Ordering::Relaxed);
        if !self.log.write(event) {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything that was told is in the file.
    pub async fn flush(&self) {
        self.log.flush().await;
    }

    /// Counters in the Prometheus text format.
    pub(crate) fn render(&self, out: &mut String) {
        use std::fmt::Write;
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let _ = write!(
            out,
            "# HELP apiserver_audit_event_total Events that were told to the audit log.\n# TYPE apiserver_audit_event_total counter\napiserver_audit_event_total {}\n\
             # HELP apiserver_audit_error_total Events that the audit log lost.\n# TYPE apiserver_audit_error_total counter\napiserver_audit_error_total{{plugin=\"log\"}} {}\n\
             # HELP apiserver_audit_level_total Calls by the level at which they were told.\n# TYPE apiserver_audit_level_total counter\n",
            count(&self.counts.events),
            count(&self.counts.lost),
        );
        for (level, n) in Level::ALL.iter().zip(&self.counts.levels) {
            let _ = writeln!(out, "apiserver_audit_level_total{{level=\"{}\"}} {}", level.name(), count(n));
        }
    }
}
