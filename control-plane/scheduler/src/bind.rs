//! What the scheduler writes: bindings, conditions and events.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::view::PodView;

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
