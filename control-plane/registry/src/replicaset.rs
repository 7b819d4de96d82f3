//! ReplicaSet of `apps`.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, number, object, reset, set_default, text};
use crate::{check, table, workload};

static COLUMNS: [Column; 8] = [
    table::NAME,
    table::integer(
        "Desired",
        "Replicas is the number of desired pods. This is a pointer to distinguish between explicit zero and unspecified. Defaults to 1. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
    ),
    table::integer(
        "Current",
        "Replicas is the most recently observed number of non-terminating pods. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
    ),
    table::integer(
        "Ready",
        "The number of non-terminating pods targeted by this ReplicaSet with a Ready Condition.",
    ),
    table::AGE,
    table::wide("Containers", "Names of each container in the template."),
    table::wide("Images", "Images referenced by each container in the template."),
    table::wide(
        "Selector",
        "Selector is a label query over pods that should match the replica count. Label keys and values that must match in order to be controlled by this replica set. It must match the pod template's labels. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("apps", "v1", "ReplicaSet", "replicasets", Arc::new(ReplicaSet))
        .short_names(&["rs"])
        .categories(&["all"])
        .subresource(Subresource::scale())
        .subresource(Subresource::status("ReplicaSet"))
}

struct ReplicaSet;

#[async_trait::async_trait]
impl Strategy for ReplicaSet {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set_default(status, "replicas", 0);
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "replicas", 1);
        workload::default_template(spec);
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({"replicas": 0}));
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        let mut errors = Vec::new();
        check::non_negative(&mut errors, &path.child("replicas"), at(spec, "/replicas"));
        check::non_negative(&mut errors, &path.child("minReadySeconds"), at(spec, "/minReadySeconds"));
        workload::selected_template(&mut errors, spec, &path, "ReplicaSet");
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let path = Path::new("spec").child("selector");
        check::immutable(&mut errors, &path, at(new, "/spec/selector"), at(old, "/spec/selector"));
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let counts =
            ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
        workload::status(
            &mut errors,
            new,
            &counts,
            &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
        );
        let (available, ready) =
            (number(new, "/status/availableReplicas"), number(new, "/status/readyReplicas"));
        if available > ready {
            let path = Path::new("status").child("availableReplicas");
            errors.push(Error::invalid(&path, available, "cannot be greater than readyReplicas"));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            table::name(obj),
            number(obj, "/spec/replicas").into(),
            number(obj, "/status/replicas").into(),
            number(obj, "/status/readyReplicas").into(),
            table::age(obj, now),
            table::containers(obj, "/name"),
            table::containers(obj, "/image"),
            table::selector(at(obj, "/spec/selector")).into(),
        ]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        (path == "status.replicas").then(|| number(obj, "/status/replicas").to_string())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["status.replicas"]
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        let name = text(obj, "/metadata/name");
        if coracle_api::meta::validation::dns1123_label(name).is_empty() {
            return Vec::new();
        }
        vec![format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: {name:?}"
        )]
    }
}
