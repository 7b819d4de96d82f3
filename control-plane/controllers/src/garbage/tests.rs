//! Plans of the garbage collector.

use std::sync::Arc;

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::graph::{Graph, Object};
use super::plan::{Action, let_go, plan};
use crate::discovery::Served;

fn object(uid: &str, meta: Value) -> Object {
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("apps", "v1", "ReplicaSet"), "replicasets");
    let served = Arc::new(Served { resource, namespaced: true, deletes_collections: true });
    let mut all = json!({ "name": uid, "uid": uid, "namespace": "default", "resourceVersion": "7" });
    json_patch::merge(&mut all, &meta);
    Object::new(served, serde_json::from_value(all).unwrap())
}

fn owned(uid: &str, owners: &[&str]) -> Object {
    let owners: Vec<Value> = owners
        .iter()
        .map(|o| json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": o, "uid": o, "blockOwnerDeletion": true }))
        .collect();
    object(uid, json!({ "ownerReferences": owners }))
}

fn deleting(uid: &str, finalizer: &str) -> Object {
    object(uid, json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer, "mine"] }))
}

fn run(objects: Vec<Object>, uid: &str) -> Vec<Action> {
    let mut graph = Graph::default();
    for object in objects {
        graph.set(object);
    }
    let object = graph.get(uid).unwrap();
    match object.orphans_dependents() {
        true => let_go(graph.dependents(uid), object),
        false => plan(&graph, object, |_| true),
    }
}

fn delete(uid: &str, propagation: &'static str) -> Action {
    let path = format!("/apis/apps/v1/namespaces/default/replicasets/{uid}");
    Action::Delete { path, uid: uid.into(), resource_version: "7".into(), propagation }
}

fn patched(action: &Action) -> &Value {
    match action {
        Action::Patch { body, .. } => &body["metadata"],
        other => panic!("{other:?}"),
    }
}

#[test]
fn background() {
    assert_eq!(run(vec![owned("pod", &["rs"])], "pod"), [delete("pod", "Background")]);
    assert_eq!(run(vec![object("rs", json!({})), owned("pod", &["rs"])], "pod"), []);
    assert_eq!(run(vec![object("pod", json!({}))], "pod"), [], "nobody's object is nobody's business");
    let shared = run(vec![object("rs", json!({})), owned("pod", &["rs", "gone"])], "pod");
    assert_eq!(patched(&shared[0])["ownerReferences"][0]["uid"], "rs");
    assert_eq!(patched(&shared[0])["ownerReferences"].as_array().unwrap().len(), 1);
    let mut graph = Graph::default();
    graph.set(owned("pod", &["rs"]));
    assert_eq!(plan(&graph, graph.get("pod").unwrap(), |_| false), [], "not known to be gone");
}

#[test]
fn foreground() {
    let owner = || deleting("d", "foregroundDeletion");
    assert_eq!(run(vec![owner(), owned("rs", &["d"])], "d"), [], "waits for a dependent that blocks");
    assert_eq!(run(vec![owner(), owned("rs", &["d"])], "rs"), [delete("rs", "Background")]);
    assert_eq!(
        run(vec![owner(), owned("rs", &["d"]), owned("pod", &["rs"])], "rs"),
        [delete("rs", "Foreground")]
    );
    let done = run(vec![owner()], "d");
    assert_eq!(patched(&done[0])["finalizers"], json!(["mine"]));
}

#[test]
fn orphan() {
    let actions = run(vec![deleting("rs", "orphan"), owned("pod", &["rs"])], "rs");
    assert_eq!(actions.len(), 2);
    assert_eq!(patched(&actions[0])["ownerReferences"], json!([]));
    assert_eq!(patched(&actions[0])["uid"], "pod");
    assert_eq!(patched(&actions[1])["finalizers"], json!(["mine"]));
}

#[test]
fn cycles() {
    // Foreground: a waits for b, which waits for c, which a must not wait for in turn.
    let owned_by = |uid: &str, owner: &str, waits: bool| {
        let mut meta = json!({ "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "blockOwnerDeletion": true },
        ] });
        if waits {
            meta["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            meta["finalizers"] = json!(["foregroundDeletion"]);
        }
        object(uid, meta)
    };
    let three = || vec![owned_by("a", "c", true), owned_by("b", "a", true), owned_by("c", "b", false)];
    assert_eq!(run(three(), "a"), [], "b blocks it");
    let gives_way = run(three(), "c");
    assert_eq!(patched(&gives_way[0])["ownerReferences"][0]["blockOwnerDeletion"], false);
    let mut free = owned_by("c", "b", false);
    free.owners[0].block_owner_deletion = Some(false);
    let after = vec![owned_by("a", "c", true), owned_by("b", "a", true), free.clone()];
    assert_eq!(run(after, "c"), [delete("c", "Foreground")]);
    let after = vec![owned_by("a", "c", true), owned_by("b", "a", true), free];
    let done = run(after, "b");
    assert_eq!(patched(&done[0])["finalizers"], json!([]), "nobody blocks b any more");
    assert_eq!(
        run(vec![owned_by("b", "gone", false), owned_by("a", "b", false)], "b"),
        [delete("b", "Background")]
    );
    // Its own owner.
    let own = run(vec![owned_by("a", "a", true)], "a");
    assert_eq!(patched(&own[0])["finalizers"], json!([]));
}

#[test]
fn what_to_look_at() {
    let mut graph = Graph::default();
    assert!(graph.set(object("rs", json!({}))).is_empty());
    assert!(graph.set(owned("pod", &["rs"])).is_empty(), "its owner is there");
    assert_eq!(graph.set(owned("lost", &["gone"])), ["lost"]);
    assert_eq!(graph.remove("rs"), ["pod"]);
    assert_eq!(graph.dependents("rs").count(), 1);
    graph.remove("pod");
    assert_eq!(graph.dependents("rs").count(), 0);
}
