//! Plans of Deployments: single steps, and whole rollouts played against ReplicaSets that do as they are told.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::limits::fenceposts;
use super::plan::{Action, State, plan};
use super::{DESIRED, MAX, REVISION, hash};
use crate::view::{Deployment, DeploymentStatus, Meta, ReplicaSet, condition};

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

fn deployment(change: Value) -> Deployment {
    let mut d = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "d", "generation": 1 },
        "spec": {
            "replicas": 3, "selector": { "matchLabels": { "app": "web" } }, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": "v1" }] } },
        },
    });
    json_patch::merge(&mut d, &change);
    serde_json::from_value(d).unwrap()
}

fn image(d: &mut Deployment, image: &str) {
    let mut template = d.spec.template.as_ref().clone();
    template["spec"]["containers"][0]["image"] = image.into();
    d.spec.template = Arc::new(template);
}

/// An API server for one Deployment, whose pods are ready as soon as `settle` says so.
struct World {
    d: Deployment,
    sets: Vec<ReplicaSet>,
    born: i64,
    lowest_available: i64,
    most_pods: i64,
}

impl World {
    fn new(d: Deployment) -> Self {
        Self { d, sets: Vec::new(), born: 0, lowest_available: i64::MAX, most_pods: 0 }
    }

    fn plan(&self) -> Vec<Action> {
        let sets: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        plan(&State { deployment: &self.d, sets: &sets, pods: &[], now: now() }).0
    }

    fn apply(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Create { body, .. } => {
                    let mut rs: ReplicaSet = serde_json::from_value(body.as_ref().clone()).unwrap();
                    self.born += 1;
                    rs.metadata.uid = Some(format!("rs{}", self.born));
                    rs.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                            Timestamp::from_second(self.born).unwrap(),
                        ));
                    self.sets.push(rs);
                }
                Action::Scale { name, to, annotations, .. } => {
                    let rs = self.sets.iter_mut().find(|rs| rs.name() == name).unwrap();
                    rs.spec.replicas = Some(*to);
                    rs.metadata.annotations.get_or_insert_default().extend(annotations.clone());
                }
                Action::Amend { name, body } => {
                    let rs = self.sets.iter_mut().find(|rs| rs.name() == name).unwrap();
                    for (k, v) in
                        body.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten()
                    {
                        rs.metadata
                            .annotations
                            .get_or_insert_default()
                            .insert(k.clone(), v.as_str().unwrap().into());
                    }
                }
                Action::Delete { name, .. } => self.sets.retain(|rs| rs.name() != name),
                Action::Revision(n) => {
                    self.d
                        .metadata
                        .annotations
                        .get_or_insert_default()
                        .insert(REVISION.into(), n.to_string());
                }
                Action::Status(status) => self.d.status = status.as_ref().clone(),
            }
        }
    }

    // One pod becomes ready, or one superfluous pod goes: the slowest world there is.
    fn settle_one(&mut self) -> bool {
        for rs in &mut self.sets {
            let (wanted, s) = (rs.spec.replicas.unwrap(), &mut rs.status);
            if s.replicas > wanted {
                s.replicas -= 1;
                s.available_replicas = s.available_replicas.min(s.replicas);
                s.ready_replicas = s.available_replicas;
                return true;
            }
            if s.replicas < wanted {
                s.replicas = wanted;
                return true;
            }
            if s.available_replicas < wanted {
                s.available_replicas += 1;
                s.ready_replicas += 1;
                return true;
            }
        }
        false
    }

    fn roll_out(&mut self) {
        for _ in 0..500 {
            let actions = self.plan();
            self.apply(&actions);
            let wanted: i64 = self.sets.iter().map(|rs| rs.spec.replicas.unwrap()).sum();
            self.most_pods = self.most_pods.max(wanted);
            let settled = !self.settle_one();
            let available = self.sets.iter().map(|rs| rs.status.available_replicas).sum();
            self.lowest_available = self.lowest_available.min(available);
            if settled && actions.is_empty() {
                return;
            }
        }
        panic!("the rollout does not end: {:?}", self.sets);
    }

    fn sizes(&self) -> Vec<i64> {
        self.sets.iter().map(|rs| rs.spec.replicas.unwrap()).collect()
    }

    fn reason(&self, type_: &str) -> &str {
        condition(&self.d.status.conditions, type_).map_or("", |c| c.reason.as_str())
    }
}

#[test]
fn percentages() {
    let text = |s: &str| IntOrString::String(s.into());
    // surge, unavailable, replicas; surge and unavailable as pods.
    let table = [
        (text("25%"), text("25%"), 1, (1, 0)),
        (text("25%"), text("25%"), 3, (1, 0)),
        (text("25%"), text("25%"), 4, (1, 1)),
        (text("25%"), text("25%"), 10, (3, 2)),
        (text("0%"), text("5%"), 10, (0, 1)),
        (IntOrString::Int(0), IntOrString::Int(0), 10, (0, 1)),
        (IntOrString::Int(2), text("100%"), 10, (2, 10)),
        (text("200%"), IntOrString::Int(0), 10, (20, 0)),
        (text("25%"), text("25%"), 0, (0, 1)),
    ];
    for (surge, unavailable, replicas, wanted) in table {
        assert_eq!(
            fenceposts(Some(&surge), Some(&unavailable), replicas),
            wanted,
            "{surge:?} {unavailable:?} {replicas}"
        );
    }
}

#[test]
fn the_first_rollout() {
    let mut world = World::new(deployment(json!({ "metadata": { "annotations": { "team": "a" } } })));
    let actions = world.plan();
    let Action::Create { name, replicas, body } = &actions[0] else { panic!("{actions:?}") };
    let hash = name.strip_prefix("web-").unwrap();
    assert_eq!(*replicas, 3);
    assert_eq!(body["spec"]["selector"]["matchLabels"], json!({ "app": "web", "pod-template-hash": hash }));
    assert_eq!(body["spec"]["template"]["metadata"]["labels"]["pod-template-hash"], hash);
    assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "d");
    assert_eq!(
        body["metadata"]["annotations"],
        json!({ REVISION: "1", DESIRED: "3", MAX: "4", "team": "a" })
    );
    assert_eq!(actions[1], Action::Revision(1));
    assert!(matches!(&actions[2], Action::Status(s) if s.observed_generation == 1));
    world.apply(&actions);
    assert_eq!(
        (world.reason("Progressing"), world.reason("Available")),
        ("NewReplicaSetCreated", "MinimumReplicasUnavailable")
    );
    world.roll_out();
    assert_eq!(
        (world.reason("Progressing"), world.reason("Available")),
        ("NewReplicaSetAvailable", "MinimumReplicasAvailable")
    );
    let s = &world.d.status;
    assert_eq!(
        (s.replicas, s.updated_replicas, s.ready_replicas, s.available_replicas, s.unavailable_replicas),
        (3, 3, 3, 3, 0)
    );
    assert_eq!(world.plan(), [], "nothing left to do");
}

#[test]
fn rolling_updates_keep_their_bounds() {
    // replicas, surge, unavailable; the fewest available and the most pods at any time.
    let table = [
        (3, json!("25%"), json!("25%"), 3, 4),
        (10, json!("25%"), json!("25%"), 8, 13),
        (4, json!(0), json!(1), 3, 4),
        (4, json!(1), json!(0), 4, 5),
        (5, json!("100%"), json!(0), 5, 10),
        (5, json!(0), json!("100%"), 0, 5),
        (1, json!("25%"), json!("25%"), 1, 2),
        (1, json!(0), json!(1), 0, 1),
    ];
    for (replicas, surge, unavailable, fewest, most) in table {
        let strategy = json!({ "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } });
        let mut world =
            World::new(deployment(json!({ "spec": { "replicas": replicas, "strategy": strategy } })));
        world.roll_out();
        (world.lowest_available, world.most_pods) = (i64::MAX, 0);
        image(&mut world.d, "v2");
        world.roll_out();
        assert_eq!(world.sizes(), [0, replicas], "{replicas} {strategy}");
        assert!(
            world.lowest_available >= fewest,
            "{replicas} {strategy}: {} available",
            world.lowest_available
        );
        assert!(world.most_pods <= most, "{replicas} {strategy}: {} pods", world.most_pods);
        assert_eq!(world.d.annotation(REVISION), Some("2"));
    }
}

#[test]
fn broken_new_pods_stop_a_rollout() {
    let mut world = World::new(deployment(json!({ "spec": { "replicas": 10 } })));
    world.roll_out();
    image(&mut world.d, "broken");
    for _ in 0..20 {
        let actions = world.plan();
        world.apply(&actions);
        let (old, new) = world.sets.split_at_mut(1);
        let wanted = old[0].spec.replicas.unwrap();
        (old[0].status.replicas, old[0].status.available_replicas) = (wanted, wanted);
        if let Some(new) = new.first_mut() {
            new.status.replicas = new.spec.replicas.unwrap();
        }
    }
    assert_eq!(world.sizes(), [8, 5], "two may be missing, three may be too many");
    // Past the deadline it is said so.
    let sets: Vec<Arc<ReplicaSet>> = world.sets.iter().cloned().map(Arc::new).collect();
    let late = Timestamp::from_second(now().as_second() + 601).unwrap();
    let (actions, _) = plan(&State { deployment: &world.d, sets: &sets, pods: &[], now: late });
    let Some(Action::Status(status)) = actions.last() else { panic!("{actions:?}") };
    let progressing = condition(&status.conditions, "Progressing").unwrap();
    assert_eq!(
        (progressing.status.as_str(), progressing.reason.as_str()),
        ("False", "ProgressDeadlineExceeded")
    );
    // Back to the old template: the broken pods go at once and it is revision 3.
    image(&mut world.d, "v1");
    world.roll_out();
    assert_eq!(world.sizes(), [10, 0]);
    assert_eq!(world.d.annotation(REVISION), Some("3"));
    assert_eq!(world.sets[0].annotation(super::REVISION_HISTORY), Some("1"));
}

#[test]
fn scaling() {
    let mut world = World::new(deployment(json!({})));
    world.roll_out();
    world.d.spec.replicas = Some(7);
    let actions = world.plan();
    assert!(matches!(&actions[0], Action::Scale { from: 3, to: 7, .. }), "{actions:?}");
    world.roll_out();
    world.d.spec.replicas = Some(0);
    world.roll_out();
    assert_eq!(world.sizes(), [0]);
    world.d.spec.replicas = Some(2);
    world.roll_out();
    assert_eq!(world.sizes(), [2]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let strategy = json!({ "rollingUpdate": { "maxSurge": 3, "maxUnavailable": 2 } });
    let mut world = World::new(deployment(json!({ "spec": { "replicas": 10, "strategy": strategy } })));
    world.roll_out();
    image(&mut world.d, "v2");
    for _ in 0..2 {
        let actions = world.plan();
        world.apply(&actions);
    }
    assert_eq!(world.sizes(), [8, 5]);
    // The example of Kubernetes' documentation: 5 more pods are shared 3 to 2.
    world.d.spec.replicas = Some(15);
    let actions = world.plan();
    world.apply(&actions);
    assert_eq!(world.sizes(), [11, 7]);
}

#[test]
fn recreate_and_pause_and_history() {
    let mut world = World::new(deployment(
        json!({ "spec": { "strategy": { "type": "Recreate", "rollingUpdate": null }, "revisionHistoryLimit": 1 } }),
    ));
    world.roll_out();
    image(&mut world.d, "v2");
    let actions = world.plan();
    assert!(matches!(&actions[0], Action::Scale { from: 3, to: 0, .. }), "{actions:?}");
    assert!(!actions.iter().any(|a| matches!(a, Action::Create { .. })));
    world.roll_out();
    assert_eq!(world.sizes(), [0, 3]);
    world.d.spec.paused = true;
    image(&mut world.d, "v3");
    world.roll_out();
    assert_eq!(world.sizes(), [3], "paused; its own ReplicaSet is history now, and one of history is kept");
    assert_eq!(world.reason("Progressing"), "DeploymentPaused");
    world.d.spec.paused = false;
    world.roll_out();
    assert_eq!(world.sizes(), [0, 3]);
    assert_eq!(world.d.annotation(REVISION), Some("3"));
}

#[test]
fn hashes() {
    let d = deployment(json!({}));
    let word = hash::of(&d.spec.template, 0);
    assert!(
        (6..=10).contains(&word.len()) && !word.contains(['a', 'e', 'i', 'o', 'u', '0', '1', '3']),
        "{word}"
    );
    assert_ne!(word, hash::of(&d.spec.template, 1));
    let mut labelled = d.spec.template.as_ref().clone();
    labelled["metadata"]["labels"]["pod-template-hash"] = "x".into();
    labelled["metadata"]["creationTimestamp"] = Value::Null;
    assert!(hash::same(&d.spec.template, &labelled));
    labelled["metadata"]["labels"]["x"] = "y".into();
    assert!(!hash::same(&d.spec.template, &labelled));
    assert_eq!(DeploymentStatus::default().collision_count, None);
}

#[test]
fn a_collision_makes_another_name() {
    let mut d = deployment(json!({}));
    let name = |d: &Deployment| {
        let actions = World::new(d.clone()).plan();
        let made = actions.iter().find_map(|a| match a {
            Action::Create { name, body, .. } => Some((name.clone(), body["spec"]["selector"].to_string())),
            _ => None,
        });
        made.unwrap()
    };
    let (first, selector) = name(&d);
    d.status.collision_count = Some(1);
    let (second, other) = name(&d);
    assert_ne!(first, second);
    assert_ne!(selector, other, "the pods of both stay apart");
}

#[test]
fn a_paused_deployment_runs_into_no_deadline() {
    let mut world = World::new(deployment(json!({ "spec": { "progressDeadlineSeconds": 10 } })));
    let actions = world.plan();
    world.apply(&actions);
    world.d.spec.paused = true;
    let actions = world.plan();
    world.apply(&actions);
    assert_eq!(world.reason("Progressing"), "DeploymentPaused");
    let late = Timestamp::from_second(now().as_second() + 3600).unwrap();
    let sets: Vec<Arc<ReplicaSet>> = world.sets.iter().cloned().map(Arc::new).collect();
    let at = |d: &Deployment| plan(&State { deployment: d, sets: &sets, pods: &[], now: late }).0;
    let exceeded = |actions: &[Action]| {
        actions.iter().any(|a| matches!(a, Action::Status(s) if condition(&s.conditions, "Progressing").is_some_and(|c| c.reason == "ProgressDeadlineExceeded")))
    };
    assert!(!exceeded(&at(&world.d)));
    world.d.spec.paused = false;
    assert!(!exceeded(&at(&world.d)), "resuming starts the clock anew");
}
