//! ControllerRevisions: the templates that a StatefulSet or DaemonSet had, so that a rollout can be told apart and undone.

use std::collections::HashSet;
use std::sync::Arc;

use kube::Resource;
use serde_json::{Value, json};

use crate::deployment::hash;
use crate::informers::Informers;
use crate::ownership::controller_reference;
use crate::view::{ControllerRevision, Meta};
use crate::write::{self, Delete, Writer};

/// Label of a pod that says which revision made it.
pub const REVISION_HASH: &str = "controller-revision-hash";
const HASH: &str = "controller.kubernetes.io/hash";

/// What a revision keeps of a template: a strategic merge patch, so that `kubectl rollout undo` can send it as it is.
pub fn data(template: &Value) -> Value {
    let mut template = template.clone();
    template["$patch"] = "replace".into();
    json!({ "spec": { "template": template } })
}

/// The template that a revision keeps.
pub fn template(revision: &ControllerRevision) -> Value {
    let mut template = revision.data.pointer("/spec/template").cloned().unwrap_or_default();
    if let Some(map) = template.as_object_mut() {
        map.remove("$patch");
    }
    template
}

/// Which revision is the present one.
#[derive(Debug, PartialEq)]
pub enum Present {
    /// It is there and the newest.
    There(usize),
    /// It is there, but others are newer: its number becomes this.
    Back(usize, i64),
    /// It must be made, with this number.
    New(i64),
}

/// Finds the present template among the revisions, which are in order of their number.
pub fn present(revisions: &[Arc<ControllerRevision>], data: &Value) -> Present {
    let next = revisions.last().map_or(0, |r| r.revision) + 1;
    match revisions.iter().rposition(|r| *r.data == *data) {
        Some(at) if at + 1 == revisions.len() => Present::There(at),
        Some(at) => Present::Back(at, next),
        None => Present::New(next),
    }
}

/// The revisions beyond `limit` that no pod uses, oldest first.
pub fn superfluous<'a>(
    revisions: &'a [Arc<ControllerRevision>],
    live: &HashSet<String>,
    limit: usize,
) -> Vec<&'a Arc<ControllerRevision>> {
    let unused: Vec<_> = revisions.iter().filter(|r| !live.contains(r.name())).collect();
    let count = unused.len().saturating_sub(limit);
    unused.into_iter().take(count).collect()
}

/// The hash in a revision's name.
pub fn hash_of(revision: &ControllerRevision) -> &str {
    revision.label(HASH).unwrap_or_else(|| revision.name().rsplit('-').next().unwrap_or_default())
}

/// The revisions of an owner, in order of their number.
pub fn of<O: Resource>(caches: &Informers, owner: &O) -> Vec<Arc<ControllerRevision>> {
    let mut revisions = caches.revisions.by(&format!("owner:{}", owner.uid()));
    revisions.sort_by(|a, b| (a.revision, a.created(), a.name()).cmp(&(b.revision, b.created(), b.name())));
    revisions
}

/// Why there is no present revision.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The name is another template's: count a collision and try again.
    #[error("the revision's name is taken")]
    Collision,
    /// The API refused.
    #[error("write a revision")]
    Api(#[from] kube::Error),
}

/// Makes sure that the present template has a revision, the newest; returns all, in order.
///
/// # Errors
/// When the API refuses. When the revision's name is another template's: that is noted in the owner's status, and the
/// next attempt takes another name.
pub async fn sync<O: Resource<DynamicType = ()>>(
    caches: &Informers,
    writer: &Writer,
    owner: &O,
    pod_template: &Value,
    collisions: i64,
) -> anyhow::Result<Vec<Arc<ControllerRevision>>> {
    let synced = try_sync(caches, writer, owner, pod_template, collisions).await;
    if matches!(synced, Err(Error::Collision)) {
        writer.status(owner, json!({ "collisionCount": collisions + 1 })).await?;
    }
    Ok(synced?)
}

async fn try_sync<O: Resource<DynamicType = ()>>(
    caches: &Informers,
    writer: &Writer,
    owner: &O,
    pod_template: &Value,
    collisions: i64,
) -> Result<Vec<Arc<ControllerRevision>>, Error> {
    let mut revisions = of(caches, owner);
    let data = data(pod_template);
    match present(&revisions, &data) {
        Present::There(_) => {}
        Present::Back(at, number) => {
            let old = revisions.remove(at);
            let path = write::path::<ControllerRevision>(owner.namespace(), old.name());
            let body = json!({ "metadata": { "uid": old.uid() }, "revision": number });
            writer.merge(&path, &body).await?;
            let mut new = old.as_ref().clone();
            new.revision = number;
            revisions.push(Arc::new(new));
        }
        Present::New(number) => {
            revisions.push(Arc::new(create(writer, owner, pod_template, data, number, collisions).await?));
        }
    }
    Ok(revisions)
}

async fn create<O: Resource<DynamicType = ()>>(
    writer: &Writer,
    owner: &O,
    pod_template: &Value,
    data: Value,
    number: i64,
    collisions: i64,
) -> Result<ControllerRevision, Error> {
    let word = hash::of(pod_template, collisions);
    let name = format!("{}-{word}", owner.name());
    let mut labels = pod_template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    labels[HASH] = word.as_str().into();
    let body = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {
            "name": name, "namespace": owner.namespace(), "labels": labels,
            "ownerReferences": [controller_reference(owner)],
            "annotations": owner.meta().annotations.clone().unwrap_or_default(),
        },
        "data": data, "revision": number,
    });
    let collection = write::path::<ControllerRevision>(owner.namespace(), "");
    match writer.create(&collection, &body).await {
        Ok(_) => {}
        Err(error) if write::is_already_exists(&error) => {
            // Our own that the cache has not shown yet, or another template with the same hash.
            let there: ControllerRevision = writer.get(&format!("{collection}/{name}")).await?;
            let ours = there.controller().is_some_and(|o| o.uid == owner.uid());
            return if ours && *there.data == body["data"] { Ok(there) } else { Err(Error::Collision) };
        }
        Err(error) => return Err(error.into()),
    }
    let mut made =
        ControllerRevision { data: Arc::new(body["data"].clone()), revision: number, ..Default::default() };
    made.metadata.name = Some(name);
    made.metadata.labels = serde_json::from_value(labels).ok();
    Ok(made)
}

/// Deletes the revisions beyond `limit` (10 unless set) that no pod uses.
pub async fn truncate(
    writer: &Writer,
    namespace: &str,
    revisions: &[Arc<ControllerRevision>],
    live: &HashSet<String>,
    limit: Option<i64>,
) -> write::Result<()> {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    for old in superfluous(revisions, live, limit) {
        let path = write::path::<ControllerRevision>(namespace, old.name());
        writer.delete(&path, Delete { uid: Some(old.uid()), ..Delete::default() }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: i64, image: &str) -> Arc<ControllerRevision> {
        let mut made = ControllerRevision { revision: number, ..Default::default() };
        made.metadata.name = Some(format!("web-{number}"));
        made.data = Arc::new(data(&json!({ "spec": { "image": image } })));
        Arc::new(made)
    }

    #[test]
    fn an_old_template_comes_back_as_the_newest() {
        let all = [revision(1, "a"), revision(2, "b")];
        let find = |image: &str| present(&all, &data(&json!({ "spec": { "image": image } })));
        assert_eq!(find("b"), Present::There(1));
        assert_eq!(find("a"), Present::Back(0, 3));
        assert_eq!(find("c"), Present::New(3));
        assert_eq!(template(&all[0]), json!({ "spec": { "image": "a" } }));
        let live = HashSet::from(["web-1".to_string()]);
        assert!(superfluous(&all, &live, 1).is_empty());
        let gone: Vec<_> = superfluous(&all, &live, 0).iter().map(|r| r.name()).collect();
        assert_eq!(gone, ["web-2"]);
    }
}
