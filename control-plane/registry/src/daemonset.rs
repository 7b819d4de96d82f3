//! DaemonSet of `apps`.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, number, object, present, reset, same, set_default, text};
use crate::{check, table, workload};

/// Counts changes of the template, for clients of old.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Numbers in the status that are always written.
const COUNTS: [&str; 4] =
    ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];

static COLUMNS: [Column; 11] = [
    table::NAME,
    table::integer("Desired", "The total number of nodes that should be running the daemon pod."),
    table::integer(
        "Current",
        "The number of nodes that are running at least 1 daemon pod and are supposed to.",
    ),
    table::integer("Ready", "The number of nodes that run a daemon pod which is ready."),
    table::integer("Up-to-date", "The total number of nodes that are running the updated daemon pod."),
    table::integer("Available", "The number of nodes that run a daemon pod which is available."),
    table::string("Node Selector", "What the labels of a node must be for the pod to fit on it."),
    table::AGE,
    table::wide("Containers", "Names of each container in the template."),
    table::wide("Images", "Images referenced by each container in the template."),
    table::wide("Selector", "A label query over pods that are managed by the daemon set."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("apps", "v1", "DaemonSet", "daemonsets", Arc::new(DaemonSet))
        .short_names(&["ds"])
        .categories(&["all"])
        .subresource(Subresource::status("DaemonSet"))
}

struct DaemonSet;

fn set_template_generation(obj: &mut Value, generation: i64) {
    meta::set_annotation(obj, TEMPLATE_GENERATION, &generation.to_string());
}

#[async_trait::async_trait]
impl Strategy for DaemonSet {
    fn default(&self, obj: &mut Value) {
        // As Kubernetes' conversion does, so that who creates the object owns it.
        if meta::annotation(obj, TEMPLATE_GENERATION).is_none() {
            set_template_generation(obj, 1);
        }
        if let Some(status) = object(obj, "status") {
            for count in COUNTS {
                set_default(status, count, 0);
            }
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "revisionHistoryLimit", 10);
        if let Some(strategy) = object(spec, "updateStrategy") {
            set_default(strategy, "type", "RollingUpdate");
            if text(strategy, "/type") == "RollingUpdate"
                && let Some(rolling) = object(strategy, "rollingUpdate")
            {
                set_default(rolling, "maxUnavailable", 1);
                set_default(rolling, "maxSurge", 0);
            }
        }
        workload::default_template(spec);
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let zeros = COUNTS.iter().map(|c| (c.to_string(), json!(0))).collect();
        reset(obj, "status", Value::Object(zeros));
        set_template_generation(obj, 1);
        Ok(())
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        coracle_apiserver::strategy::keep_status(new, old);
        let before: i64 =
            meta::annotation(old, TEMPLATE_GENERATION).and_then(|n| n.parse().ok()).unwrap_or(1);
        let changed = !same(at(new, "/spec/template"), at(old, "/spec/template"));
        set_template_generation(new, if changed { before.saturating_add(1) } else { before });
        coracle_apiserver::strategy::bump_generation(new, old);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        spec(&mut errors, at(obj, "/spec"), &Path::new("spec"));
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
        workload::status(&mut errors, new, &COUNTS, &[]);
        let more = [
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ];
        workload::status(&mut errors, new, &more, &[]);
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        crate::pod::warnings::pod_spec(at(obj, "/spec/template/spec"), "spec.template.spec")
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let count = |field: &str| Value::from(number(obj, &format!("/status/{field}")));
        vec![
            table::name(obj),
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberReady"),
            count("updatedNumberScheduled"),
            count("numberAvailable"),
            table::labels(obj, "/spec/template/spec/nodeSelector"),
            table::age(obj, now),
            table::containers(obj, "/name"),
            table::containers(obj, "/image"),
            table::selector(at(obj, "/spec/selector")).into(),
        ]
    }
}

fn spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let selector = at(spec, "/selector");
    check::label_selector(errors, &path.child("selector"), selector);
    let matches = check::selector_matches(selector, at(spec, "/template/metadata/labels"));
    if check::selector_is_empty(selector) || !matches {
        workload::unmatched(errors, spec, path);
    }
    workload::lasting_template(errors, spec, path, "DaemonSet");
    check::non_negative(errors, &path.child("minReadySeconds"), at(spec, "/minReadySeconds"));
    strategy(errors, at(spec, "/updateStrategy"), &path.child("updateStrategy"));
    check::non_negative(errors, &path.child("revisionHistoryLimit"), at(spec, "/revisionHistoryLimit"));
}

fn strategy(errors: &mut Vec<Error>, strategy: &Value, path: &Path) {
    let rolling_path = path.child("rollingUpdate");
    let rolling = at(strategy, "/rollingUpdate");
    match text(strategy, "/type") {
        "OnDelete" => {}
        "RollingUpdate" if !present(strategy, "/rollingUpdate") => {
            errors.push(Error::required(&rolling_path, ""));
        }
        "RollingUpdate" => {
            let zero =
                |v: &Value| check::percent(v) == Some(0) || v.as_i64().unwrap_or(0) == 0 && !v.is_string();
            let (unavailable, surge) = (at(rolling, "/maxUnavailable"), at(rolling, "/maxSurge"));
            for (field, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
                check::int_or_percent(errors, &rolling_path.child(field), value);
                check::at_most_100_percent(errors, &rolling_path.child(field), value);
            }
            if zero(unavailable) && zero(surge) {
                let path = rolling_path.child("maxUnavailable");
                errors.push(Error::required(&path, "cannot be 0 when maxSurge is 0"));
            } else if !zero(unavailable) && !zero(surge) {
                let path = rolling_path.child("maxSurge");
                errors.push(Error::invalid(
                    &path,
                    surge.clone(),
                    "may not be set when maxUnavailable is non-zero",
                ));
            }
        }
        other => {
            errors.push(Error::not_supported(&path.child("type"), other, &["RollingUpdate", "OnDelete"]))
        }
    }
}
