//! Where the files of `coracle up --data-dir` lie.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// What `sockaddr_un` holds, without its closing zero.
const MAX_SOCKET_PATH: usize = 107;
/// Of the sockets in a data directory, the one with the longest path.
const LONGEST_SOCKET: &str = "/runtime/isolated/0123456789ab/wasm-host.sock";
/// The folder of a data directory that is emptied at each start: by its name nobody else's, whatever is given as one.
const TEMPORARY: &str = ".coracle-tmp";

/// There while a snapshot is being restored into the directory.
const RESTORING: &str = ".coracle-restoring";

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
pub fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a file that its owner alone may read. One that is left over may be open to others: it goes first.
pub fn create_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// A folder for what is written on the way to something else, which may be all of the state: it goes when it is dropped, or at
/// the next start.
pub fn temporary(data_dir: &Path) -> io::Result<TempDir> {
    let folder = data_dir.join(TEMPORARY);
    make_private(&folder)?;
    tempfile::tempdir_in(folder)
}

/// Removes what a process that was killed left of [`temporary`]. Nobody else may use the directory meanwhile.
pub fn clear_temporary(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(data_dir.join(TEMPORARY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Marks a directory whose contents are not whole until [`end_restore`], also if the power fails.
pub fn begin_restore(data_dir: &Path) -> io::Result<()> {
    create_private(&data_dir.join(RESTORING))?.sync_all()?;
    File::open(data_dir)?.sync_all()
}

/// The directory is whole, or empty again.
pub fn end_restore(data_dir: &Path) -> io::Result<()> {
    std::fs::remove_file(data_dir.join(RESTORING))?;
    File::open(data_dir)?.sync_all()
}

/// Refuses a directory that a restore did not come to its end in: with the keys of a lost cluster it would be a new one.
///
/// # Errors
/// Says what to do.
pub fn check_restored(data_dir: &Path) -> Result<()> {
    if data_dir.join(RESTORING).exists() {
        let dir = data_dir.display();
        bail!(
            "a snapshot was being restored into {dir}, and that did not come to its end: remove {dir} and restore it again"
        );
    }
    Ok(())
}

/// Renames a file, for good when it returns: a name is durable only when its directory is.
pub fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
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

    #[test]
    fn what_a_killed_process_left_goes_at_the_next_start() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        clear_temporary(dir.path()).unwrap();
        std::fs::write(dir.path().join("kept"), "").unwrap();
        // As if it were killed: nothing is dropped.
        let left = temporary(dir.path()).unwrap().keep();
        std::fs::write(left.join("state"), "all of it").unwrap();
        let folder = std::fs::metadata(left.parent().unwrap()).unwrap();
        assert_eq!(folder.permissions().mode() & 0o777, 0o700);
        clear_temporary(dir.path()).unwrap();
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["kept"]);
    }

    #[test]
    fn a_file_that_is_left_over_and_open_to_others_is_none_for_secrets() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "of before").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        // Whoever opened it before reads nothing of what comes.
        let mut opened = File::open(&path).unwrap();
        let mut file = create_private(&path).unwrap();
        io::Write::write_all(&mut file, b"a secret").unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(io::read_to_string(&mut opened).unwrap(), "of before");
        let renamed = dir.path().join("renamed");
        rename_durably(&path, &renamed).unwrap();
        assert_eq!(std::fs::read_to_string(renamed).unwrap(), "a secret");
    }
}
