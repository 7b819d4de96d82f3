//! Where the files of `coracle up --data-dir` lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Opens the directory, making it where it is missing; only its owner may look into it.
    pub fn open(path: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("create the data directory {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
        Ok(Self(path))
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// The server's own directory.
    pub fn server(&self) -> PathBuf {
        self.0.join("server")
    }

    /// What the server hands to the node of the same machine: kubeconfig, serving certificate, registry access.
    pub fn node_credentials(&self) -> PathBuf {
        self.server().join("node")
    }

    /// The node agent's directory.
    pub fn node(&self) -> PathBuf {
        self.0.join("node")
    }

    /// The runtime's directory.
    pub fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }

    /// The CRI socket.
    pub fn cri_socket(&self) -> PathBuf {
        self.runtime().join("cri.sock")
    }

    /// Output of a supervised process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.0.join("logs").join(format!("{process}.log"))
    }

    /// The record of a supervised process.
    pub fn pid_file(&self, process: &str) -> PathBuf {
        self.0.join("run").join(process)
    }

    /// Held by the one `up` that owns this directory.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
}
