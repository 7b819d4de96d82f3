//! The audit log: the flags of kube-apiserver. `coracle up` takes the same flags and hands them on.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use coracle_apiserver::audit::{Audit, LogFile};

/// What is told of calls, and where.
#[derive(Args, Clone, Debug)]
pub struct Auditing {
    /// A file of kind Policy (audit.k8s.io/v1) that says which calls are told to the audit log.
    #[arg(long, requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,
    /// The audit log, a JSON object a line; `-` for standard output.
    #[arg(long, requires = "audit_policy_file")]
    pub audit_log_path: Option<PathBuf>,
    /// Days that audit logs of the past are kept; 0: for ever.
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxage: u64,
    /// Audit logs of the past that are kept; 0: all.
    #[arg(long, default_value_t = 0)]
    pub audit_log_maxbackup: usize,
    /// Mebibytes after which a new audit log is begun.
    #[arg(long, default_value_t = 100)]
    pub audit_log_maxsize: u64,
}

impl Auditing {
    /// The flags, as a server takes them.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let (Some(policy), Some(path)) = (&self.audit_policy_file, &self.audit_log_path) else {
            return Vec::new();
        };
        vec![
            ("audit-policy-file", policy.display().to_string()),
            ("audit-log-path", path.display().to_string()),
            ("audit-log-maxage", self.audit_log_maxage.to_string()),
            ("audit-log-maxbackup", self.audit_log_maxbackup.to_string()),
            ("audit-log-maxsize", self.audit_log_maxsize.to_string()),
        ]
    }

    /// The log, if there is to be one.
    pub fn open(&self) -> Result<Option<Arc<Audit>>> {
        let (Some(policy), Some(path)) = (&self.audit_policy_file, &self.audit_log_path) else {
            return Ok(None);
        };
        let file = LogFile {
            path: path.clone(),
            max_age_days: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            max_size_mib: self.audit_log_maxsize,
        };
        Ok(Some(Audit::open(policy, file)?))
    }
}
