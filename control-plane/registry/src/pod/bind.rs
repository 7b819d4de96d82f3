//! `pods/binding` and `bindings`: put a pod on a node. The scheduler's only write.

use std::sync::Arc;

use axum::body::Body;
use coracle_api::meta::{self, GroupResource};
use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::{
    Objects, RequestContext, ResourceDef, Strategy, StrategyContext, SubresourceHandler, SubresourceRequest,
};
use http::Response;
use serde_json::{Value, json};

use crate::subresource::{created, existing, read_json};
use crate::value::{entries, items, list, object, present, set, text};

/// Serves `pods/binding`.
pub struct Bind;

#[async_trait::async_trait]
impl SubresourceHandler for Bind {
    async fn handle(&self, request: SubresourceRequest) -> Result<Response<Body>, Status> {
        let cx = request.context;
        let (name, namespace) = (cx.name.as_deref().unwrap_or_default(), cx.namespace.as_deref());
        let binding = read_json(request.http).await?;
        match text(&binding, "/metadata/name") {
            "" => {}
            other if other == name => {}
            _ => return Err(Status::bad_request("name in URL does not match name in Binding object")),
        }
        bind(&cx, &request.objects, namespace, name, &binding).await?;
        Ok(created())
    }
}

/// The resource `bindings`: a Binding that names its pod itself.
pub fn resource() -> ResourceDef {
    ResourceDef::new("", "v1", "Binding", "bindings", Arc::new(Binding)).verbs(&["create"])
}

struct Binding;

#[async_trait::async_trait]
impl Strategy for Binding {
    fn is_review(&self) -> bool {
        true
    }

    async fn answer(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let name = text(obj, "/metadata/name").to_owned();
        bind(cx.request, cx.objects, cx.request.namespace.as_deref(), &name, obj).await?;
        *obj =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(())
    }
}

async fn bind(
    cx: &RequestContext,
    objects: &Objects,
    namespace: Option<&str>,
    name: &str,
    binding: &Value,
) -> Result<(), Status> {
    check(binding)?;
    let now = time::seconds(cx.now);
    if cx.dry_run {
        let mut pod = existing(objects, "", "pods", namespace, name).await?;
        return assign(&mut pod, binding, name, &now);
    }
    objects.update("", "pods", namespace, name, |pod| assign(pod, binding, name, &now)).await.map(drop)
}

fn check(binding: &Value) -> Result<(), Status> {
    let kind = text(binding, "/target/kind");
    if !matches!(kind, "" | "Node") {
        let words =
            format!("target.kind: Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\"");
        return Err(Status::plain(words));
    }
    if text(binding, "/target/name").is_empty() {
        return Err(Status::plain("target.name: Required value"));
    }
    Ok(())
}

fn assign(pod: &mut Value, binding: &Value, name: &str, now: &str) -> Result<(), Status> {
    let refuse = |why: String| Err(Status::conflict(&GroupResource::new("", "pods/binding"), name, &why));
    let uid = text(binding, "/metadata/uid");
    let was = meta::uid(pod).unwrap_or_default();
    if !uid.is_empty() && uid != was {
        return refuse(format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {was}"));
    }
    if present(pod, "/metadata/deletionTimestamp") {
        return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = text(pod, "/spec/nodeName");
    if !node.is_empty() {
        return refuse(format!("pod {name} is already assigned to node {node:?}"));
    }
    if !items(pod, "/spec/schedulingGates").is_empty() {
        return refuse(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    if let Some(spec) = object(pod, "spec") {
        set(spec, "nodeName", text(binding, "/target/name"));
    }
    let annotations: Vec<(String, String)> = entries(binding, "/metadata/annotations")
        .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_string()))
        .collect();
    for (key, value) in annotations {
        meta::set_annotation(pod, &key, &value);
    }
    let scheduled =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if let Some(conditions) = object(pod, "status").and_then(|s| list(s, "conditions")) {
        conditions.retain(|c| text(c, "/type") != "PodScheduled");
        conditions.push(scheduled);
    }
    Ok(())
}
