//! Records on disk: one JSON file an object, written beside, synced and renamed.
//!
//! One thread writes, in the order in which it was asked; what is waiting together is synced at once, of which a file system
//! makes one commit, and shares the directory's sync. A caller that was told yes finds the record after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

/// How many changes share one sync of the directory at most.
const BATCH: usize = 256;
/// How many files are synced at once.
const SYNCS: usize = 16;

struct Change {
    path: PathBuf,
    /// `None` removes the file.
    bytes: Option<Vec<u8>>,
    done: oneshot::Sender<Result<(), String>>,
}

/// A change that is under way; await it before answering for it.
#[must_use = "a change is kept only once it is durable"]
pub struct Pending(oneshot::Receiver<Result<(), String>>);

impl Pending {
    /// Waits until the change is on disk.
    pub async fn durable(self) -> anyhow::Result<()> {
        match self.0.await {
            Ok(result) => result.map_err(anyhow::Error::msg),
            Err(_) => anyhow::bail!("the records' writer is gone"),
        }
    }
}

/// The writer of the records below one folder.
#[derive(Clone)]
pub struct Journal {
    dir: PathBuf,
    changes: mpsc::SyncSender<Change>,
}

impl Journal {
    /// Opens (and makes, mode 0700) `dir` with these sub-folders.
    pub fn open(dir: &Path, folders: &[&str]) -> anyhow::Result<Self> {
        for folder in folders {
            let path = dir.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|e| anyhow::anyhow!("creating {}: {e}", path.display()))?;
        }
        let (changes, inbox) = mpsc::sync_channel::<Change>(4096);
        std::thread::Builder::new().name("records".into()).spawn(move || run(&inbox))?;
        Ok(Self { dir: dir.to_owned(), changes })
    }

    /// Writes a record; the order of calls is the order on disk.
    pub fn write(&self, folder: &str, id: &str, record: &impl Serialize) -> Pending {
        match serde_json::to_vec(record) {
            Ok(mut bytes) => {
                bytes.push(b'\n');
                self.send(folder, id, Some(bytes))
            }
            Err(error) => {
                let (done, pending) = oneshot::channel();
                let _ = done.send(Err(format!("encoding the record of {id}: {error}")));
                Pending(pending)
            }
        }
    }

    /// Removes a record.
    pub fn remove(&self, folder: &str, id: &str) -> Pending {
        self.send(folder, id, None)
    }

    fn send(&self, folder: &str, id: &str, bytes: Option<Vec<u8>>) -> Pending {
        let (done, pending) = oneshot::channel();
        let path = self.dir.join(folder).join(format!("{id}.json"));
        // A dropped `done` tells the caller that the writer is gone.
        let _ = self.changes.send(Change { path, bytes, done });
        Pending(pending)
    }

    /// Every readable record of a folder. One that cannot be read is set aside under another name and reported.
    pub fn load<T: DeserializeOwned>(&self, folder: &str) -> anyhow::Result<Vec<T>> {
        let dir = self.dir.join(folder);
        let mut records = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match serde_json::from_slice(&fs::read(&path)?) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a record cannot be read; it is set aside");
                    fs::rename(&path, path.with_extension("unreadable"))?;
                }
            }
        }
        Ok(records)
    }
}

fn run(inbox: &mpsc::Receiver<Change>) {
    while let Ok(first) = inbox.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = inbox.try_recv()
        {
            batch.push(next);
        }
        commit(batch);
    }
}

fn commit(batch: Vec<Change>) {
    // Of several changes to one file only the last is written; all of them are then as durable as it is.
    let mut last: BTreeMap<&Path, Option<&[u8]>> = BTreeMap::new();
    for change in &batch {
        last.insert(&change.path, change.bytes.as_deref());
    }
    let mut failed: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut folders: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let records = last.iter().filter_map(|(path, bytes)| Some((*path, (*bytes)?)));
    let mut unwritten = write_beside(&records.collect::<Vec<_>>());
    for (path, bytes) in last {
        let changed = match (unwritten.remove(path), bytes) {
            (Some(error), _) => Err(error),
            (None, Some(_)) => fs::rename(beside(path), path),
            (None, None) => remove(path),
        };
        if let Err(error) = changed {
            failed.insert(path.to_owned(), format!("writing {}: {error}", path.display()));
        }
        if let Some(folder) = path.parent() {
            folders.entry(folder.to_owned()).or_default().push(path.to_owned());
        }
    }
    for (folder, paths) in folders {
        if let Err(error) = fs::File::open(&folder).and_then(|f| f.sync_all()) {
            for path in paths {
                failed.entry(path).or_insert_with(|| format!("syncing {}: {error}", folder.display()));
            }
        }
    }
    for change in batch {
        let result = failed.get(&change.path).map_or(Ok(()), |e| Err(e.clone()));
        if let Err(error) = &result {
            tracing::error!(error, "a record is not on disk");
        }
        let _ = change.done.send(result);
    }
}

/// The name under which a record is written before it takes the place of the one before it.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Writes and syncs records beside those that are there. Answers which of them failed.
fn write_beside<'a>(records: &[(&'a Path, &[u8])]) -> BTreeMap<&'a Path, std::io::Error> {
    let write = |(path, bytes): &(&'a Path, &[u8])| {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(beside(path))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let write_all = |records: &[(&'a Path, &[u8])]| {
        records.iter().filter_map(|one| Some((one.0, write(one).err()?))).collect::<Vec<_>>()
    };
    let mut parts = records.chunks(records.len().div_ceil(SYNCS).max(1));
    let Some(first) = parts.next() else { return BTreeMap::new() };
    std::thread::scope(|scope| {
        let thread = |part| std::thread::Builder::new().spawn_scoped(scope, move || write_all(part));
        let others: Vec<_> = parts.map(|part| (part, thread(part))).collect();
        let mut failed = write_all(first);
        for (part, other) in others {
            let panicked =
                |_| part.iter().map(|(path, _)| (*path, std::io::Error::other("panicked"))).collect();
            failed.extend(match other {
                Ok(other) => other.join().unwrap_or_else(panicked),
                // No thread is to be had.
                Err(_) => write_all(part),
            });
        }
        failed.into_iter().collect()
    })
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_come_back_in_their_last_state() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), &["things"]).unwrap();
        let mut pending = Vec::new();
        for round in 0..600u32 {
            pending.push(journal.write("things", &format!("{}", round % 3), &round));
        }
        pending.push(journal.remove("things", "1"));
        pending.push(journal.remove("things", "never"));
        for change in pending {
            change.durable().await.unwrap();
        }
        fs::write(dir.path().join("things/torn.json"), b"{").unwrap();
        let journal = Journal::open(dir.path(), &["things"]).unwrap();
        let mut found: Vec<u32> = journal.load("things").unwrap();
        found.sort_unstable();
        assert_eq!(found, [597, 599]);
        assert!(dir.path().join("things/torn.unreadable").exists());
    }

    #[tokio::test]
    async fn a_write_that_fails_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), &["things"]).unwrap();
        let error = journal.write("absent", "x", &1).durable().await.unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
