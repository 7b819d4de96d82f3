//! What lies on disk: two redb databases, `log.redb` (raft) and `state.redb` (keys and their versions), each with the
//! version of its format, and `log.wal`, where entries wait for the first. Every entry and every row carries a checksum of its own beside those of redb's pages.

use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redb::{Builder, Database, ReadableDatabase, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::alarm::SLOW;
use crate::metrics::{Histogram, Stats};

mod files;
pub(crate) mod persister;
pub(crate) mod row;
pub(crate) mod snapshot;
pub(crate) mod state;

pub use files::{Directory, Files};

/// The newest version of files and of what members say to each other. Version 2 knows leases and the log's journal. What is
/// written bears the lowest version that can say it, so that members are upgraded, and taken back, one after the other.
pub(crate) const NEWEST: u64 = 2;
/// The version of a log that counts on its journal; without it, as after an orderly end, it bears a lower one.
pub(crate) const JOURNALED: u64 = 2;
/// The oldest.
pub(crate) const OLDEST: u64 = 1;
/// redb's page cache; the values are in memory anyway.
const CACHE_BYTES: usize = 16 << 20;

/// The version of a file's format, in [`META`].
pub(crate) const FORMAT: &str = "format";

/// Facts about a database: `format`, `node` and what its owner adds, in postcard.
pub(crate) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// Where the files are, and whose they are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub dir: PathBuf,
    pub files: Arc<dyn Files>,
    pub node_id: u64,
    /// Whether files are worked on by threads; otherwise by the tasks that ask for it.
    pub threads: bool,
    /// The newest format that is read.
    pub newest: u64,
    /// Bytes of log entries after which they are to become fewer.
    pub log_bytes: u64,
    /// Counts what the disk does.
    pub stats: Arc<Stats>,
}

impl Place {
    /// Opens or makes a database, checks all of its pages, its format and its owner.
    pub fn open(&self, name: &str) -> Result<Database, Error> {
        let marker = self.marker(name);
        if let Ok(detail) = std::fs::read_to_string(&marker) {
            return Err(self.corrupt(name, detail.trim()));
        }
        if !self.files.exists(name).map_err(io_error("looking for the store's files"))? {
            self.make(name)?;
        }
        let opened = guarded(|| self.open_checked(name));
        let (database, intact) = opened.unwrap_or_else(|panic| Err(self.corrupt(name, &panic)))?;
        if !intact {
            // redb has fallen back to an older commit, which lacks what was acknowledged since: the next start must
            // not take that for the truth.
            let detail = "a page did not match its checksum";
            return Err(match mark(&marker, detail) {
                Ok(()) => self.corrupt(name, detail),
                Err(error) => {
                    let unmarked = format!("{detail}; do not start again: {} ({error})", marker.display());
                    self.corrupt(name, &unmarked)
                }
            });
        }
        self.check_owner(&database, name)?;
        Ok(database)
    }

    /// Makes an empty database under another name first: one that a crash left half made never bears this one.
    fn make(&self, name: &str) -> Result<(), Error> {
        let doing = "making the store's files";
        let unfinished = format!("{name}.new");
        self.files.remove(&unfinished).map_err(io_error(doing))?;
        let backend = self.files.open(&unfinished).map_err(io_error(doing))?;
        let create = || -> Result<(), redb::Error> {
            let database = Builder::new().create_with_backend(files::Backend(backend))?;
            let txn = database.begin_write()?;
            write_meta(&txn, FORMAT, &OLDEST)?;
            write_meta(&txn, "node", &self.node_id)?;
            Ok(txn.commit()?)
        };
        let created = guarded(create).unwrap_or_else(|panic| Err(redb::Error::Corrupted(panic)));
        created.map_err(|error| self.error(&unfinished, error))?;
        self.files.rename(&unfinished, name).map_err(io_error(doing))
    }

    fn open_checked(&self, name: &str) -> Result<(Database, bool), Error> {
        let backend = self.files.open(name).map_err(io_error("opening the store's files"))?;
        let repaired = Arc::new(AtomicBool::new(false));
        let seen = repaired.clone();
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES);
        builder.set_repair_callback(move |_| seen.store(true, Ordering::Relaxed));
        let opened = builder.create_with_backend(files::Backend(backend));
        let mut database = opened.map_err(|error| self.error(name, error.into()))?;
        // After a crash redb has just checked every page; otherwise nobody has since they were written.
        let intact = repaired.load(Ordering::Relaxed)
            || database.check_integrity().map_err(|error| self.error(name, error.into()))?;
        Ok((database, intact))
    }

    /// Gives a database's free pages back to the disk.
    pub fn defragment(&self, name: &str, database: &mut Database) -> Result<(), Error> {
        let compacted = guarded(|| database.compact()).map_err(|panic| self.corrupt(name, &panic))?;
        match compacted {
            Ok(_) => Ok(()),
            Err(redb::CompactionError::TransactionInProgress) => {
                Err(Error::Unavailable(format!("{name} is being read; try again")))
            }
            Err(error) => Err(self.error(name, error.into())),
        }
    }

    fn check_owner(&self, database: &Database, name: &str) -> Result<(), Error> {
        let wrap = |error| self.error(name, error);
        let format: Option<u64> = read_meta(database, FORMAT).map_err(wrap)?;
        let node: Option<u64> = read_meta(database, "node").map_err(wrap)?;
        let (file, expected, supported) = (self.path(name), self.node_id, self.newest);
        match (format, node) {
            (Some(found), _) if found > supported => Err(Error::FormatTooNew { file, found, supported }),
            (Some(_), Some(found)) if found != expected => Err(Error::WrongNode { found, expected }),
            (Some(_), Some(_)) => Ok(()),
            _ => Err(self.corrupt(name, "it does not say whose it is")),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn marker(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.damaged"))
    }

    pub fn corrupt(&self, name: &str, detail: &str) -> Error {
        Error::Corrupt { file: self.path(name), detail: detail.to_owned() }
    }

    /// Counts how long a transaction took until it was synced, and tells if that was long.
    pub fn synced(&self, name: &str, counted: &Histogram, took: Duration) {
        counted.add(took);
        if took > SLOW {
            self.stats.slow_syncs.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(file = self.path(name), ?took, "the disk is slow");
        }
    }

    /// redb's error in the words of the store.
    pub fn error(&self, name: &str, error: redb::Error) -> Error {
        use std::io::ErrorKind::{InvalidData, UnexpectedEof};
        match error {
            redb::Error::DatabaseAlreadyOpen => Error::Locked { path: self.dir.display().to_string() },
            redb::Error::Io(error) if matches!(error.kind(), InvalidData | UnexpectedEof) => {
                self.corrupt(name, &error.to_string())
            }
            redb::Error::Io(source) => Error::Io { doing: "reading the store's files", source },
            other => self.corrupt(name, &other.to_string()),
        }
    }
}

/// Writes a file for good.
fn mark(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Runs what waits for files: on a thread for it, or here and now where there are none.
pub(crate) async fn unblock<T: Send + 'static>(
    threads: bool,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    if !threads {
        return Ok(f());
    }
    tokio::task::spawn_blocking(f).await.map_err(|error| Error::Stopped(error.to_string()))
}

/// Runs `f`; what redb asserts about damaged pages becomes an error.
pub(crate) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("the database panicked").to_owned()
    })
}

pub(crate) fn io_error(doing: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { doing, source }
}

pub(crate) fn read_meta<T: DeserializeOwned>(
    database: &Database,
    name: &str,
) -> Result<Option<T>, redb::Error> {
    let txn = database.begin_read()?;
    let table = match txn.open_table(META) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(bytes) = table.get(name)? else { return Ok(None) };
    let decoded = postcard::from_bytes(bytes.value());
    decoded.map(Some).map_err(|error| redb::Error::Corrupted(format!("meta {name}: {error}")))
}

pub(crate) fn write_meta<T: Serialize>(
    txn: &redb::WriteTransaction,
    name: &str,
    value: &T,
) -> Result<(), redb::Error> {
    let bytes = postcard::to_stdvec(value).map_err(|error| redb::Error::Corrupted(error.to_string()))?;
    txn.open_table(META)?.insert(name, bytes.as_slice())?;
    Ok(())
}
