//! `pods/eviction`: a polite delete, which a PodDisruptionBudget may refuse.

use axum::body::Body;
use coracle_api::meta::{self, GroupResource};
use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::{Objects, RequestContext, Strategy, SubresourceHandler, SubresourceRequest};
use coracle_store::Txn;
use http::Response;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::check;
use crate::pod::Pod;
use crate::subresource::{created, existing, read_json};
use crate::value::{at, items, list, maybe_number, number, object, present, set, text};

/// How often removal is tried again when another writer came between.
const ATTEMPTS: usize = 16;
/// Most pods that a budget remembers as on their way out.
const DISRUPTED_MAX: usize = 2000;
/// Seconds after which a client may try again when a budget was not looked at yet.
const RETRY_SECONDS: u32 = 10;

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
        let pod = existing(&objects, "", "pods", namespace, name).await?;
        ask_budget(&objects, &cx, &pod, dry_run).await?;
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

/// Takes one disruption from the budget that covers a pod, if there is one.
async fn ask_budget(
    objects: &Objects,
    cx: &RequestContext,
    pod: &Value,
    dry_run: bool,
) -> Result<(), Status> {
    let idle = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending");
    if idle || meta::deletion_timestamp(pod).is_some() {
        return Ok(());
    }
    let namespace = cx.namespace.as_deref();
    let budgets = objects.list("policy", "poddisruptionbudgets", namespace).await?;
    let labels = at(pod, "/metadata/labels");
    let covers = |b: &&Value| {
        let selector = at(b, "/spec/selector");
        !selector.is_null() && check::selector_matches(selector, labels)
    };
    let mut covering = budgets.iter().filter(covers);
    let Some(budget) = covering.next() else { return Ok(()) };
    if covering.next().is_some() {
        let words = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status::new(500, "InternalError", words));
    }
    if ill(pod) {
        let healthy = number(budget, "/status/currentHealthy");
        let wanted = number(budget, "/status/desiredHealthy");
        let always = text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow";
        if always || (healthy >= wanted && wanted > 0) {
            return Ok(());
        }
    }
    let name = text(pod, "/metadata/name");
    let now = time::seconds(cx.now);
    if dry_run {
        return take(&mut budget.clone(), name, &now);
    }
    let budget = text(budget, "/metadata/name");
    let taken = |b: &mut Value| take(b, name, &now);
    let resource = ("policy", "poddisruptionbudgets");
    objects.update_status(resource, namespace, budget, ("kube-apiserver", cx.now), taken).await.map(drop)
}

/// Whether a pod runs and is not ready.
fn ill(pod: &Value) -> bool {
    let ready = |c: &Value| text(c, "/type") == "Ready" && text(c, "/status") == "True";
    !items(pod, "/status/conditions").iter().any(ready)
}

/// Counts one disruption, or says why there is none to take.
fn take(budget: &mut Value, pod: &str, now: &str) -> Result<(), Status> {
    let name = text(budget, "/metadata/name").to_owned();
    let refused = |why: String| {
        let words = "Cannot evict pod as it would violate the pod's disruption budget.";
        Status::new(429, "TooManyRequests", words).with_cause("DisruptionBudget", why, "")
    };
    let gr = GroupResource::new("policy", "poddisruptionbudgets");
    let allowed = number(budget, "/status/disruptionsAllowed");
    let generation = meta::generation(budget);
    if number(budget, "/status/observedGeneration") < generation {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(why).with_retry_after(RETRY_SECONDS));
    }
    if allowed < 0 {
        return Err(Status::forbidden(&gr, &name, "pdb disruptions allowed is negative"));
    }
    if at(budget, "/status/disruptedPods").as_object().is_some_and(|m| m.len() > DISRUPTED_MAX) {
        let words = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden(&gr, &name, words));
    }
    if allowed == 0 {
        let (wanted, healthy) =
            (number(budget, "/status/desiredHealthy"), number(budget, "/status/currentHealthy"));
        let why =
            format!("The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently");
        return Err(refused(why));
    }
    let Some(status) = object(budget, "status") else { return Ok(()) };
    set(status, "disruptionsAllowed", allowed - 1);
    if let Some(map) = object(status, "disruptedPods") {
        set(map, pod, now);
    }
    disruption_condition(status, allowed > 1, generation, now);
    Ok(())
}

/// The condition `DisruptionAllowed`, whose time changes with its status.
fn disruption_condition(status: &mut Value, allowed: bool, generation: i64, now: &str) {
    let (word, reason) = if allowed { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let Some(conditions) = list(status, "conditions") else { return };
    let was =
        conditions.iter().find(|c| text(c, "/type") == "DisruptionAllowed" && text(c, "/status") == word);
    let since = was.map_or(now, |c| text(c, "/lastTransitionTime")).to_owned();
    conditions.retain(|c| text(c, "/type") != "DisruptionAllowed");
    conditions.push(json!({"type": "DisruptionAllowed", "status": word, "reason": reason, "message": "",
        "observedGeneration": generation, "lastTransitionTime": since}));
}

fn mark(pod: &mut Value, grace: i64, now: &str, at: &str) -> Result<(), Status> {
    if present(pod, "/metadata/deletionTimestamp") {
        return Ok(());
    }
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
    Ok(())
}
