//! Where the files of `coracle up --data-dir` lie.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What `sockaddr_un` holds, without its closing zero.
const MAX_SOCKET_PATH: usize = 107;
/// Of the sockets in a data directory, the one with the longest path.
const LONGEST_SOCKET: &str = "/runtime/isolated/0123456789ab/wasm-host.sock";

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Opens the directory, making it where it is missing; only its owner may look into what is made.
    ///
    /// # Errors
    /// When it cannot be made, or its path is too long for the sockets in it or no text.
    pub fn open(path: &Path) -> Result<Self> {
        make_private(path).with_context(|| format!("create the data directory {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
        let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let longest = text.len() + LONGEST_SOCKET.len();
        if longest > MAX_SOCKET_PATH {
            bail!(
                "the data directory {text} is {} bytes too long: Unix sockets in it ({LONGEST_SOCKET}) may have paths of \
                 {MAX_SOCKET_PATH} bytes; give a shorter --data-dir",
                longest - MAX_SOCKET_PATH
            );
        }
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

/// Makes a directory and what is missing above it, for its owner alone. One that exists is left as it is.
pub fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_too_long_for_sockets_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = DataDir::open(&dir.path().join("x".repeat(100))).unwrap_err();
        assert!(error.to_string().contains("give a shorter --data-dir"), "{error}");
        assert!(DataDir::open(&dir.path().join("short")).is_ok());
    }
}
