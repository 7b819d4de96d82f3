//! What the scheduler writes: bindings, conditions and events.

use anyhow::{Context, Result};
use coracle_controllers::resource_claim::PROTECTED;
use coracle_controllers::view::{Meta, PersistentVolumeClaim, PodGroup, ResourceClaim};
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim as FullClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::devices::Grant;
use crate::plugins::volumes::{self, Claim, SELECTED_NODE};
use crate::preemption::Preemption;
use crate::snapshot::Snapshot;
use crate::view::PodView;
use crate::world::World;

/// Binds a pod to a node, then says so in an event.
///
/// # Errors
/// When the API refuses: the pod is gone, or has a node.
pub async fn bind(client: &Client, pod: &PodView, node: &str) -> Result<()> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let path = format!("/api/v1/namespaces/{}/pods/{}/binding", pod.namespace, pod.name);
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&binding)?)?;
    let _: Value = client.request(request).await.with_context(|| format!("bind {} to {node}", pod.key()))?;
    let message = format!("Successfully assigned {} to {node}", pod.key());
    if let Err(error) = event(client, pod, "Normal", "Scheduled", "Binding", &message).await {
        tracing::debug!(pod = pod.key(), error = format!("{error:#}"), "write an event");
    }
    Ok(())
}

/// Writes to claims which devices they have, and that the pod uses them.
///
/// # Errors
/// When the API refuses, or somebody else was faster.
pub async fn grant(client: &Client, pod: &PodView, grants: &[Grant]) -> Result<()> {
    for Grant { claim, allocation } in grants {
        let mut version = claim.metadata.resource_version.clone();
        if !claim.metadata.finalizers.iter().flatten().any(|f| f == PROTECTED) {
            let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
            finalizers.push(PROTECTED.to_owned());
            let body = json!({"metadata": {"uid": claim.uid(), "resourceVersion": version, "finalizers": finalizers}});
            version = Some(patch_claim(client, claim, "", &body).await?);
        }
        let mut users = json!(claim.status.reserved_for.clone().unwrap_or_default());
        if let Some(users) = users.as_array_mut() {
            users.push(json!({"resource": "pods", "name": pod.name, "uid": pod.uid}));
        }
        let mut status = json!({"reservedFor": users});
        if let Some(allocation) = allocation {
            status["allocation"] = serde_json::to_value(allocation)?;
            status["allocation"]["allocationTimestamp"] =
                json!(Timestamp::from_second(Timestamp::now().as_second())?);
        }
        let body = json!({"metadata": {"uid": claim.uid(), "resourceVersion": version}, "status": status});
        patch_claim(client, claim, "/status", &body).await?;
    }
    Ok(())
}

/// Gives back the devices of claims that nobody uses.
///
/// # Errors
/// When the API refuses, or somebody else was faster.
pub async fn take_back(client: &Client, claims: &[std::sync::Arc<ResourceClaim>]) -> Result<()> {
    for claim in claims {
        let status = json!({"allocation": null, "reservedFor": null});
        let meta = json!({"uid": claim.uid(), "resourceVersion": claim.metadata.resource_version});
        patch_claim(client, claim, "/status", &json!({"metadata": meta, "status": status})).await?;
    }
    Ok(())
}

/// The version that the claim has then.
async fn patch_claim(
    client: &Client,
    claim: &ResourceClaim,
    subresource: &str,
    body: &Value,
) -> Result<String> {
    let (namespace, name) = (claim.namespace(), claim.name());
    let path = format!("/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{name}{subresource}");
    let request = http::Request::patch(path)
        .header("content-type", "application/merge-patch+json")
        .body(serde_json::to_vec(body)?)?;
    let answer: Value =
        client.request(request).await.with_context(|| format!("resourceclaim {namespace}/{name}"))?;
    Ok(answer["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned())
}

/// How a claim gets its volume now that the node is known.
#[derive(Debug, PartialEq)]
pub enum VolumeBinding {
    /// A volume that is there is kept for the claim: its name, the claim's namespace, name and uid.
    Existing { volume: String, claim: [String; 3] },
    /// Who provides volumes is told the node: the claim's namespace and name.
    Provided { claim: [String; 2] },
    /// It has a volume and is being bound to it.
    UnderWay,
}

/// What must be bound before the pod; a claim that is on its way counts too.
pub fn volumes(pod: &PodView, node: &str, snapshot: &Snapshot, world: &World) -> Vec<VolumeBinding> {
    let Ok(claims) = volumes::claims(pod, world) else { return Vec::new() };
    let room = snapshot.room(node);
    let waits = claims.into_iter().filter_map(|claim| match claim {
        Claim::Waits(claim, _) => Some(claim),
        Claim::Bound(_) => None,
    });
    let binding = |claim: std::sync::Arc<PersistentVolumeClaim>| {
        if volumes::kept(&claim, world).is_some() {
            return VolumeBinding::UnderWay;
        }
        let (namespace, name) = (claim.namespace().to_owned(), claim.name().to_owned());
        match room.and_then(|room| volumes::found(&claim, room, world)) {
            Some(volume) => VolumeBinding::Existing {
                volume: volume.name().to_owned(),
                claim: [namespace, name, claim.uid().to_owned()],
            },
            None => VolumeBinding::Provided { claim: [namespace, name] },
        }
    };
    waits.map(binding).collect()
}

/// Starts the binding of volumes; that it is done shows on the claims.
///
/// # Errors
/// When the API refuses.
pub async fn bind_volumes(
    client: &Client,
    pod: &PodView,
    node: &str,
    bindings: &[VolumeBinding],
) -> Result<()> {
    for binding in bindings {
        match binding {
            VolumeBinding::UnderWay => {}
            VolumeBinding::Existing { volume, claim: [namespace, name, uid] } => {
                let reference = json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name, "uid": uid,
                });
                let body = json!({
                    "metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
                    "spec": {"claimRef": reference},
                });
                let volumes = Api::<PersistentVolume>::all(client.clone());
                volumes
                    .patch(volume, &PatchParams::default(), &Patch::Merge(body))
                    .await
                    .with_context(|| format!("keep volume {volume} for {}", pod.key()))?;
            }
            VolumeBinding::Provided { claim: [namespace, name] } => {
                let body = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
                let claims = Api::<FullClaim>::namespaced(client.clone(), namespace);
                claims
                    .patch(name, &PatchParams::default(), &Patch::Merge(body))
                    .await
                    .with_context(|| format!("ask for the volume of {namespace}/{name}"))?;
            }
        }
    }
    Ok(())
}

/// Stops the pods that make room for another, which then has that node first.
///
/// # Errors
/// When the API refuses; a victim that is gone already is none.
pub async fn make_room(client: &Client, pod: &PodView, found: &Preemption) -> Result<()> {
    let nominate = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": found.node}});
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
    pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(nominate))
        .await
        .with_context(|| format!("nominate {} for {}", found.node, pod.key()))?;
    for victim in &found.victims {
        let now = Timestamp::from_second(Timestamp::now().as_second())?;
        let words = "default-scheduler: preempting to accommodate a higher priority pod";
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": words,
            "lastTransitionTime": now,
        });
        let status = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
        let pods = Api::<Pod>::namespaced(client.clone(), &victim.namespace);
        let marked =
            pods.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(status)).await;
        if let Err(error) = marked {
            tracing::debug!(pod = victim.key(), %error, "mark a victim");
        }
        let how = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(victim.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match pods.delete(&victim.name, &how).await {
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => continue,
            other => other.with_context(|| format!("stop {} for {}", victim.key(), pod.key()))?,
        };
        let words = format!("Preempted by pod {} on node {}", pod.uid, found.node);
        if let Err(error) = event(client, victim, "Normal", "Preempted", "Preempting", &words).await {
            tracing::debug!(pod = victim.key(), error = format!("{error:#}"), "write an event");
        }
    }
    Ok(())
}

/// Says why a pod waits, on the pod and in an event.
///
/// # Errors
/// When the API cannot be reached or the pod is gone.
pub async fn explain(client: &Client, pod: &PodView, why: &str) -> Result<()> {
    let now = Timestamp::from_second(Timestamp::now().as_second())?;
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why, "lastTransitionTime": now,
    });
    let patch =
        Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}));
    let pods = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
    pods.patch_status(&pod.name, &PatchParams::default(), &patch)
        .await
        .with_context(|| format!("status of {}", pod.key()))?;
    event(client, pod, "Warning", "FailedScheduling", "Scheduling", why).await
}

/// Says on a group whether its pods have nodes, and if not, why.
///
/// # Errors
/// When the API cannot be reached or the group is gone.
pub async fn explain_group(client: &Client, group: &PodGroup, why: Option<&str>) -> Result<()> {
    let (namespace, name) = (group.namespace(), group.name());
    let (status, reason) = if why.is_some() { ("False", "Unschedulable") } else { ("True", "Scheduled") };
    let message = why.unwrap_or("enough pods of the group have nodes");
    let condition = json!({
        "type": "PodGroupScheduled", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": Timestamp::from_second(Timestamp::now().as_second())?,
    });
    let body = json!({"metadata": {"uid": group.uid()}, "status": {"conditions": [condition]}});
    let path = format!("/apis/scheduling.k8s.io/v1alpha2/namespaces/{namespace}/podgroups/{name}/status");
    let request = http::Request::patch(path)
        .header("content-type", "application/strategic-merge-patch+json")
        .body(serde_json::to_vec(&body)?)?;
    let _: Value = client.request(request).await.with_context(|| format!("podgroup {namespace}/{name}"))?;
    Ok(())
}

async fn event(
    client: &Client,
    pod: &PodView,
    kind: &str,
    reason: &str,
    action: &str,
    message: &str,
) -> Result<()> {
    let now = Timestamp::now();
    let event: Event = serde_json::from_value(json!({
        "metadata": {"name": format!("{}.{:x}", pod.name, now.as_nanosecond()), "namespace": pod.namespace},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
        "reason": reason, "action": action, "message": message, "type": kind, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": "default-scheduler"}, "reportingComponent": "default-scheduler",
        "reportingInstance": "default-scheduler",
    }))?;
    Api::<Event>::namespaced(client.clone(), &pod.namespace).create(&PostParams::default(), &event).await?;
    Ok(())
}
