//! Volumes decide where a pod may be.

use super::*;

#[test]
fn claims_decide_where_a_pod_may_be() {
    let all = zones();
    let world = World::default();
    let pod = named(
        "p",
        json!({}),
        json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}),
    );
    let try_it = |world: &World| match crate::cycle::choose(&pod, &Profile::default(), &all, world, 0) {
        Choice::Node(node) => Ok(node),
        Choice::None { why, .. } => Err(why),
    };
    assert_eq!(
        try_it(&world).unwrap_err(),
        "0/3 nodes are available: persistentvolumeclaim \"data\" not found."
    );
    let claim = |spec: Value, annotations: Value| {
        let claim =
            json!({"metadata": {"name": "data", "namespace": "n", "annotations": annotations}, "spec": spec});
        serde_json::from_value(claim).unwrap()
    };
    world.claims.apply(claim(json!({"storageClassName": "local"}), json!({})));
    assert!(try_it(&world).unwrap_err().contains("pod has unbound immediate PersistentVolumeClaims"));
    let class = json!({"metadata": {"name": "local"}, "provisioner": "coracle.dev/local", "volumeBindingMode": "WaitForFirstConsumer"});
    world.classes.apply(serde_json::from_value(class).unwrap());
    assert!(try_it(&world).is_ok());
    let selected = json!({"volume.kubernetes.io/selected-node": "b"});
    world.claims.apply(claim(json!({"storageClassName": "local"}), selected));
    assert_eq!(try_it(&world).unwrap(), "b");
    let terms =
        json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["c"]}]}]);
    let volume = json!({"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    world.volumes.apply(serde_json::from_value(volume).unwrap());
    world.claims.apply(claim(json!({"volumeName": "v"}), json!({"pv.kubernetes.io/bind-completed": "yes"})));
    assert_eq!(try_it(&world).unwrap(), "c");
}

#[test]
fn volumes_of_a_driver_and_single_pods_are_limited() {
    let (mut all, world) = (zones(), World::default());
    let claim = |name: &str, modes: Value| {
        let spec = json!({"volumeName": name, "accessModes": modes});
        let meta = json!({"name": name, "namespace": "n", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}});
        world.claims.apply(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap());
        let csi = json!({"driver": "disks", "volumeHandle": name});
        world.volumes.apply(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"csi": csi}})).unwrap(),
        );
    };
    claim("one", json!(["ReadWriteOnce"]));
    claim("two", json!(["ReadWriteOnce"]));
    claim("mine", json!(["ReadWriteOncePod"]));
    for node in ["a", "b", "c"] {
        let drivers = json!([{"name": "disks", "allocatable": {"count": 1}}]);
        world.csi_nodes.apply(
            serde_json::from_value(json!({"metadata": {"name": node}, "spec": {"drivers": drivers}}))
                .unwrap(),
        );
    }
    let using = |name: &str, claim: &str| {
        named(
            name,
            json!({}),
            json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": claim}}]}),
        )
    };
    let profile = Profile::default();
    for node in ["a", "b"] {
        all.take(node, &using(&format!("on-{node}"), "one").into());
    }
    assert_eq!(with(&profile, &using("p", "two"), &all, &world), "c");
    assert!(
        ["a", "b", "c"].contains(&with(&profile, &using("p", "one"), &all, &world).as_str()),
        "the same volume again"
    );
    all.take("c", &using("on-c", "mine").into());
    assert_eq!(
        with(&profile, &using("p", "two"), &all, &world),
        "0/3 nodes are available: 3 node(s) exceed max volume count."
    );
    assert_eq!(
        with(&profile, &using("p", "mine"), &all, &world),
        "0/3 nodes are available: 3 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
    );
}
