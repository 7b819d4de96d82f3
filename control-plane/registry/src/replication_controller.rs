//! ReplicationController, the elder of ReplicaSet: its selector is a plain map.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, entries, number, object, reset, set, set_default};
use crate::{check, table, workload};

static COLUMNS: [Column; 8] = [
    table::NAME,
    table::integer("Desired", "Replicas is the number of desired replicas."),
    table::integer("Current", "Replicas is the most recently observed number of replicas."),
    table::integer("Ready", "The number of ready replicas for this replication controller."),
    table::AGE,
    table::wide("Containers", "Names of each container in the template."),
    table::wide("Images", "Images referenced by each container in the template."),
    table::wide("Selector", "A label query over pods that should match the Replicas count."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(ReplicationController);
    ResourceDef::new("", "v1", "ReplicationController", "replicationcontrollers", strategy)
        .short_names(&["rc"])
        .categories(&["all"])
        .subresource(Subresource::scale())
        .subresource(Subresource::status("ReplicationController"))
}

struct ReplicationController;

#[async_trait::async_trait]
impl Strategy for ReplicationController {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set_default(status, "replicas", 0);
        }
        let labels = at(obj, "/spec/template/metadata/labels").clone();
        let given = labels.as_object().is_some_and(|l| !l.is_empty());
        if given && meta::labels(obj).next().is_none() {
            meta::set_metadata(obj, "labels", labels.clone());
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "replicas", 1);
        if given && entries(spec, "/selector").next().is_none() {
            set(spec, "selector", labels);
        }
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
        check::non_negative(&mut errors, &path.child("minReadySeconds"), at(spec, "/minReadySeconds"));
        if entries(spec, "/selector").next().is_none() {
            errors.push(Error::required(&path.child("selector"), ""));
        }
        check::non_negative(&mut errors, &path.child("replicas"), at(spec, "/replicas"));
        if at(spec, "/template").is_null() {
            errors.push(Error::required(&path.child("template"), ""));
            return errors;
        }
        let labels = at(spec, "/template/metadata/labels");
        if entries(spec, "/selector").any(|(k, v)| labels.get(k) != Some(v)) {
            workload::unmatched(&mut errors, spec, &path);
        }
        workload::lasting_template(&mut errors, spec, &path, "ReplicationController");
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let bounded = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
        workload::status(&mut errors, new, &["replicas", "observedGeneration"], &[]);
        workload::status(&mut errors, new, &bounded, &bounded);
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
            table::labels(obj, "/spec/selector"),
        ]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        (path == "status.replicas").then(|| number(obj, "/status/replicas").to_string())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["status.replicas"]
    }

    fn orphans_by_default(&self) -> bool {
        true
    }
}
