//! Raft's state machine: hands entries to the [`Machine`], their effects to the [`Persister`], and answers to callers.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend};

use super::{LogId, Membership, Response, SnapshotMeta, Types};
use crate::disk::persister::Persister;
use crate::disk::row;
use crate::disk::snapshot::{RawRow, Reader, SnapshotData};
use crate::disk::state::Applied;
use crate::machine::Machine;
use crate::mvcc::{Command, Effects, Mvcc, Window};
use crate::seal::open_version;

type Snapshot = SnapshotOf<Types, SnapshotData>;

/// Entries applied under one hold of the lock.
const BATCH: usize = 512;

pub(crate) struct StateMachine {
    pub machine: Arc<Machine>,
    pub persister: Arc<Persister>,
    pub window: Window,
    pub applied: Applied,
}

impl StateMachine {
    async fn apply_batch(&mut self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let commands = batch.iter().filter_map(|(entry, _)| match &entry.payload {
            EntryPayload::Normal(request) => Some(&*request.0),
            _ => None,
        });
        let commands: Vec<&Command> = commands.collect();
        let mut effects = Effects::default();
        let mut responses = self.machine.apply(commands.into_iter(), &mut effects).into_iter();
        for (entry, _) in &batch {
            self.applied.log_id = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = &entry.payload {
                self.applied.membership = Membership::new(Some(entry.log_id), membership.clone());
            }
        }
        self.applied.revision = self.machine.revision();
        self.applied.compacted = self.machine.state.read().compacted();
        self.persister.push(effects.changes, self.applied.clone()).await.map_err(io::Error::other)?;
        for (entry, responder) in batch {
            let response = match &entry.payload {
                EntryPayload::Normal(_) => responses.next().flatten(),
                _ => None,
            };
            if let Some(responder) = responder {
                responder.send(Response(response));
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok((self.applied.log_id, self.applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.try_next().await? {
            batch.push(entry);
            if batch.len() == BATCH {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.apply_batch(batch).await }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { persister: self.persister.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        match snapshot {
            SnapshotData::View(view) => {
                let rows = || view.raw_rows().map_err(io::Error::other);
                self.install(meta, &view.applied, (view.format, &view.leases), rows()?, rows()?)
            }
            SnapshotData::File(path) => {
                let open =
                    || Reader::open(&path, self.persister.state().place().newest).map_err(io::Error::other);
                let Reader { applied, format, leases, .. } = open()?;
                self.install(meta, &applied, (format, &leases), open()?.rows(), open()?.rows())
            }
        }
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        if self.applied.log_id.is_none() {
            return Ok(None);
        }
        self.get_snapshot_builder().await.build_snapshot().await.map(Some)
    }
}

impl StateMachine {
    /// Takes over a snapshot: memory is built first, so that a damaged row changes nothing; then disk, then both show it.
    fn install(
        &mut self,
        meta: &SnapshotMeta,
        applied: &Applied,
        (format, leases): (u64, &[(u64, u64)]),
        for_memory: impl Iterator<Item = RawRow>,
        for_disk: impl Iterator<Item = RawRow>,
    ) -> io::Result<()> {
        let applied = Applied {
            log_id: meta.last_log_id,
            membership: meta.last_membership.clone(),
            revision: applied.revision,
            compacted: applied.compacted,
        };
        let mut state = Mvcc::new(self.window);
        state.resume(applied.revision, applied.compacted);
        state.raise(format);
        for (id, ttl_ms) in leases {
            state.restore_lease(*id, *ttl_ms);
        }
        for row in for_memory {
            let (key, value) = row.map_err(io::Error::other)?;
            let mut row = row::read(&key, &value).map_err(io::Error::other)?;
            open_version(&self.machine.sealer, &mut row.kv).map_err(io::Error::other)?;
            state.restore(row.key, row.revision, row.kv);
        }
        let mut effects = Effects::default();
        state.restored(&mut effects);
        self.persister.replace(&applied, format, leases, for_disk).map_err(io::Error::other)?;
        self.machine.replace(state);
        self.applied = applied;
        Ok(())
    }
}

/// Builds a snapshot: brings the state to disk and looks at it there. No file is written until one is sent.
pub(crate) struct Builder {
    persister: Arc<Persister>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.persister.flush().await.map_err(io::Error::other)?;
        let view = self.persister.state().view().map_err(io::Error::other)?;
        let meta = SnapshotMeta {
            last_log_id: view.applied.log_id,
            last_membership: view.applied.membership.clone(),
        };
        Ok(Snapshot { meta, snapshot: SnapshotData::View(Box::new(view)) })
    }
}
