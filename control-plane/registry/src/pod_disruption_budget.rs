//! PodDisruptionBudget of `policy`.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, number, object, present, reset, set_default, text};
use crate::{check, go_struct, table, workload};

const COUNTS: [&str; 4] = ["currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"];

static COLUMNS: [Column; 5] = [
    table::NAME,
    table::string("Min Available", "The minimum number of pods that must be available."),
    table::string("Max Unavailable", "The maximum number of pods that may be unavailable."),
    table::integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(PodDisruptionBudget);
    ResourceDef::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", strategy)
        .short_names(&["pdb"])
        .subresource(Subresource::status("PodDisruptionBudget"))
}

struct PodDisruptionBudget;

fn zeros() -> Value {
    Value::Object(COUNTS.iter().map(|c| (c.to_string(), json!(0))).collect())
}

#[async_trait::async_trait]
impl Strategy for PodDisruptionBudget {
    fn default(&self, obj: &mut Value) {
        object(obj, "spec");
        if let Some(status) = object(obj, "status") {
            for count in COUNTS {
                set_default(status, count, 0);
            }
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", zeros());
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        if present(spec, "/minAvailable") && present(spec, "/maxUnavailable") {
            let words = "minAvailable and maxUnavailable cannot be both set";
            let shown = go_struct::shown(spec, &go_struct::DISRUPTION_BUDGET);
            errors.push(Error::invalid(&path, spec.clone(), words).shown_as(shown));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            let (value, path) = (at(spec, &format!("/{field}")), path.child(field));
            check::int_or_percent(&mut errors, &path, value);
            check::at_most_100_percent(&mut errors, &path, value);
        }
        check::label_selector(&mut errors, &path.child("selector"), at(spec, "/selector"));
        let policy = text(spec, "/unhealthyPodEvictionPolicy");
        let supported = ["AlwaysAllow", "IfHealthyBudget"];
        check::one_of(&mut errors, &path.child("unhealthyPodEvictionPolicy"), policy, &supported, false);
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        workload::status(&mut errors, new, &COUNTS, &[]);
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let bound = |field: &str| match at(obj, &format!("/spec/{field}")) {
            Value::Null => "N/A".into(),
            Value::String(percent) => percent.clone(),
            number => number.to_string(),
        };
        vec![
            table::name(obj),
            bound("minAvailable").into(),
            bound("maxUnavailable").into(),
            number(obj, "/status/disruptionsAllowed").into(),
            table::age(obj, now),
        ]
    }
}
