//! A cluster that lost everything comes back from a snapshot.

use coracle_store::{Error, Options, Range, Store, Txn};

use super::members::{Members, dump, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_store_goes_on_where_the_snapshot_was() {
    let mut members = Members::cluster(3).await;
    for n in 0..50 {
        put(members.store(2), &format!("/{}", n % 20), &n.to_string()).await.unwrap();
    }
    let gone = Txn { success: vec![coracle_store::Op::Delete { key: "/3".into() }], ..Txn::default() };
    members.store(1).txn(gone).await.unwrap();
    members.agree().await;
    let (before, revision) = (dump(members.store(3)), members.store(3).revision());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot");
    members.store(3).save_snapshot(&file).await.unwrap();
    // What is written later is lost.
    put(members.store(1), "/later", "x").await.unwrap();
    members.close_all().await;

    let seen = Store::inspect(&file).unwrap();
    assert_eq!((seen.revision, seen.keys, seen.members), (revision, before.len() as u64, vec![1, 2, 3]));

    let place = dir.path().join("new");
    let from = Store::restore(&place, &file, 1).await.unwrap();
    assert!(from > revision + 1000);
    let again = Store::restore(&place, &file, 1).await;
    assert!(matches!(again, Err(Error::Invalid(_))), "{again:?}");
    for round in 0..2 {
        let store = Store::open(Options::new(&place)).await.unwrap();
        let restored = dump(&store);
        assert_eq!(restored.iter().filter(|kv| kv.key != "/new").cloned().collect::<Vec<_>>(), before);
        // A watch or a read of the lost cluster is told to begin anew.
        assert!(matches!(store.watch("/".into(), revision), Err(Error::Compacted { .. })));
        assert!(matches!(store.range(&Range::prefix("/").at(revision)), Err(Error::Compacted { .. })));
        let mut watch = store.watch("/".into(), store.revision()).unwrap();
        let written = put(&store, "/new", &round.to_string()).await.unwrap();
        assert!(written > from);
        assert_eq!(watch.next().await.unwrap().revision, written);
        store.shutdown().await.unwrap();
    }
    let damaged = dir.path().join("damaged");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let refused = Store::restore(&dir.path().join("none"), &damaged, 1).await;
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
}
