//! The store in a temporary folder.

use super::*;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn add(store: &Store, content: &str, tag: &str) -> ImageRecord {
    let [id, config, layer] = ["m", "c", "l"].map(|p| {
        let bytes = format!("{p}{content}").into_bytes();
        store.put_blob("x", &digest(&bytes), &bytes).unwrap();
        digest(&bytes)
    });
    let record = ImageRecord {
        tags: [tag.parse::<Reference>().unwrap().to_string()].into(),
        digests: [format!("docker.io/library/x@{id}")].into(),
        config,
        layer,
        layers: Vec::new(),
        commands: Default::default(),
        platform: Platform::Wasm,
        size: 6,
        pulled_at_ns: 1,
        source: String::new(),
        id,
    };
    store.put(record).unwrap()
}

#[test]
fn images_are_found_by_every_name_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let one = add(&store, "one", "x:v1");
    let two = add(&store, "two", "x:v2");
    let store = Store::open(dir.path()).unwrap();
    let by_digest = format!("x:other@{}", one.id);
    for name in ["x:v1", "docker.io/library/x:v1", &one.id, &one.id["sha256:".len()..], &by_digest] {
        assert_eq!(store.find(name).unwrap().as_ref(), Some(&one), "{name}");
    }
    assert_eq!(store.find("x:v3").unwrap(), None);
    assert_eq!(store.find(&format!("sha256:{}", "0".repeat(64))).unwrap(), None);
    assert!(store.find("X Y").is_err());
    assert_eq!(store.list().len(), 2);
    // A tag moves.
    add(&store, "two", "x:v1");
    assert_eq!(store.find("x:v1").unwrap().unwrap().id, two.id);
    assert!(store.find(&one.id).unwrap().unwrap().tags.is_empty());
}

#[test]
fn removing_sweeps_what_nobody_uses() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let one = add(&store, "one", "x:v1");
    let two = add(&store, "two", "x:v2");
    let hold = store.hold(&one.layer);
    assert!(store.remove("x:v1").unwrap());
    assert!(!store.remove("x:v1").unwrap());
    assert!(store.has(&one.layer) && !store.has(&one.id) && store.has(&two.layer));
    drop(hold);
    assert_eq!(store.sweep().unwrap(), 1);
    assert!(!store.has(&one.layer));
    let usage = store.usage().unwrap();
    assert_eq!(usage.inodes, 4);
}

#[test]
fn what_does_not_match_its_digest_gets_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let wanted = digest(b"right");
    let error = store.put_blob("x:v1", &wanted, b"wrong").unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(!store.has(&wanted));
    assert!(store.put_blob("x", "sha256:../../etc", b"").is_err());
    assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
}

#[test]
fn a_torn_record_or_a_missing_blob_means_pulling_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let one = add(&store, "one", "x:v1");
    let two = add(&store, "two", "x:v2");
    fs::write(store.record_path(&one.id), b"{").unwrap();
    fs::remove_file(store.blob_path(&two.layer)).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.list().is_empty());
}
