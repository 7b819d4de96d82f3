use super::*;
use crate::{Range, Value};

fn mvcc(revisions: u64) -> Mvcc {
    Mvcc::new(Window { revisions, bytes: usize::MAX })
}

fn put(m: &mut Mvcc, key: &'static str, effects: &mut Effects) -> u64 {
    let txn = Txn::put(Bytes::from_static(key.as_bytes()), Value::raw("v"));
    m.apply(&Command::Txn { now_ms: 0, txn }, effects).map_or(0, |r| r.revision)
}

fn delete(m: &mut Mvcc, key: &'static str, effects: &mut Effects) {
    let txn = Txn { success: vec![Op::Delete { key: key.into() }], ..Txn::default() };
    m.apply(&Command::Txn { now_ms: 0, txn }, effects);
}

fn keys_at(m: &Mvcc, revision: u64) -> Vec<String> {
    let mut page = Page::new(&Range::prefix(""), revision);
    while !m.read_slice(&mut page, 1) {}
    page.kvs.iter().map(|kv| format!("{}@{}", String::from_utf8_lossy(&kv.key), kv.mod_revision)).collect()
}

#[test]
fn reads_at_each_revision_of_the_window() {
    let (mut m, mut effects) = (mvcc(100), Effects::default());
    put(&mut m, "a", &mut effects);
    put(&mut m, "b", &mut effects);
    put(&mut m, "a", &mut effects);
    delete(&mut m, "b", &mut effects);
    assert_eq!(keys_at(&m, 1), Vec::<String>::new());
    assert_eq!(keys_at(&m, 3), ["a@2", "b@3"]);
    assert_eq!(keys_at(&m, 4), ["a@4", "b@3"]);
    assert_eq!(keys_at(&m, 5), ["a@4"]);
}

#[test]
fn compaction_drops_what_no_read_can_ask_for() {
    let (mut m, mut effects) = (mvcc(100), Effects::default());
    for key in ["a", "a", "b", "a"] {
        put(&mut m, key, &mut effects);
    }
    delete(&mut m, "b", &mut effects);
    put(&mut m, "b", &mut effects);
    effects.changes.clear();
    m.apply(&Command::Compact { revision: 6 }, &mut effects);
    let mut gone: Vec<_> = effects.changes.iter().map(|c| format!("{c:?}")).collect();
    gone.sort();
    let row = |key: &str, revision: u64| format!("Forget {{ key: b\"{key}\", revision: {revision} }}");
    assert_eq!(gone, [row("a", 2), row("a", 3), row("b", 4), row("b", 6)]);
    assert_eq!(keys_at(&m, 6), ["a@5"]);
    assert_eq!(keys_at(&m, 7), ["a@5", "b@7"]);
    assert!(matches!(m.check_revision(Some(5)), Err(Error::Compacted { compact_revision: 6 })));
    assert!(matches!(m.check_revision(Some(8)), Err(Error::FutureRevision { .. })));
}

#[test]
fn deleted_key_leaves_nothing_behind() {
    let (mut m, mut effects) = (mvcc(2), Effects::default());
    put(&mut m, "a", &mut effects);
    delete(&mut m, "a", &mut effects);
    for _ in 0..3 {
        put(&mut m, "z", &mut effects);
    }
    assert_eq!(m.keys.len(), 1);
    assert_eq!(m.ring.len(), 2);
    let rows =
        effects.changes.iter().fold(0, |n, c| if matches!(c, Change::Forget { .. }) { n - 1 } else { n + 1 });
    assert_eq!(rows, 3, "z at 6, at 5, and at 4 for reads at the compacted revision");
}

#[test]
fn window_is_bounded_in_bytes() {
    let mut m = Mvcc::new(Window { revisions: 1_000_000, bytes: 10_000 });
    let mut effects = Effects::default();
    for _ in 0..1000 {
        put(&mut m, "a", &mut effects);
    }
    assert!(m.ring_bytes <= 10_000 && m.ring.len() > 10, "{} {}", m.ring_bytes, m.ring.len());
    let older = m.keys.values().map(|v| v.older.len()).sum::<usize>();
    assert!(older <= m.ring.len());
}

#[test]
fn restore_gives_the_same_state() {
    let (mut m, mut effects) = (mvcc(5), Effects::default());
    for key in ["a", "b", "a", "c", "b"] {
        put(&mut m, key, &mut effects);
    }
    delete(&mut m, "a", &mut effects);
    delete(&mut m, "c", &mut effects);
    put(&mut m, "a", &mut effects);
    let mut rows = BTreeMap::new();
    for change in effects.changes {
        match change {
            Change::Put(kv) => rows.insert((kv.mod_revision, kv.key.clone()), Some(kv)),
            Change::Tombstone { key, revision } => rows.insert((revision, key), None),
            Change::Lease { .. } => None,
            Change::Forget { key, revision } => rows.remove(&(revision, key)),
        };
    }
    let mut again = mvcc(5);
    again.resume(m.revision(), m.compacted());
    for ((revision, key), kv) in rows {
        again.restore(key, revision, kv);
    }
    again.restored(&mut Effects::default());
    assert_eq!(again.revision(), m.revision());
    for revision in m.compacted()..=m.revision() {
        assert_eq!(keys_at(&again, revision), keys_at(&m, revision), "at {revision}");
    }
    let events = |m: &Mvcc| -> Vec<_> {
        m.ring.iter().map(|e| (e.revision, e.kind, e.kv.clone(), e.prev.clone())).collect()
    };
    assert_eq!(events(&again), events(&m));
}
