//! openraft's own suite on this log and state machine, and snapshots handed from one member to another.

use openraft::entry::RaftEntry;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, StorageError};
use tempfile::TempDir;

use super::log::Log;
use super::state_machine::StateMachine;
use super::*;
use crate::disk::persister::Persister;
use crate::disk::snapshot::SnapshotData;
use crate::disk::state::{Applied, StateDb};
use crate::disk::{Directory, NEWEST, Place};
use crate::machine::Machine;
use crate::mvcc::Window;
use crate::{Range, Txn, Value};

const WINDOW: Window = Window { revisions: 100, bytes: usize::MAX };

struct Builder;

fn place(dir: &TempDir) -> Place {
    let files = Arc::new(Directory::new(dir.path()).unwrap());
    let (dir, newest, log_bytes) = (dir.path().into(), NEWEST, 4096);
    Place { dir, files, node_id: 1, threads: true, newest, log_bytes, stats: Arc::default() }
}

fn open_with(guarded: bool) -> (TempDir, Log, StateMachine) {
    let dir = tempfile::tempdir().unwrap();
    let place = place(&dir);
    let applied = Applied::default();
    let persister = Arc::new(Persister::start(StateDb::open(&place).unwrap(), &applied).unwrap());
    let log = Log::open(&place, guarded.then(|| persister.clone())).unwrap();
    // The tests open it again.
    place.files.close();
    let machine = Arc::new(Machine::new(WINDOW, None));
    (dir, log, StateMachine { machine, persister, window: WINDOW, applied })
}

fn open() -> (TempDir, Log, StateMachine) {
    open_with(true)
}

impl StoreBuilder<Types, Log, StateMachine, (TempDir, Arc<Persister>)> for Builder {
    async fn build(&self) -> Result<((TempDir, Arc<Persister>), Log, StateMachine), StorageError<Types>> {
        // The suite purges what it never applied.
        let (dir, log, machine) = open_with(false);
        Ok(((dir, machine.persister.clone()), log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite() {
    Suite::test_all(Builder).await.unwrap();
}

fn entry(index: u64, txn: Txn) -> Entry {
    let log_id = LogId::new(*Vote::new_committed(1, 1).leader_id(), index);
    Entry::new(log_id, EntryPayload::Normal(Request(Arc::new(Command::Txn { now_ms: 0, txn }))))
}

async fn apply(machine: &mut StateMachine, index: u64, key: &'static str, value: String) {
    let entry = entry(index, Txn::put(key.into(), Value::raw(value)));
    machine.apply(Box::pin(futures::stream::iter([Ok((entry, None))]))).await.unwrap();
}

fn dump(machine: &Machine) -> String {
    format!("{:?}", machine.range(&Range::prefix("")).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_carries_everything_to_another_member() {
    let (source_dir, _log, mut source) = open();
    for index in 1..=20 {
        apply(&mut source, index, if index % 2 == 0 { "/even" } else { "/odd" }, index.to_string()).await;
    }
    let snapshot = source.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id.map(|id| id.index), Some(20));
    // Later writes are not part of it.
    apply(&mut source, 21, "/late", "x".into()).await;
    source.persister.flush().await.unwrap();
    let file = source_dir.path().join("a.snapshot");
    let SnapshotData::View(view) = &snapshot.snapshot else { panic!("a view") };
    view.save(&file).unwrap();

    for as_file in [true, false] {
        let (dir, _log, mut target) = open();
        apply(&mut target, 1, "/other", "gone".into()).await;
        let mut watch = crate::Watch::for_test(&target.machine, "/", 1);
        let data = match as_file {
            true => SnapshotData::File(file.clone()),
            false => source.get_current_snapshot().await.unwrap().unwrap().snapshot,
        };
        let meta = snapshot.meta.clone();
        target.install_snapshot(&meta, data).await.unwrap();
        assert_eq!(target.applied_state().await.unwrap().0.map(|id| id.index), Some(20));
        assert!(target.machine.state.read().get(b"/other").is_none());
        let shown = dump(&target.machine);
        if as_file {
            assert_eq!(target.machine.revision(), 21);
            let mut resumed = crate::Watch::for_test(&target.machine, "/", 19);
            assert_eq!(resumed.next().await.unwrap().revision, 20);
            assert_eq!(resumed.next().await.unwrap().revision, 21);
        }
        assert!(watch.try_next().is_ok_and(|event| event.is_some()), "the history came along");
        // On disk as well.
        target.persister.stop().unwrap();
        drop(target);
        let (state, applied, _) = StateDb::open(&place(&dir)).unwrap().load(WINDOW, &None).unwrap();
        let again = Machine::new(WINDOW, None);
        again.replace(state);
        assert_eq!(dump(&again), shown);
        assert_eq!(applied.log_id.map(|id| id.index), Some(20));
    }
}

/// Once leases were used a member has to know them, although none is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_carries_its_version() {
    let (_source_dir, _log, mut source) = open();
    apply(&mut source, 1, "/a", "1".into()).await;
    for (index, command) in [(2, Command::Grant { id: 7, ttl_ms: 1000 }), (3, Command::Revoke { id: 7 })] {
        let log_id = LogId::new(*Vote::new_committed(1, 1).leader_id(), index);
        let entry = Entry::new(log_id, EntryPayload::Normal(Request(Arc::new(command))));
        source.apply(Box::pin(futures::stream::iter([Ok((entry, None))]))).await.unwrap();
    }
    let snapshot = source.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let (dir, _log, mut target) = open();
    target.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(target.machine.version(), 2);
    target.persister.stop().unwrap();
    drop(target);
    let (state, ..) = StateDb::open(&place(&dir)).unwrap().load(WINDOW, &None).unwrap();
    assert_eq!(state.version(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_snapshot_changes_nothing() {
    let (dir, _log, mut source) = open();
    for index in 1..=5 {
        apply(&mut source, index, "/a", index.to_string()).await;
    }
    let snapshot = source.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let SnapshotData::View(view) = &snapshot.snapshot else { panic!("a view") };
    let file = dir.path().join("a.snapshot");
    view.save(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let before = dump(&source.machine);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&file, &damaged).unwrap();
        let meta = snapshot.meta.clone();
        assert!(source.install_snapshot(&meta, SnapshotData::File(file.clone())).await.is_err(), "byte {at}");
    }
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert!(source.install_snapshot(&snapshot.meta, SnapshotData::File(file)).await.is_err());
    assert_eq!(dump(&source.machine), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purge_waits_for_the_state_and_truncation_survives() {
    use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
    let (dir, mut log, mut machine) = open();
    let entries: Vec<_> = (1..=2000).map(|n| entry(n, Txn::put("/a".into(), Value::raw("v")))).collect();
    log.append([entry(0, Txn::default())], IOFlushed::noop()).await.unwrap();
    log.append(entries.clone(), IOFlushed::noop()).await.unwrap();
    let unapplied = log.purge(entries[9].log_id).await;
    assert!(unapplied.is_err(), "entries that were not applied are all there is");
    for index in 1..=1500 {
        apply(&mut machine, index, "/a", "v".into()).await;
    }
    log.purge(entries[1399].log_id).await.unwrap();
    log.truncate_after(Some(entries[1799].log_id)).await.unwrap();
    let read = log.try_get_log_entries(0..5000).await.unwrap();
    assert_eq!((read.first().unwrap().log_id.index, read.last().unwrap().log_id.index), (1401, 1800));
    log.stop().unwrap();
    let mut again = Log::open(&place(&dir), None).unwrap();
    let state = again.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id.map(|id| id.index), Some(1400));
    assert_eq!(state.last_log_id.map(|id| id.index), Some(1800));
    let read = again.try_get_log_entries(1401..=1800).await.unwrap();
    assert_eq!(read.len(), 400, "read from disk");
    again.stop().unwrap();
}
