//! Where the databases' bytes go: a seam, so that a test can lose what was not synced.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Bound;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// Opens the files of a store.
pub trait Files: Debug + Send + Sync {
    /// Opens a file, or makes it.
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// Whether there is a file of this name.
    ///
    /// # Errors
    /// Those of the file system.
    fn exists(&self, name: &str) -> io::Result<bool>;

    /// Removes a file; one that does not exist is no error.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames a file, for good when it returns.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Lets go of the place, so that another store may open it.
    fn close(&self) {}

    /// The length of a file, in bytes.
    ///
    /// # Errors
    /// Those of the file system; there is no such file.
    fn size(&self, name: &str) -> io::Result<u64>;

    /// Bytes that are left where the files lie, where that is known.
    fn free(&self) -> Option<u64> {
        None
    }

    /// How long the next write is to take. Only stores without threads of their own ask, for only a simulation is to wait.
    fn latency(&self) -> Duration {
        Duration::ZERO
    }
}

/// Files in a directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Locked for as long as the store is open.
    lock: Mutex<Option<File>>,
}

impl Directory {
    /// Makes the directory, readable by its owner only, where it is missing, and locks it.
    ///
    /// # Errors
    /// Those of the file system; `ResourceBusy` when another process has it.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let path = path.into();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        // What is in it is durable only when its own name is.
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, lock: Mutex::new(Some(lock)) }),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Files for Directory {
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.path.join(name).try_exists()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))?;
        // A name is durable only when its directory is.
        File::open(&self.path)?.sync_all()
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.path.join(name))?.len())
    }

    fn free(&self) -> Option<u64> {
        let room = rustix::fs::statvfs(&self.path).ok()?;
        Some(room.f_bavail.saturating_mul(room.f_frsize))
    }

    fn close(&self) {
        self.lock.lock().take();
    }
}

/// A boxed backend is a backend.
#[derive(Debug)]
pub(super) struct Backend(pub Box<dyn StorageBackend>);

type Locked<T> = Result<T, BackendError>;

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.query_lock_range(start, end)
    }
}
