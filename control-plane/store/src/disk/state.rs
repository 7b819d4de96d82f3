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

use super::{META, Place, guarded, read_meta, row, write_meta};
use crate::mvcc::{Effects, Mvcc, Window};
use crate::raft::{LogId, Membership};
use crate::seal::{Sealer, open_version};
use crate::{Error, KeyValue};

const NAME: &str = "state.redb";
const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

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

#[derive(Debug)]
pub(crate) struct StateDb {
    place: Place,
    database: RwLock<Option<Database>>,
}

/// A consistent view of all rows, which later commits do not change.
pub(crate) struct View {
    pub applied: Applied,
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
        let expected: Option<u64> = read_meta(database, "rows")?;
        let table = database.begin_read()?.open_table(ROWS)?;
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
    pub fn commit(&self, rows: &Rows, applied: &Applied) -> Result<(), redb::Error> {
        self.write(applied, |table| write_rows(table, rows))
    }

    /// Replaces everything.
    pub fn replace(
        &self,
        applied: &Applied,
        rows: impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), redb::Error>>,
    ) -> Result<(), redb::Error> {
        self.write(applied, |table| {
            table.retain(|_, _| false)?;
            for row in rows {
                let (key, value) = row?;
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(())
        })
    }

    fn write(
        &self,
        applied: &Applied,
        change: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let started = Instant::now();
        let done = self.with(|database| {
            let mut txn = database.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            let count = {
                let mut table = txn.open_table(ROWS)?;
                change(&mut table)?;
                table.len()?
            };
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
            self.commit(&Rows::new(), &Applied::default())?;
        }
        self.with(|database| {
            let txn = database.begin_read()?;
            let meta = txn.open_table(META)?;
            let applied = meta.get("applied")?.map(|bytes| postcard::from_bytes(bytes.value()));
            let applied = applied.transpose().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
            Ok(View { applied: applied.unwrap_or_default(), rows: txn.open_table(ROWS)? })
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

fn write_rows(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    rows: &Rows,
) -> Result<(), redb::Error> {
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
        row::write_value(&row_key, kv, &mut value);
        table.insert(row_key.as_slice(), value.as_slice())?;
    }
    Ok(())
}
