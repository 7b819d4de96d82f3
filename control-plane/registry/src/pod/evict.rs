//! `pods/eviction`: a polite delete. There are no PodDisruptionBudgets yet, so that nothing refuses it.

use axum::body::Body;
use coracle_api::meta::{self, GroupResource};
use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::{Strategy, SubresourceHandler, SubresourceRequest};
use coracle_store::Txn;
use http::Response;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::pod::Pod;
use crate::subresource::{created, existing, read_json};
use crate::value::{items, list, maybe_number, object, set, text};

/// How often removal is tried again when another writer came between.
const ATTEMPTS: usize = 16;

/// Serves `pods/eviction`.
pub struct Evict;

#[async_trait::async_trait]
impl SubresourceHandler for Evict {
    async fn handle(&self, request: SubresourceRequest) -> Result<Response<Body>, Status> {
        let cx = request.context;
        let (name, namespace) = (cx.name.as_deref().unwrap_or_default(), cx.namespace.as_deref());
        let eviction = read_json(request.http).await?;
        match text(&eviction, "/metadata/name") {
            "" => {}
            other if other == name => {}
            _ => return Err(Status::bad_request("name in URL does not match name in Eviction object")),
        }
        let objects = request.objects;
        let dry_run = cx.dry_run || items(&eviction, "/deleteOptions/dryRun").iter().any(|v| v == "All");
        let requested = maybe_number(&eviction, "/deleteOptions/gracePeriodSeconds");
        for _ in 0..ATTEMPTS {
            let pod = existing(&objects, "", "pods", namespace, name).await?;
            let grace = Pod.grace_period(&pod, requested).unwrap_or(0);
            let stays = grace > 0 || meta::finalizers(&pod).next().is_some();
            if dry_run || (meta::deletion_timestamp(&pod).is_some() && stays) {
                return Ok(created());
            }
            if stays {
                let at = cx.now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(cx.now);
                let (now, at) = (time::seconds(cx.now), time::seconds(at));
                objects.update("", "pods", namespace, name, |pod| mark(pod, grace, &now, &at)).await?;
                return Ok(created());
            }
            let Some(def) = objects.resource("", "pods") else { break };
            let revision = meta::resource_version(&pod).and_then(|v| v.parse().ok()).unwrap_or_default();
            let done = objects.store().txn(Txn::delete(def.key(namespace, name).into(), revision)).await;
            if done.map_err(Status::internal)?.succeeded {
                return Ok(created());
            }
        }
        Err(Status::modified(&GroupResource::new("", "pods"), name))
    }
}

fn mark(pod: &mut Value, grace: i64, now: &str, at: &str) -> Result<(), Status> {
    meta::set_metadata(pod, "deletionTimestamp", at);
    meta::set_metadata(pod, "deletionGracePeriodSeconds", grace);
    let generation = meta::generation(pod);
    meta::set_generation(pod, generation + 1);
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now});
    if let Some(conditions) = object(pod, "status").and_then(|s| list(s, "conditions")) {
        conditions.retain(|c| text(c, "/type") != "DisruptionTarget");
        conditions.push(condition);
    }
    if let Some(metadata) = object(pod, "metadata") {
        set(metadata, "deletionGracePeriodSeconds", grace);
    }
    Ok(())
}
