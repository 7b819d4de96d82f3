//! Events in, state out; what it would write goes nowhere.

use super::*;
use crate::world::Changed;
use serde_json::{Value, json};

fn scheduler() -> (Scheduler, mpsc::UnboundedReceiver<Ended>) {
    let client = nowhere();
    let (ended, endings) = mpsc::unbounded_channel();
    let scheduler = Scheduler {
        turn: 0,
        client,
        profiles: Configuration::default().profiles.into_iter().map(Arc::new).collect(),
        snapshot: Snapshot::default(),
        world: World::default(),
        queue: Queue::default(),
        placed: HashMap::new(),
        explained: HashMap::new(),
        groups: gangs::Groups::default(),
        slots: Arc::new(Semaphore::new(8)),
        ended,
    };
    (scheduler, endings)
}

/// A client whose every request fails: nothing listens on port 1.
fn nowhere() -> Client {
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    Client::try_from(config).unwrap()
}

fn node(name: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}},
    }))
    .unwrap()
}

fn pod(uid: &str, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": uid},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c"}]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

impl Scheduler {
    fn see(&mut self, event: watcher::Event<Pod>) {
        self.pod_event(event, &mut None);
    }
}

#[tokio::test]
async fn a_pod_deleted_while_it_is_bound_is_not_tried_again() {
    let (mut it, mut endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    it.see(watcher::Event::Apply(pod("1", json!({}))));
    it.decide();
    assert!(it.placed.contains_key("n/p"));
    it.see(watcher::Event::Delete(pod("1", json!({}))));
    let ending = endings.recv().await.unwrap();
    assert!(matches!(ending, Ended::Unbound(..)));
    it.ended(ending);
    assert_eq!(it.queue.keys().count(), 0);
    assert!(it.placed.is_empty() && it.explained.is_empty());
}

#[tokio::test]
async fn a_pod_of_the_same_name_takes_the_place_of_another() {
    let (mut it, mut endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    it.see(watcher::Event::Apply(pod("1", json!({}))));
    it.decide();
    // Its deletion was not seen; the node has room for one pod only.
    it.see(watcher::Event::Apply(pod("2", json!({}))));
    it.decide();
    assert_eq!(it.placed.get("n/p").map(|placed| placed.pod.uid.as_str()), Some("2"));
    let first = endings.recv().await.unwrap();
    it.ended(first);
    let second = endings.recv().await.unwrap();
    it.ended(second);
    assert_eq!(it.queue.keys().count(), 1, "the second is tried again, the first is not");
}

#[tokio::test]
async fn a_waiting_pod_that_changed_is_tried_at_once() {
    let (mut it, _endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    it.see(watcher::Event::Apply(pod("1", json!({"nodeSelector": {"disk": "ssd"}}))));
    it.decide();
    assert!(it.placed.is_empty() && it.explained.contains_key("n/p"));
    it.see(watcher::Event::Apply(pod("1", json!({}))));
    it.decide();
    assert!(it.placed.contains_key("n/p"));
}

#[tokio::test]
async fn gates_hold_a_pod_until_they_are_gone() {
    let (mut it, _endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    it.see(watcher::Event::Apply(pod("1", json!({"schedulingGates": [{"name": "g"}]}))));
    it.decide();
    assert!(it.placed.is_empty());
    it.see(watcher::Event::Apply(pod("1", json!({}))));
    it.decide();
    assert!(it.placed.contains_key("n/p"));
}

#[tokio::test]
async fn what_is_missing_from_a_new_list_is_forgotten() {
    let (mut it, _endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    it.see(watcher::Event::Apply(pod("1", json!({"nodeSelector": {"disk": "ssd"}}))));
    it.decide();
    let (mut pods, mut nodes) = (None, None);
    for event in [watcher::Event::Init, watcher::Event::InitDone] {
        it.pod_event(event, &mut pods);
    }
    for event in [watcher::Event::Init, watcher::Event::InitDone] {
        it.node_event(event, &mut nodes);
    }
    assert_eq!(it.queue.keys().count(), 0);
    assert!(it.explained.is_empty() && it.snapshot.node_names().is_empty());
}

#[tokio::test]
async fn room_is_reserved_while_a_binding_is_written_and_given_back_if_it_fails() {
    let (mut it, mut endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    let mut second = pod("2", json!({}));
    second.metadata.name = Some("q".into());
    it.see(watcher::Event::Apply(pod("1", json!({}))));
    it.see(watcher::Event::Apply(second));
    it.decide();
    assert!(it.placed.contains_key("n/p") && !it.placed.contains_key("n/q"), "the node has room for one pod");
    let ended = endings.recv().await.unwrap();
    assert!(matches!(ended, Ended::Unbound(..)));
    it.ended(ended);
    assert!(it.placed.is_empty());
    // Both have failed once, and wait a little.
    it.queue.tick(Instant::now() + Duration::from_secs(20));
    it.decide();
    assert_eq!(it.placed.len(), 1, "the room is given again");
}

#[tokio::test]
async fn many_pods_are_bound_at_a_time_and_no_more_than_may_be_under_way() {
    let (mut it, mut endings) = scheduler();
    for n in 0..20 {
        it.node_event(watcher::Event::Apply(node(&format!("node-{n}"))), &mut None);
        let mut one = pod(&n.to_string(), json!({}));
        one.metadata.name = Some(format!("p{n}"));
        it.see(watcher::Event::Apply(one));
    }
    it.decide();
    assert_eq!((it.placed.len(), it.slots.available_permits()), (8, 0));
    for _ in 0..8 {
        it.ended(endings.recv().await.unwrap());
    }
    assert_eq!(it.slots.available_permits(), 8);
    it.decide();
    assert_eq!(it.placed.len(), 8, "the others are bound now");
}

/// Makes a group known that needs so many pods at the same time.
fn group(it: &Scheduler, least: usize) {
    let group = json!({
        "metadata": {"name": "g", "namespace": "n", "uid": "g"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": least}}},
    });
    it.world.pod_groups.apply(serde_json::from_value(group).unwrap());
}

fn member(name: &str) -> watcher::Event<Pod> {
    let mut one = pod(name, json!({"schedulingGroup": {"podGroupName": "g"}}));
    one.metadata.name = Some(name.into());
    watcher::Event::Apply(one)
}

#[tokio::test]
async fn a_gang_has_nodes_for_enough_of_its_pods_at_the_same_time_or_none() {
    let (mut it, _endings) = scheduler();
    it.queue = Queue::new(Duration::ZERO, Duration::ZERO);
    group(&it, 3);
    for name in ["a", "b"] {
        it.node_event(watcher::Event::Apply(node(name)), &mut None);
    }
    for name in ["p1", "p2", "p3"] {
        it.see(member(name));
    }
    it.queue.tick(Instant::now());
    it.decide();
    assert!(it.placed.is_empty() && it.snapshot.nodes().all(|room| room.pods.is_empty()), "two would fit");
    let words = "PodGroup \"n/g\" needs nodes for 3 pods at the same time, there are 2: 0/2 nodes are available: 2 Too many pods.";
    assert!(it.explained.values().all(|(_, why)| why == words), "{:?}", it.explained);
    assert_eq!(it.explained.len(), 3);
    // Others may have what the gang cannot use.
    it.see(watcher::Event::Apply(pod("alone", json!({}))));
    it.decide();
    assert!(it.placed.contains_key("n/p"));
    for name in ["c", "d"] {
        it.node_event(watcher::Event::Apply(node(name)), &mut None);
    }
    it.queue.tick(Instant::now() + Duration::from_secs(20));
    it.decide();
    assert_eq!(it.placed.len(), 4, "{:?}", it.explained);
    assert_eq!(it.queue.keys().count(), 0);
    // One more of them needs no others.
    it.node_event(watcher::Event::Apply(node("e")), &mut None);
    it.see(member("p4"));
    it.decide();
    assert!(it.placed.contains_key("n/p4"));
}

#[tokio::test]
async fn a_gang_is_not_tried_before_its_group_and_enough_of_its_pods_are_there() {
    let (mut it, _endings) = scheduler();
    for name in ["a", "b"] {
        it.node_event(watcher::Event::Apply(node(name)), &mut None);
    }
    it.see(member("p1"));
    it.decide();
    let why = |it: &Scheduler| it.explained.get("n/p1").map(|(_, why)| why.clone()).unwrap_or_default();
    assert_eq!(why(&it), "waiting for PodGroup \"n/g\" to appear");
    group(&it, 2);
    it.changed(&Changed::Group("n/g".into()));
    it.queue.tick(Instant::now());
    it.decide();
    assert_eq!(why(&it), "waiting for minCount (2) pods of PodGroup \"n/g\" to appear");
    it.see(member("p2"));
    it.queue.tick(Instant::now());
    it.decide();
    assert_eq!(it.placed.len(), 2, "{:?}", it.explained);
    it.see(watcher::Event::Delete(pod("other", json!({}))));
    for name in ["p1", "p2"] {
        it.forget(&format!("n/{name}"));
    }
    assert!(it.groups.pods("n/g").next().is_none(), "what is gone is in no group");
}

#[tokio::test]
async fn pods_of_a_group_with_the_basic_policy_and_without_the_plugin_go_alone() {
    let (mut it, _endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    let basic =
        json!({"metadata": {"name": "g", "namespace": "n"}, "spec": {"schedulingPolicy": {"basic": {}}}});
    it.world.pod_groups.apply(serde_json::from_value(basic).unwrap());
    it.see(member("p1"));
    it.decide();
    assert!(it.placed.contains_key("n/p1"));
    let (mut it, _endings) = scheduler();
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    let profile = Arc::get_mut(it.profiles.first_mut().unwrap()).unwrap();
    profile.disable_permit("GangScheduling");
    group(&it, 5);
    it.see(member("p1"));
    it.decide();
    assert!(it.placed.contains_key("n/p1"), "the plugin is off");
}

#[tokio::test]
async fn a_gang_of_which_no_pod_fits_stops_no_others() {
    let (mut it, _endings) = scheduler();
    group(&it, 2);
    it.node_event(watcher::Event::Apply(node("a")), &mut None);
    it.see(watcher::Event::Apply(pod("lowly", json!({"nodeName": "a", "priority": 0}))));
    for name in ["p1", "p2"] {
        let watcher::Event::Apply(mut one) = member(name) else { unreachable!() };
        one.spec.priority = Some(100);
        it.see(watcher::Event::Apply(one));
    }
    it.decide();
    assert_eq!(it.queue.keys().count(), 2);
    let words = "PodGroup \"n/g\" needs nodes for 2 pods at the same time, there are 0: 0/1 nodes are available: 1 Too many pods.";
    assert!(it.explained.values().all(|(_, why)| why == words), "{:?}", it.explained);
    let alone = |it: &Scheduler| {
        it.snapshot
            .room("a")
            .is_some_and(|room| it.snapshot.seen_by(&PodView::default(), room).pods.len() == 1)
    };
    assert!(alone(&it), "nothing is nominated");
}

#[tokio::test]
async fn a_gang_that_failed_is_not_tried_again_at_once() {
    let (mut it, _endings) = scheduler();
    group(&it, 2);
    for event in [member("p1"), member("p2")] {
        it.see(event);
    }
    it.queue.tick(Instant::now());
    it.decide();
    for name in ["a", "b", "c"] {
        it.node_event(watcher::Event::Apply(node(name)), &mut None);
    }
    it.see(member("p3"));
    it.queue.tick(Instant::now());
    it.decide();
    assert!(it.placed.is_empty(), "one more of it does not make it try");
    assert_eq!(it.queue.keys().count(), 3);
}

#[tokio::test]
async fn the_volumes_of_a_gang_are_bound_before_any_of_its_pods() {
    let (mut it, _endings) = scheduler();
    it.queue = Queue::new(Duration::ZERO, Duration::ZERO);
    group(&it, 2);
    let class = json!({"metadata": {"name": "local"}, "provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer"});
    it.world.classes.apply(serde_json::from_value(class).unwrap());
    let claim = |spec: Value, annotations: Value| {
        let meta = json!({"name": "data", "namespace": "n", "annotations": annotations});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    };
    it.world.claims.apply(claim(json!({"storageClassName": "local"}), json!({})));
    for name in ["a", "b"] {
        it.node_event(watcher::Event::Apply(node(name)), &mut None);
    }
    let watcher::Event::Apply(mut one) = member("p1") else { unreachable!() };
    let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]);
    one.spec.volumes = serde_json::from_value(volumes).unwrap();
    it.see(watcher::Event::Apply(one));
    it.see(member("p2"));
    it.queue.tick(Instant::now());
    it.decide();
    assert!(it.placed.is_empty() && it.snapshot.nodes().all(|room| room.pods.is_empty()));
    assert_eq!(it.queue.keys().count(), 2);
    let volume = json!({"metadata": {"name": "v"}, "spec": {}});
    it.world.volumes.apply(serde_json::from_value(volume).unwrap());
    let bound = json!({"pv.kubernetes.io/bind-completed": "yes"});
    it.world.claims.apply(claim(json!({"volumeName": "v"}), bound));
    it.changed(&Changed::Claim("n/data".into()));
    it.queue.tick(Instant::now());
    it.decide();
    assert_eq!(it.placed.len(), 2, "{:?}", it.explained);
}

#[tokio::test]
async fn pods_of_a_group_that_a_new_list_lacks_are_not_counted() {
    let (mut it, _endings) = scheduler();
    let watcher::Event::Apply(mut one) = member("p1") else { unreachable!() };
    one.spec.scheduling_gates = serde_json::from_value(json!([{"name": "g"}])).unwrap();
    it.see(watcher::Event::Apply(one));
    assert_eq!(it.groups.pods("n/g").count(), 1);
    let mut pods = None;
    for event in [watcher::Event::Init, watcher::Event::InitDone] {
        it.pod_event(event, &mut pods);
    }
    assert_eq!(it.groups.pods("n/g").count(), 0);
}
