use std::time::Instant;

use tokio::sync::watch;

use super::*;
use crate::plugin::{self, Describe};
use crate::v1beta1::Device;

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

    let first = manager.allocate(&holder("one"), &want(1)).await.expect("a device");
    assert_eq!(first.envs["IDS"], "a");
    let again = manager.allocate(&holder("one"), &want(1)).await.expect("the same device");
    assert_eq!(again.envs["IDS"], "a");
    let second = manager.allocate(&holder("two"), &want(1)).await.expect("the other");
    assert_eq!(second.envs["IDS"], "b");
    let refused = manager.allocate(&holder("three"), &want(1)).await.expect_err("none is free");
    assert!(refused.to_string().contains("Requested: 1, Available: 0"), "{refused}");

    // The agent comes back: the plugin registers again, and nothing is given twice.
    stop.cancel();
    served.await.expect("a task").expect("served");
    let manager = Manager::new(dir.path().to_owned(), checkpoint, CancellationToken::new());
    let running = manager.clone();
    tokio::spawn(async move { running.run().await });
    until(&manager, 3, 2).await;
    assert_eq!(manager.held(&holder("two"))["test.dev/thing"], BTreeSet::from(["b".to_owned()]));
    assert!(manager.allocate(&holder("three"), &want(1)).await.is_err());
    manager.retain(|pod| pod != "one").expect("written");
    let third = manager.allocate(&holder("three"), &want(1)).await.expect("what was freed");
    assert_eq!(third.envs["IDS"], "a");

    // A device that broke is not given out, and a plugin that refuses leaves nothing behind.
    let all = [("a", HEALTHY), ("b", "Unhealthy"), ("broken", HEALTHY), ("d", "Unhealthy")];
    list.send_replace(devices(&all));
    until(&manager, 4, 2).await;
    manager.retain(|pod| pod == "three").expect("written");
    let error = manager.allocate(&holder("four"), &want(1)).await.expect_err("a refusal");
    assert!(error.to_string().contains("broken cannot be used"), "{error}");
    assert!(manager.held(&holder("four")).is_empty());
    plugin_stop.cancel();
    until(&manager, 4, 0).await;
}

#[test]
fn names_of_resources() {
    assert!(is_resource("nvidia.com/gpu"));
    for name in ["gpu", "/gpu", "nvidia.com/", "kubernetes.io/gpu", "a.kubernetes.io/x", "a/b c"] {
        assert!(!is_resource(name), "{name}");
    }
}
