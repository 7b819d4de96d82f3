//! `state.redb`: the rows, and up to which log entry they are complete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::RwLock;
use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition,
};
use serde::{Deserialize, Serialize};

use super::{FORMAT, META, OLDEST, Place, guarded, read_meta, row, write_meta};
use crate::mvcc::{Effects, Mvcc, Window};
use crate::raft::{LogId, Membership};
use crate::seal::{Sealer, open_version};
use crate::{Error, KeyValue};

const NAME: &str = "state.redb";
const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
/// Times to live of leases in milliseconds by their ids, each with a checksum. Since format 2.
const LEASES: TableDefinition<u64, &[u8]> = TableDefinition::new("leases");

/// What the rows are the state of.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub log_id: Option<LogId>,
    pub membership: Membership,
    pub revision: u64,
    pub compacted: u64,
}

/// What is to become of a row.
#[derive(Debug)]
pub(crate) enum RowChange {
    Version(Arc<KeyValue>),
    Tombstone,
    Remove,
}

/// Changes of rows by revision and key.
pub(crate) type Rows = BTreeMap<(u64, Bytes), RowChange>;

/// Changes of leases: a time to live in milliseconds, or that it is gone.
pub(crate) type Leases = BTreeMap<u64, Option<u64>>;

#[derive(Debug)]
pub(crate) struct StateDb {
    place: Place,
    database: RwLock<Option<Database>>,
}

/// A consistent view of all rows, which later commits do not change.
pub(crate) struct View {
    pub applied: Applied,
    pub format: u64,
    pub leases: Vec<(u64, u64)>,
    pub rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl StateDb {
    pub fn open(place: &Place) -> Result<Self, Error> {
        let database = place.open(NAME)?;
        Ok(Self { place: place.clone(), database: RwLock::new(Some(database)) })
    }

    /// Reads everything back.
    pub fn load(&self, window: Window, sealer: &Sealer) -> Result<(Mvcc, Applied, Effects), Error> {
        let loaded = guarded(|| self.with(|database| self.read_all(database, window, sealer)));
        let loaded = loaded.unwrap_or_else(|panic| Err(redb::Error::Corrupted(panic)));
        loaded.map_err(|error| self.place.error(NAME, error))
    }

    fn read_all(
        &self,
        database: &Database,
        window: Window,
        sealer: &Sealer,
    ) -> Result<(Mvcc, Applied, Effects), redb::Error> {
        let mut state = Mvcc::new(window);
        let mut effects = Effects::default();
        let Some(applied) = read_meta::<Applied>(database, "applied")? else {
            return Ok((state, Applied::default(), effects));
        };
        state.resume(applied.revision, applied.compacted);
        state.raise(read_meta(database, FORMAT)?.unwrap_or(OLDEST));
        let expected: Option<u64> = read_meta(database, "rows")?;
        let txn = database.begin_read()?;
        for (id, ttl_ms) in read_leases(&txn)? {
            state.restore_lease(id, ttl_ms);
        }
        let table = txn.open_table(ROWS)?;
        let mut found = 0;
        for entry in table.iter()? {
            let (key, value) = entry?;
            let mut row = row::read(key.value(), value.value()).map_err(redb::Error::Corrupted)?;
            open_version(sealer, &mut row.kv).map_err(redb::Error::Corrupted)?;
            state.restore(row.key, row.revision, row.kv);
            found += 1;
        }
        if expected != Some(found) || state.revision() != applied.revision {
            let what = format!("{found} rows up to revision {}", state.revision());
            let expected = format!("{expected:?} up to revision {}", applied.revision);
            return Err(redb::Error::Corrupted(format!("{what} where there should be {expected}")));
        }
        state.restored(&mut effects);
        Ok((state, applied, effects))
    }

    /// Writes one batch and syncs it.
    pub fn commit(&self, rows: &Rows, leases: &Leases, applied: &Applied) -> Result<(), redb::Error> {
        self.write(applied, leases, false, |table| write_rows(table, rows))
    }

    /// Replaces everything by what is at least of this format.
    pub fn replace(
        &self,
        applied: &Applied,
        format: u64,
        leases: &[(u64, u64)],
        rows: impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), redb::Error>>,
    ) -> Result<(), redb::Error> {
        let leases = leases.iter().map(|(id, ttl_ms)| (*id, Some(*ttl_ms))).collect();
        self.write(applied, &leases, true, |table| {
            table.retain(|_, _| false)?;
            let mut leased = format >= 2;
            for row in rows {
                let (key, value) = row?;
                leased |= row::is_leased(&value);
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(leased)
        })
    }

    fn write(
        &self,
        applied: &Applied,
        leases: &Leases,
        all_new: bool,
        change: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Result<bool, redb::Error>,
    ) -> Result<(), redb::Error> {
        let started = Instant::now();
        let done = self.with(|database| {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            let (leased, count) = {
                let mut table = txn.open_table(ROWS)?;
                (change(&mut table)?, table.len()?)
            };
            write_leases(&txn, leases, all_new)?;
            if leased || !leases.is_empty() {
                write_meta(&txn, FORMAT, &2_u64)?;
            }
            write_meta(&txn, "applied", applied)?;
            write_meta(&txn, "rows", &count)?;
            Ok(txn.commit()?)
        });
        self.place.synced(NAME, &self.place.stats.state_syncs, started.elapsed());
        done
    }

    /// Gives free pages back to the disk.
    pub fn defragment(&self) -> Result<(), Error> {
        let mut database = self.database.write();
        let Some(database) = &mut *database else { return Err(Error::Stopped("it is closed".into())) };
        self.place.defragment(NAME, database)
    }

    /// The state of the last commit.
    pub fn view(&self) -> Result<View, redb::Error> {
        let empty = self.with(|database| Ok(read_meta::<Applied>(database, "applied")?.is_none()))?;
        if empty {
            self.commit(&Rows::new(), &Leases::new(), &Applied::default())?;
        }
        self.with(|database| {
            let txn = database.begin_read()?;
            let meta = txn.open_table(META)?;
            let applied = meta.get("applied")?.map(|bytes| postcard::from_bytes(bytes.value()));
            let applied = applied.transpose().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
            let format = meta.get(FORMAT)?.map(|bytes| postcard::from_bytes(bytes.value()));
            let format = format.transpose().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
            let (applied, format) = (applied.unwrap_or_default(), format.unwrap_or(OLDEST));
            Ok(View { applied, format, leases: read_leases(&txn)?, rows: txn.open_table(ROWS)? })
        })
    }

    pub fn close(&self) {
        self.database.write().take();
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn error(&self, error: redb::Error) -> Error {
        self.place.error(NAME, error)
    }

    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        match &*self.database.read() {
            Some(database) => f(database),
            None => Err(redb::Error::DatabaseClosed),
        }
    }
}

fn write_leases(txn: &redb::WriteTransaction, leases: &Leases, all_new: bool) -> Result<(), redb::Error> {
    if all_new {
        txn.delete_table(LEASES)?;
    }
    if leases.is_empty() {
        return Ok(());
    }
    let mut table = txn.open_table(LEASES)?;
    for (id, ttl_ms) in leases {
        match ttl_ms {
            Some(ttl_ms) => drop(table.insert(id, lease_row(*id, *ttl_ms).as_slice())?),
            None => drop(table.remove(id)?),
        }
    }
    Ok(())
}

/// Checksum (CRC-32 of the rest and the id) and time to live, little-endian.
fn lease_row(id: u64, ttl_ms: u64) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(&ttl_ms.to_le_bytes());
    let mut row = hasher.finalize().to_le_bytes().to_vec();
    row.extend_from_slice(&ttl_ms.to_le_bytes());
    row
}

fn read_leases(txn: &redb::ReadTransaction) -> Result<Vec<(u64, u64)>, redb::Error> {
    let table = match txn.open_table(LEASES) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table?,
    };
    let mut leases = Vec::new();
    for entry in table.iter()? {
        let (id, row) = entry?;
        let (id, row) = (id.value(), row.value());
        let ttl_ms = row.get(4..).and_then(|rest| rest.try_into().ok()).map(u64::from_le_bytes);
        match ttl_ms.filter(|ttl_ms| lease_row(id, *ttl_ms) == row) {
            Some(ttl_ms) => leases.push((id, ttl_ms)),
            None => return Err(redb::Error::Corrupted(format!("lease {id}: checksum does not match"))),
        }
    }
    Ok(leases)
}

/// True when one of them is of format 2.
fn write_rows(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    rows: &Rows,
) -> Result<bool, redb::Error> {
    let mut leased = false;
    let (mut row_key, mut value) = (Vec::new(), Vec::new());
    for ((revision, key), change) in rows {
        row::write_key(*revision, key, &mut row_key);
        let kv = match change {
            RowChange::Remove => {
                table.remove(row_key.as_slice())?;
                continue;
            }
            RowChange::Tombstone => None,
            RowChange::Version(kv) => Some(&**kv),
        };
        leased |= kv.is_some_and(|kv| kv.lease.is_some());
        row::write_value(&row_key, kv, &mut value);
        table.insert(row_key.as_slice(), value.as_slice())?;
    }
    Ok(leased)
}
