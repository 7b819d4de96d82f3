//! Deletion of one object and of collections.

use serde_json::{Value, json};

use super::checks::Findings;
use super::client::Client;
use super::kind::Kind;

/// Deletes the object, after everything that must not.
pub async fn one(client: &Client, kind: &Kind, found: &mut Findings) {
    let at = kind.at();
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]});
    found.code("delete, dry run", 200, client.delete(&at, &options).await);
    found.code("get after a dry run of a delete", 200, client.get(&at).await);
    let other = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    found.code("delete of another object's uid", 409, client.delete(&at, &other).await);
    let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
    if found.code("a finalizer", 200, client.patch(&at, "merge", &held).await).is_some() {
        found.code("delete of what is held", 200, client.delete(&at, &Value::Null).await);
        if let Some(marked) = found.code("get of what is held", 200, client.get(&at).await) {
            found.expect(marked["metadata"]["deletionTimestamp"].is_string(), || {
                "what is held has no deletionTimestamp".into()
            });
        }
    }
    gone(client, kind, kind.name(), found).await;
    found.code("delete of what is not there", 404, client.delete(&at, &Value::Null).await);
}

/// Deletes an object and lets go of it, as its controllers would.
async fn gone(client: &Client, kind: &Kind, name: &str, found: &mut Findings) {
    let at = format!("{}/{name}", kind.path);
    client.delete(&at, &json!({"gracePeriodSeconds": 0})).await;
    client.patch(&at, "merge", &json!({"metadata": {"finalizers": null}})).await;
    let (_, left) = client.get(&at).await;
    if left["kind"] == "Namespace" {
        let mut empty = left.clone();
        empty["spec"]["finalizers"] = json!([]);
        client.put(&format!("{at}/finalize"), &empty).await;
    }
    if left["kind"] == "CustomResourceDefinition" {
        // Its objects are looked for first.
        client.until(&at, 404).await;
    }
    found.code("get after a delete", 404, client.get(&at).await);
}

/// A collection goes as far as it is selected.
pub async fn many(client: &Client, kind: &Kind, found: &mut Findings) {
    let (mut second, other) = kind.another();
    let mut first = kind.object.clone();
    first["metadata"]["labels"] = json!({"collection": "goes"});
    second["metadata"]["labels"] = json!({"collection": "stays"});
    found.code("create once more", 201, client.post(&kind.path, &first).await);
    found.code("create another", 201, client.post(&kind.path, &second).await);
    if kind.has("deletecollection") {
        let selected = format!("{}?labelSelector=collection%3Dgoes", kind.path);
        let dry = client.delete(&format!("{selected}&dryRun=All"), &Value::Null).await;
        found.code("deletion of a collection, dry run", 200, dry);
        found.code("get after that", 200, client.get(&kind.at()).await);
        found.code("deletion of a collection", 200, client.delete(&selected, &Value::Null).await);
    }
    gone(client, kind, kind.name(), found).await;
    found.code("get of what was not selected", 200, client.get(&format!("{}/{other}", kind.path)).await);
    gone(client, kind, &other, found).await;
}
