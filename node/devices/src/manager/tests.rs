use std::path::Path;
use std::time::Instant;

use tokio::sync::watch;

use super::registration::is_resource;
use super::*;
use crate::plugin::{self, Describe};
use crate::v1beta1::{Device, NumaNode, TopologyInfo};

fn holder(pod: &str) -> Holder {
    Holder { pod: pod.into(), container: "main".into() }
}

fn want(count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([("test.dev/thing".to_owned(), count)])
}

struct Echo;

impl Describe for Echo {
    fn describe(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        if ids.iter().any(|id| id == "broken") {
            return Err("broken cannot be used".into());
        }
        let envs = std::collections::HashMap::from([("IDS".to_owned(), ids.join(","))]);
        Ok(ContainerAllocateResponse { envs, ..Default::default() })
    }
}

fn devices(list: &[(&str, &str)]) -> Vec<Device> {
    let device =
        |(id, health): &(&str, &str)| Device { id: (*id).into(), health: (*health).into(), topology: None };
    list.iter().map(device).collect()
}

async fn until(manager: &Manager, capacity: usize, allocatable: usize) {
    let end = Instant::now() + Duration::from_secs(20);
    let expected = Amount { resource: "test.dev/thing".into(), capacity, allocatable };
    while manager.amounts() != [expected.clone()] {
        assert!(Instant::now() < end, "{:?} instead of {expected:?}", manager.amounts());
        let _ = tokio::time::timeout(Duration::from_millis(100), manager.changed()).await;
    }
}

fn options(directory: &Path) -> plugin::Options {
    plugin::Options {
        directory: directory.to_owned(),
        socket: "thing.sock".into(),
        resource: "test.dev/thing".into(),
    }
}

#[tokio::test]
async fn devices_are_given_to_one_container_at_a_time_across_restarts() {
    let dir = tempfile::tempdir().expect("a directory");
    let checkpoint = dir.path().join("devices.json");
    let (list, receiver) = watch::channel(devices(&[("a", HEALTHY), ("b", HEALTHY), ("c", "Unhealthy")]));
    let plugin_stop = CancellationToken::new();
    tokio::spawn(plugin::run(options(dir.path()), receiver, Echo, plugin_stop.clone()));

    let stop = CancellationToken::new();
    let manager = Manager::new(dir.path().to_owned(), checkpoint.clone(), stop.clone());
    let running = manager.clone();
    let served = tokio::spawn(async move { running.run().await });
    until(&manager, 3, 2).await;

    let first = manager.allocate(&holder("one"), &want(1), &[]).await.expect("a device");
    assert_eq!(first.envs["IDS"], "a");
    let again = manager.allocate(&holder("one"), &want(1), &[]).await.expect("the same device");
    assert_eq!(again.envs["IDS"], "a");
    let second = manager.allocate(&holder("two"), &want(1), &[]).await.expect("the other");
    assert_eq!(second.envs["IDS"], "b");
    let refused = manager.allocate(&holder("three"), &want(1), &[]).await.expect_err("none is free");
    assert!(refused.to_string().contains("Requested: 1, Available: 0"), "{refused}");

    // The agent comes back: the plugin registers again, and nothing is given twice.
    stop.cancel();
    served.await.expect("a task").expect("served");
    let manager = Manager::new(dir.path().to_owned(), checkpoint, CancellationToken::new());
    let running = manager.clone();
    tokio::spawn(async move { running.run().await });
    until(&manager, 3, 2).await;
    assert_eq!(manager.held(&holder("two"))["test.dev/thing"], BTreeSet::from(["b".to_owned()]));
    assert!(manager.allocate(&holder("three"), &want(1), &[]).await.is_err());
    manager.retain(|pod| pod != "one").expect("written");
    let third = manager.allocate(&holder("three"), &want(1), &[]).await.expect("what was freed");
    assert_eq!(third.envs["IDS"], "a");

    // A device that broke is not given out, and a plugin that refuses leaves nothing behind.
    let all = [("a", HEALTHY), ("b", "Unhealthy"), ("broken", HEALTHY), ("d", "Unhealthy")];
    list.send_replace(devices(&all));
    until(&manager, 4, 2).await;
    manager.retain(|pod| pod == "three").expect("written");
    let error = manager.allocate(&holder("four"), &want(1), &[]).await.expect_err("a refusal");
    assert!(error.to_string().contains("broken cannot be used"), "{error}");
    assert!(manager.held(&holder("four")).is_empty());
    plugin_stop.cancel();
    until(&manager, 4, 0).await;
}

/// Says that it is asked, and refuses when it is told to.
struct Slow(std::sync::mpsc::Sender<()>, Mutex<std::sync::mpsc::Receiver<()>>);

impl Describe for Slow {
    fn describe(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        if ids.iter().any(|id| id == "b") {
            let _ = self.0.send(());
            let _ = self.1.lock().recv_timeout(Duration::from_secs(20));
            return Err("b cannot be used".into());
        }
        Echo.describe(ids)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_refusal_brings_nothing_back_that_was_freed_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_list, receiver) = watch::channel(devices(&[("a", HEALTHY), ("b", HEALTHY)]));
    let ((asks, asked), (go, goes)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let stop = CancellationToken::new();
    tokio::spawn(plugin::run(options(dir.path()), receiver, Slow(asks, Mutex::new(goes)), stop.clone()));
    let manager = Manager::new(dir.path().to_owned(), dir.path().join("devices.json"), stop.clone());
    let running = manager.clone();
    tokio::spawn(async move { running.run().await });
    until(&manager, 2, 2).await;
    manager.allocate(&holder("one"), &want(1), &[]).await.expect("a device");
    let second = manager.clone();
    let second = tokio::spawn(async move { second.allocate(&holder("two"), &want(1), &[]).await });
    tokio::task::spawn_blocking(move || asked.recv_timeout(Duration::from_secs(20)))
        .await
        .expect("a task")
        .expect("the plugin is asked");
    // The first pod goes while the plugin thinks about the second one.
    manager.retain(|pod| pod != "one").expect("written");
    go.send(()).expect("the plugin waits");
    let refused = second.await.expect("a task").expect_err("a refusal");
    assert!(refused.to_string().contains("b cannot be used"), "{refused}");
    assert!(manager.held(&holder("one")).is_empty() && manager.held(&holder("two")).is_empty());
    let text = std::fs::read_to_string(dir.path().join("devices.json")).expect("a checkpoint");
    assert!(!text.contains("\"one\"") && !text.contains("\"two\""), "{text}");
    stop.cancel();
}

#[test]
fn names_of_resources() {
    assert!(is_resource("nvidia.com/gpu"));
    for name in ["gpu", "/gpu", "nvidia.com/", "kubernetes.io/gpu", "a.kubernetes.io/x", "a/b c"] {
        assert!(!is_resource(name), "{name}");
    }
}

/// Devices a to d on node 0, e to h on node 1, x nowhere.
fn spread() -> Ledger {
    let mut ledger = Ledger::default();
    let known = |nodes: &[u32]| Known { healthy: true, nodes: nodes.iter().copied().collect() };
    let mut all = BTreeMap::from([("x".to_owned(), known(&[]))]);
    all.extend(["a", "b", "c", "d"].map(|id| (id.to_owned(), known(&[0]))));
    all.extend(["e", "f", "g", "h"].map(|id| (id.to_owned(), known(&[1]))));
    ledger.set_devices("test.dev/thing", all);
    ledger
}

fn of(container: &str) -> Holder {
    Holder { pod: "p".into(), container: container.into() }
}

fn take(ledger: &mut Ledger, holder: &Holder, count: usize, near: &[u32], ended: &[&str]) -> Option<String> {
    let near = (!near.is_empty()).then(|| near.iter().copied().collect());
    let choice = ledger.choose(holder, ("test.dev/thing", count), near.as_ref(), ended).ok()?;
    let all = choice.fill(&[]);
    ledger.give(holder, &BTreeMap::from([("test.dev/thing".to_owned(), all.clone())]));
    Some(all.into_iter().collect())
}

#[test]
fn devices_are_near_the_nodes_that_were_chosen() {
    let mut ledger = spread();
    assert_eq!(take(&mut ledger, &of("one"), 2, &[1], &[]).as_deref(), Some("ef"));
    // What it has, it keeps; what more it needs comes from elsewhere where it must.
    assert_eq!(take(&mut ledger, &of("one"), 5, &[1], &[]).as_deref(), Some("aefgh"));
    assert_eq!(take(&mut ledger, &of("two"), 4, &[], &[]).as_deref(), Some("bcdx"));
    assert_eq!(take(&mut ledger, &of("three"), 1, &[], &[]), None);
    let seen = ledger.seen(&of("two"), "test.dev/thing", &[]);
    assert_eq!(seen.iter().filter(|one| one.free && one.nodes.contains(&0)).count(), 3);
}

#[test]
fn containers_use_the_devices_of_init_containers() {
    let mut ledger = spread();
    assert_eq!(take(&mut ledger, &of("init"), 3, &[1], &[]).as_deref(), Some("efg"));
    assert_eq!(take(&mut ledger, &of("sidecar"), 1, &[1], &["init"]).as_deref(), Some("e"));
    assert_eq!(take(&mut ledger, &of("main"), 3, &[1], &["init"]).as_deref(), Some("fgh"));
    assert_eq!(take(&mut ledger, &of("init"), 3, &[], &[]).as_deref(), Some("efg"));
    // Another pod's are its own.
    let other = Holder { pod: "q".into(), container: "main".into() };
    assert_eq!(take(&mut ledger, &other, 5, &[], &["init"]).as_deref(), Some("abcdx"));
    assert_eq!(take(&mut ledger, &other, 6, &[], &["init"]), None);
}

/// Would rather give the last ones.
struct Last;

impl Describe for Last {
    fn describe(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        Echo.describe(ids)
    }

    fn preference(&self) -> Option<&dyn plugin::Prefer> {
        Some(self)
    }
}

impl plugin::Prefer for Last {
    fn choose(&self, available: &[String], must: &[String], size: usize) -> Vec<String> {
        let mut all: Vec<String> = available.to_vec();
        all.sort_by_key(|id| (!must.contains(id), std::cmp::Reverse(id.clone())));
        all.truncate(size);
        all
    }
}

#[tokio::test]
async fn plugins_say_which_of_their_devices_they_prefer() {
    let dir = tempfile::tempdir().expect("a directory");
    let on = |id: &str, node| {
        let nodes = vec![NumaNode { id: node }];
        Device { id: id.into(), health: HEALTHY.into(), topology: Some(TopologyInfo { nodes }) }
    };
    let all = vec![on("a", 0), on("b", 0), on("c", 0), on("d", 1), on("e", 1)];
    let (_list, receiver) = watch::channel(all);
    let stop = CancellationToken::new();
    tokio::spawn(plugin::run(options(dir.path()), receiver, Last, stop.clone()));
    let manager = Manager::new(dir.path().to_owned(), dir.path().join("devices.json"), stop.clone());
    let running = manager.clone();
    tokio::spawn(async move { running.run().await });
    until(&manager, 5, 5).await;
    let near = BTreeSet::from([0]);
    manager.reserve(&holder("one"), &want(2), Some(&near), &[]).await.expect("devices");
    // Kept for it: others get others, and it gets those when it is made.
    let other = manager.allocate(&holder("two"), &want(1), &[]).await.expect("a device");
    let one = manager.allocate(&holder("one"), &want(2), &[]).await.expect("its devices");
    assert_eq!((one.envs["IDS"].as_str(), other.envs["IDS"].as_str()), ("b,c", "e"));
    stop.cancel();
}
