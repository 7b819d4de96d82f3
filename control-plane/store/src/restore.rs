//! A new store out of a snapshot, for a cluster that has lost all of its members.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use openraft::BasicNode;

use crate::disk::snapshot::Reader;
use crate::disk::state::{Applied, StateDb};
use crate::disk::{Directory, NEWEST, OLDEST, Place, row};
use crate::mvcc::{Mvcc, Page, Window};
use crate::raft::{Membership, Vote, log};
use crate::{Error, Range, Store};

/// Revisions that are left out: those that the lost cluster may have reached after the snapshot. Who watches from one of
/// them is told to list again instead of missing what is there now.
const GAP: u64 = 1_000_000;

/// What a snapshot file holds.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The version of its format.
    pub format: u64,
    /// The revision that it was taken at.
    pub revision: u64,
    /// Its history reaches back to here.
    pub compacted_revision: u64,
    /// Keys at that revision.
    pub keys: u64,
    /// Members of the cluster that it was taken of.
    pub members: Vec<u64>,
}

impl Store {
    /// Checks a whole snapshot file and says what it holds.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged one, [`Error::FormatTooNew`], [`Error::Io`].
    pub fn inspect(snapshot: &Path) -> Result<Inspection, Error> {
        let file = File::open(snapshot).map_err(crate::disk::io_error("opening a snapshot"))?;
        Self::inspect_from(file, snapshot)
    }

    /// As [`Self::inspect`], for one that lies within another file, which errors name.
    ///
    /// # Errors
    /// As those of [`Self::inspect`].
    pub fn inspect_from(snapshot: impl Read, path: &Path) -> Result<Inspection, Error> {
        let reader = Reader::start(snapshot, path, NEWEST)?;
        let (applied, format) = (reader.applied.clone(), reader.format);
        let mut keys = HashSet::new();
        for found in reader.rows() {
            let row =
                found.map_err(|error| error.to_string()).and_then(|(key, value)| row::read(&key, &value));
            let file = || path.display().to_string();
            let row = row.map_err(|detail| Error::Corrupt { file: file(), detail })?;
            match row.kv {
                Some(_) => keys.insert(row.key),
                None => keys.remove(&row.key),
            };
        }
        Ok(Inspection {
            format,
            revision: applied.revision,
            compacted_revision: applied.compacted,
            keys: keys.len() as u64,
            members: applied.membership.nodes().map(|(id, _)| *id).collect(),
        })
    }

    /// Makes the store of a cluster of one member out of a snapshot file. Returns the revision that it goes on from,
    /// which is far above any that the snapshot holds.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged snapshot, [`Error::Invalid`] where there is a store already, [`Error::Io`].
    pub async fn restore(dir: &Path, snapshot: &Path, node_id: u64) -> Result<u64, Error> {
        let (dir, snapshot) = (dir.to_owned(), snapshot.to_owned());
        let restored = tokio::task::spawn_blocking(move || restore(&dir, &snapshot, node_id)).await;
        restored.map_err(|error| Error::Stopped(error.to_string()))?
    }
}

fn restore(dir: &Path, snapshot: &Path, node_id: u64) -> Result<u64, Error> {
    let io = crate::disk::io_error("making the data directory");
    let files = Arc::new(Directory::new(dir).map_err(io)?);
    let (dir_of, newest, log_bytes) = (dir.to_owned(), NEWEST, 0);
    let place =
        Place { dir: dir_of, files, node_id, threads: true, newest, log_bytes, stats: Arc::default() };
    for name in ["state.redb", "log.redb"] {
        if place.files.exists(name).map_err(crate::disk::io_error("looking for the store's files"))? {
            return Err(Error::Invalid(format!("{} holds a store already", dir.display())));
        }
    }
    let reader = Reader::open(snapshot, NEWEST)?;
    let (old, revision) = (reader.applied.clone(), reader.applied.revision.saturating_add(GAP));
    let mut state = Mvcc::new(Window { revisions: 1, bytes: usize::MAX });
    // Nothing is left of the history: its revisions are another cluster's.
    state.resume(revision, revision);
    let leases = reader.leases.clone();
    for (id, ttl_ms) in &leases {
        state.restore_lease(*id, *ttl_ms);
    }
    for found in reader.rows() {
        let damaged = |error: &dyn std::fmt::Display| Error::Corrupt {
            file: snapshot.display().to_string(),
            detail: error.to_string(),
        };
        let (key, value) = found.map_err(|error| damaged(&error))?;
        let row = row::read(&key, &value).map_err(|error| damaged(&error))?;
        state.restore(row.key, row.revision, row.kv);
    }
    let mut page = Page::new(&Range::prefix(""), state.revision());
    state.read_slice(&mut page, usize::MAX);
    let rows = page.kvs.iter().map(|kv| {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        row::write_key(kv.mod_revision, &kv.key, &mut key);
        row::write_value(&key, Some(kv), &mut value);
        Ok((key, value))
    });
    let nodes = BTreeMap::from([(node_id, BasicNode::default())]);
    let members = openraft::Membership::new(vec![[node_id].into()], nodes)
        .map_err(|error| Error::Invalid(error.to_string()))?;
    let membership = Membership::new(old.log_id, members);
    let applied = Applied { log_id: old.log_id, membership, revision, compacted: revision };
    let database = StateDb::open(&place)?;
    database.replace(&applied, OLDEST, &leases, rows).map_err(|error| database.error(error))?;
    database.close();
    // The log begins behind what the snapshot holds, in a later term than any before.
    let term = old.log_id.map_or(0, |id| id.leader_id.term);
    log::begin(&place, &Vote::new(term.saturating_add(1), node_id), old.log_id.as_ref())?;
    place.files.close();
    Ok(revision)
}
