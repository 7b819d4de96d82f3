//! `log.redb`: entries by index, and the vote, the purge mark and the journal's generation in `meta`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use openraft::EntryPayload;
use parking_lot::RwLock;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{Entry, LogId, Vote};
use crate::Error;
use crate::disk::{FORMAT, JOURNALED, OLDEST, Place, guarded, read_meta, write_meta};

const NAME: &str = "log.redb";
const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");

pub(super) struct LogDb {
    place: Place,
    database: RwLock<Option<Database>>,
    /// The format that the file bears, and the lowest that can say what lies in it without the journal.
    format: AtomicU64,
    lowest: AtomicU64,
}

/// What the log holds when it is opened.
pub(super) struct Found {
    pub last: Option<LogId>,
    pub purged: Option<LogId>,
    pub vote: Option<Vote>,
    /// First index of entries that were purged but are still there.
    pub leftover: Option<u64>,
    /// The journal, if there ever was one.
    pub journal: Option<Mark>,
    /// The newest version that an entry needs.
    version: u64,
}

/// Which batches of the journal count.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    pub generation: u64,
    /// Whether there may be any.
    pub counts: bool,
}

/// Changes of one transaction.
#[derive(Default)]
pub(super) struct Batch<'a> {
    pub vote: Option<&'a Vote>,
    pub entries: Vec<&'a Entry>,
    /// Entries from this index on go, before `entries` are added.
    pub truncate: Option<u64>,
    pub purged: Option<&'a LogId>,
    /// Entries from the first index up to, not including, the second go.
    pub remove: Option<(u64, u64)>,
    /// From now on these batches of the journal count.
    pub journal: Option<Mark>,
}

impl LogDb {
    pub fn open(place: &Place) -> Result<(Self, Found), Error> {
        let database = place.open(NAME)?;
        let found = guarded(|| scan(&database)).unwrap_or_else(|panic| Err(redb::Error::Corrupted(panic)));
        let found = found.map_err(|error| place.error(NAME, error))?;
        let format = read_meta(&database, FORMAT).map_err(|error| place.error(NAME, error))?;
        let format = format.unwrap_or(OLDEST);
        let lowest = if found.journal.is_some_and(|mark| mark.counts) { found.version } else { format };
        let database = RwLock::new(Some(database));
        let (format, lowest) = (AtomicU64::new(format), AtomicU64::new(lowest));
        Ok((Self { place: place.clone(), database, format, lowest }, found))
    }

    pub fn close(&self) {
        self.database.write().take();
    }

    /// Entries from `start` up to, not including, `end`.
    pub fn read(&self, start: u64, end: u64) -> Result<Vec<Entry>, redb::Error> {
        self.with(|database| {
            let table = match database.begin_read()?.open_table(ENTRIES) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let rows = table.range(start..end)?;
            rows.map(|row| {
                let (index, bytes) = row?;
                decode_row(index.value(), bytes.value())
            })
            .collect()
        })
    }

    /// Writes a batch and syncs it.
    pub fn commit(&self, batch: &Batch<'_>, scratch: &mut Vec<u8>) -> Result<(), redb::Error> {
        let format = batch.entries.iter().map(|entry| version(entry)).max().unwrap_or(OLDEST);
        let lowest = self.lowest.fetch_max(format, Ordering::Relaxed).max(format);
        let before = self.format.load(Ordering::Relaxed);
        let format = match batch.journal {
            Some(Mark { counts: true, .. }) => lowest.max(JOURNALED),
            Some(Mark { counts: false, .. }) => lowest,
            None => lowest.max(before),
        };
        let done = self.timed(|| {
            self.with(|database| {
                let mut txn = database.begin_write()?;
                txn.set_durability(Durability::Immediate)?;
                if let Some(vote) = batch.vote {
                    write_meta(&txn, "vote", vote)?;
                }
                if let Some(purged) = batch.purged {
                    write_meta(&txn, "purged", purged)?;
                }
                if let Some(mark) = batch.journal {
                    write_meta(&txn, "journal", &mark)?;
                }
                if format != before {
                    write_meta(&txn, FORMAT, &format)?;
                }
                write_entries(&txn, batch, scratch)?;
                Ok(txn.commit()?)
            })
        });
        if done.is_ok() {
            self.format.store(format, Ordering::Relaxed);
        }
        done
    }

    /// Counts how long it takes until something is synced.
    pub fn timed<T>(&self, write: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = write();
        self.place.synced(NAME, &self.place.stats.log_syncs, started.elapsed());
        done
    }

    /// Gives free pages back to the disk.
    pub fn defragment(&self) -> Result<(), Error> {
        let mut database = self.database.write();
        let Some(database) = &mut *database else { return Err(Error::Stopped("it is closed".into())) };
        self.place.defragment(NAME, database)
    }

    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        match &*self.database.read() {
            Some(database) => f(database),
            None => Err(redb::Error::DatabaseClosed),
        }
    }
}

fn write_entries(
    txn: &WriteTransaction,
    batch: &Batch<'_>,
    scratch: &mut Vec<u8>,
) -> Result<(), redb::Error> {
    let mut table = txn.open_table(ENTRIES)?;
    if let Some(keep) = batch.truncate {
        table.retain_in(keep.., |_, _| false)?;
    }
    for entry in &batch.entries {
        scratch.clear();
        encode(entry, scratch)?;
        table.insert(entry.log_id.index, scratch.as_slice())?;
    }
    if let Some((from, to)) = batch.remove {
        table.retain_in(from..to, |_, _| false)?;
    }
    Ok(())
}

/// The version of the members that understand an entry.
fn version(entry: &Entry) -> u64 {
    match &entry.payload {
        EntryPayload::Normal(request) => request.0.version(),
        _ => OLDEST,
    }
}

/// Appends an entry: checksum (CRC-32, little-endian) and postcard.
pub(super) fn encode(entry: &Entry, out: &mut Vec<u8>) -> Result<(), redb::Error> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let encoded = postcard::to_extend(entry, std::mem::take(out));
    *out = encoded.map_err(|error| redb::Error::Corrupted(format!("encoding an entry: {error}")))?;
    if let Some((head, rest)) = out.get_mut(start..).and_then(<[u8]>::split_first_chunk_mut) {
        *head = crc32fast::hash(rest).to_le_bytes();
    }
    Ok(())
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Result<Entry, String> {
    let (sum, rest) = bytes.split_first_chunk().ok_or("it is too short")?;
    if u32::from_le_bytes(*sum) != crc32fast::hash(rest) {
        return Err("checksum does not match".into());
    }
    postcard::from_bytes(rest).map_err(|error| error.to_string())
}

fn decode_row(index: u64, bytes: &[u8]) -> Result<Entry, redb::Error> {
    let fail = |what: &str| redb::Error::Corrupted(format!("log entry {index}: {what}"));
    let entry = decode(bytes).map_err(|what| fail(&what))?;
    if entry.log_id.index != index { Err(fail("it names another index")) } else { Ok(entry) }
}

/// Reads and checks every entry.
fn scan(database: &Database) -> Result<Found, redb::Error> {
    let purged: Option<LogId> = read_meta(database, "purged")?;
    let vote = read_meta(database, "vote")?;
    let journal = read_meta(database, "journal")?;
    let mut found = Found { last: None, purged, vote, leftover: None, journal, version: OLDEST };
    let table = match database.begin_read()?.open_table(ENTRIES) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(found),
        table => table?,
    };
    let mut next = purged.map_or(0, |id| id.index + 1);
    for row in table.iter()? {
        let (index, bytes) = row?;
        let index = index.value();
        if purged.is_some_and(|purged| index <= purged.index) {
            found.leftover.get_or_insert(index);
            continue;
        }
        if index != next {
            return Err(redb::Error::Corrupted(format!("log entry {next} is missing")));
        }
        let entry = decode_row(index, bytes.value())?;
        found.version = found.version.max(version(&entry));
        found.last = Some(entry.log_id);
        next = index + 1;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::entry::RaftEntry;

    use super::*;
    use crate::mvcc::Command;
    use crate::raft::Request;
    use crate::{Txn, Value};

    #[test]
    fn every_flipped_bit_of_an_entry_is_found() {
        let txn = Txn::create("/k".into(), Value::raw("abc"), Some(5));
        let command = Command::Txn { now_ms: 17, txn };
        let log_id = LogId::new(*Vote::new_committed(3, 1).leader_id(), 9);
        let entry = Entry::new(log_id, EntryPayload::Normal(Request(Arc::new(command))));
        let mut bytes = Vec::new();
        encode(&entry, &mut bytes).unwrap();
        let again = decode_row(9, &bytes).unwrap();
        assert_eq!(format!("{again:?}"), format!("{entry:?}"));
        assert!(decode_row(8, &bytes).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_row(9, &damaged).is_err(), "bit {bit}");
        }
    }
}
