//! Creates, updates, patches and status.

use serde_json::{Value, json};

use super::checks::Findings;
use super::client::Client;
use super::kind::{Kind, merge};

/// Creates the object, after everything that must not create it.
pub async fn create(client: &Client, kind: &Kind, found: &mut Findings) -> Option<Value> {
    let dry = client.post(&format!("{}?dryRun=All", kind.path), &kind.object).await;
    found.code("create, dry run", 201, dry)?;
    found.code("get after a dry run", 404, client.get(&kind.at()).await);
    let mut odd = kind.object.clone();
    odd["noSuchField"] = 1.into();
    let strict = client.post(&format!("{}?fieldValidation=Strict", kind.path), &odd).await;
    found.code("create with an unknown field", 400, strict);
    odd = kind.object.clone();
    odd["kind"] = "Other".into();
    found.code("create of another kind", 400, client.post(&kind.path, &odd).await);
    odd = kind.object.clone();
    odd["metadata"]["name"] = "not/a/name".into();
    found.code("create with a bad name", 422, client.post(&kind.path, &odd).await);
    let made = found.code("create", 201, client.post(&kind.path, &kind.object).await)?;
    found.contains("created", &kind.object, &made);
    for field in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
        found.expect(!made["metadata"][field].is_null(), || format!("created without metadata.{field}"));
    }
    let again = found.code("create again", 409, client.post(&kind.path, &kind.object).await);
    if let Some(status) = again {
        found.expect(status["reason"] == "AlreadyExists", || format!("create again: {}", status["reason"]));
    }
    Some(made)
}

/// Updates: of what was read, of what is no longer so, of what changed.
pub async fn update(client: &Client, kind: &Kind, found: &mut Findings) {
    let Some(read) = found.code("get", 200, client.get(&kind.at()).await) else { return };
    if let Some(same) = found.code("update of what was read", 200, client.put(&kind.at(), &read).await) {
        found.expect(same == read, || format!("an update of what was read changed {read} into {same}"));
    }
    let mut new = read.clone();
    merge(&mut new, &json!({"metadata": {"labels": {"updated": "yes"}}}));
    let dry = client.put(&format!("{}?dryRun=All", kind.at()), &new).await;
    found.code("update, dry run", 200, dry);
    let Some(next) = found.code("update", 200, client.put(&kind.at(), &new).await) else { return };
    found.expect(next["metadata"]["resourceVersion"] != read["metadata"]["resourceVersion"], || {
        "an update kept the resourceVersion".into()
    });
    for field in ["uid", "creationTimestamp"] {
        found.expect(next["metadata"][field] == read["metadata"][field], || {
            format!("an update changed {field}")
        });
    }
    let stale = found.code("update of what is no longer so", 409, client.put(&kind.at(), &new).await);
    if let Some(status) = stale {
        found.expect(status["reason"] == "Conflict", || format!("conflict: {}", status["reason"]));
    }
    let mut other = next.clone();
    other["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000".into();
    found.code("update of another object's uid", 409, client.put(&kind.at(), &other).await);
    other = next;
    other["metadata"]["name"] = "another".into();
    found.code("update under another name", 400, client.put(&kind.at(), &other).await);
}

/// The four kinds of patches.
pub async fn patch(client: &Client, kind: &Kind, found: &mut Findings) {
    let at = kind.at();
    let label = |name: &str| json!({"metadata": {"labels": {name: "yes"}}});
    let dry = client.patch(&format!("{at}?dryRun=All"), "merge", &label("dry")).await;
    found.code("patch, dry run", 200, dry);
    found.code("merge patch", 200, client.patch(&at, "merge", &label("merge")).await);
    found.code("strategic merge patch", 200, client.patch(&at, "strategic-merge", &label("strategic")).await);
    let operations = json!([{"op": "add", "path": "/metadata/labels/json", "value": "yes"}]);
    found.code("JSON patch", 200, client.patch(&at, "json", &operations).await);
    let failing = json!([{"op": "test", "path": "/metadata/name", "value": "other"}]);
    found.code("JSON patch whose test fails", 422, client.patch(&at, "json", &failing).await);
    let apply = format!("{at}?fieldManager=applier");
    let applied = client.patch(&apply, "apply", &kind.labelled(json!({"apply": "yes"}))).await;
    if let Some(applied) = found.code("apply", 200, applied) {
        let all =
            json!({"updated": "yes", "merge": "yes", "strategic": "yes", "json": "yes", "apply": "yes"});
        found.contains("patched", &all, &applied["metadata"]["labels"]);
        found.expect(applied["metadata"]["labels"]["dry"].is_null(), || "a dry run left a label".into());
        let owns = applied["metadata"]["managedFields"].as_array().is_some_and(|managers| {
            managers.iter().any(|m| {
                m["manager"] == "applier"
                    && m["operation"] == "Apply"
                    && m["fieldsV1"] == json!({"f:metadata": {"f:labels": {"f:apply": {}}}})
            })
        });
        found.expect(owns, || format!("apply: managers {}", applied["metadata"]["managedFields"]));
        let again = client.patch(&apply, "apply", &kind.labelled(json!({"apply": "yes"}))).await;
        if let Some(again) = found.code("apply again", 200, again) {
            found.expect(again == applied, || format!("apply is not idempotent: {applied} and {again}"));
        }
    }
    let taken = client.patch(&apply, "apply", &kind.labelled(json!({"apply": "yes", "merge": "no"}))).await;
    found.code("apply of another's field", 409, taken);
    let gone = client.patch(&apply, "apply", &kind.labelled(json!({}))).await;
    if let Some(gone) = found.code("apply of less", 200, gone) {
        found.expect(gone["metadata"]["labels"]["apply"].is_null(), || {
            "what was applied is still there".into()
        });
    }
    if !kind.change.is_null()
        && let Some(changed) = found.code("change", 200, client.patch(&at, "merge", &kind.change).await)
    {
        let mut wanted = kind.object.clone();
        merge(&mut wanted, &kind.change);
        found.contains("changed", &wanted, &changed);
    }
}

/// That neither half of an object is written with the other.
pub async fn status(client: &Client, kind: &Kind, found: &mut Findings) {
    if !kind.has_status {
        return;
    }
    if !found.expect(kind.status.is_object(), || "a status subresource and no status in the manifest".into())
    {
        return;
    }
    let path = format!("{}/status", kind.at());
    let Some(before) = found.code("get", 200, client.get(&kind.at()).await) else { return };
    let mut both = json!({"status": kind.status});
    // Back to what the object was made with, so that a write would be seen.
    if !kind.change.is_null() {
        both["spec"] = kind.object["spec"].clone();
    }
    let Some(written) = found.code("status", 200, client.patch(&path, "merge", &both).await) else { return };
    found.contains("status", &kind.status, &written["status"]);
    found.expect(written["spec"] == before["spec"], || "a write of status changed the spec".into());
    found.expect(written["metadata"]["generation"] == before["metadata"]["generation"], || {
        "a write of status changed the generation".into()
    });
    let Some(read) = found.code("get of status", 200, client.get(&path).await) else { return };
    found.expect(read == written, || format!("status was written as {written} and read as {read}"));
    let put = client.put(&path, &read).await;
    found.code("update of status", 200, put);
    let mut other = json!({"metadata": {"labels": {"isolated": "yes"}}, "status": null});
    if !kind.change.is_null() {
        merge(&mut other, &kind.change);
    }
    if let Some(kept) = found.code("update of spec", 200, client.patch(&kind.at(), "merge", &other).await) {
        found.contains("status after a write of spec", &kind.status, &kept["status"]);
    }
    let mut applied = kind.labelled(json!({}));
    applied["metadata"].as_object_mut().expect("object").remove("labels");
    applied["status"] = kind.status.clone();
    let apply = format!("{path}?fieldManager=status-applier&force=true");
    found.code("apply of status", 200, client.patch(&apply, "apply", &applied).await);
}
