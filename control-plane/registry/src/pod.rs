//! Pod.

pub mod bind;
mod columns;
pub mod defaults;
mod ephemeral_containers;
mod evict;
pub(crate) mod logs;
mod resize;
mod update;
pub mod validation;
pub mod warnings;

pub use logs::LogResolver;

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_api::{meta, qos};
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource, SubresourceAction};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::options::RegistryOptions;
use crate::value::{at, flag, items, maybe_number, object, set, set_default, text};

/// The resource with its subresources.
pub fn resource(options: &RegistryOptions) -> ResourceDef {
    let [attach, exec, port_forward, proxy] = crate::streams::of_pod(options);
    ResourceDef::new("", "v1", "Pod", "pods", Arc::new(Pod))
        .short_names(&["po"])
        .categories(&["all"])
        .subresource(attach)
        .subresource(Subresource::handler("binding", "Binding", &["create"], Arc::new(bind::Bind)))
        .subresource(changed_by("ephemeralcontainers", Arc::new(ephemeral_containers::EphemeralContainers)))
        .subresource(
            Subresource::handler("eviction", "Eviction", &["create"], Arc::new(evict::Evict))
                .group_version("policy", "v1"),
        )
        .subresource(exec)
        .subresource(Subresource::handler(
            "log",
            "Pod",
            &["get"],
            crate::subresource::on_node(options, Arc::new(LogResolver), "pods/log"),
        ))
        .subresource(port_forward)
        .subresource(proxy)
        .subresource(changed_by("resize", Arc::new(resize::Resize)))
        .subresource(Subresource::status("Pod"))
}

/// A subresource that reads and changes the whole pod under rules of its own.
fn changed_by(name: &str, strategy: Arc<dyn Strategy>) -> Subresource {
    Subresource::new(name, "Pod", &["get", "patch", "update"], SubresourceAction::Object(strategy))
}

/// The old pod with the new one's `resourceVersion`, so that conflicts are seen.
fn kept(new: &Value, old: &Value) -> Value {
    let mut pod = old.clone();
    for field in ["resourceVersion", "managedFields"] {
        let given = at(new, &format!("/metadata/{field}")).clone();
        if !given.is_null() {
            meta::set_metadata(&mut pod, field, given);
        }
    }
    pod
}

/// What Pods add to the server.
pub struct Pod;

fn spec_path() -> Path {
    Path::new("spec")
}

#[async_trait::async_trait]
impl Strategy for Pod {
    fn default(&self, obj: &mut Value) {
        if let Some(spec) = object(obj, "spec") {
            defaults::pod_spec(spec, defaults::Place::Pod);
        }
        if let Some(status) = obj.get_mut("status").filter(|s| s.is_object()) {
            for (one, many) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
                let ip = status.get(one).and_then(Value::as_str).unwrap_or_default().to_string();
                if !ip.is_empty() && items(status, &format!("/{many}")).is_empty() {
                    set(status, many, json!([{"ip": ip}]));
                }
            }
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let class = qos::class(at(obj, "/spec"));
        let mut status = json!({"phase": "Pending", "qosClass": class});
        if !items(obj, "/spec/schedulingGates").is_empty() {
            set(
                &mut status,
                "conditions",
                json!([{
                    "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                    "lastProbeTime": null, "lastTransitionTime": null,
                }]),
            );
        }
        set(obj, "status", status);
        Ok(())
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        coracle_apiserver::strategy::only_status(new, old);
        if let Some(status) = object(new, "status") {
            // What was allowed at birth stays; a client that leaves it out does not mean to clear it.
            let class = text(old, "/status/qosClass");
            if !class.is_empty() {
                set(status, "qosClass", class);
            }
            set_default(status, "phase", text(old, "/status/phase"));
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let spec = at(obj, "/spec");
        let mut errors = validation::pod_spec(spec, &spec_path());
        validation::pod_only(&mut errors, spec, &spec_path());
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        update::validate(new, old)
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        update::validate_status(new, old)
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        warnings::pod_spec(at(obj, "/spec"), "spec")
    }

    fn columns(&self) -> &[Column] {
        &columns::COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        columns::row(obj, now)
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        Some(match path {
            "spec.hostNetwork" => flag(obj, "/spec/hostNetwork").to_string(),
            "status.podIP" => match items(obj, "/status/podIPs").first() {
                Some(first) => text(first, "/ip").to_string(),
                None => text(obj, "/status/podIP").to_string(),
            },
            "spec.nodeName" => text(obj, "/spec/nodeName").to_string(),
            "spec.restartPolicy" => text(obj, "/spec/restartPolicy").to_string(),
            "spec.schedulerName" => text(obj, "/spec/schedulerName").to_string(),
            "spec.serviceAccountName" => text(obj, "/spec/serviceAccountName").to_string(),
            "status.phase" => text(obj, "/status/phase").to_string(),
            "status.nominatedNodeName" => text(obj, "/status/nominatedNodeName").to_string(),
            _ => return None,
        })
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]
    }

    fn grace_period(&self, obj: &Value, requested: Option<i64>) -> Option<i64> {
        let wanted =
            requested.or_else(|| maybe_number(obj, "/spec/terminationGracePeriodSeconds")).unwrap_or(0);
        let nobody_stops_it = text(obj, "/spec/nodeName").is_empty();
        let over = matches!(text(obj, "/status/phase"), "Failed" | "Succeeded");
        Some(match wanted {
            _ if nobody_stops_it || over => 0,
            n if n < 0 => 1,
            n => n,
        })
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace() {
        let spec = json!({"nodeName": "n", "terminationGracePeriodSeconds": 30});
        let table = [
            (json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, 0),
            (json!({"spec": spec}), None, 30),
            (json!({"spec": spec}), Some(5), 5),
            (json!({"spec": spec}), Some(0), 0),
            (json!({"spec": spec}), Some(-1), 1),
            (json!({"spec": spec, "status": {"phase": "Succeeded"}}), None, 0),
        ];
        for (pod, requested, expected) in table {
            assert_eq!(Pod.grace_period(&pod, requested), Some(expected), "{pod} {requested:?}");
        }
    }
}
