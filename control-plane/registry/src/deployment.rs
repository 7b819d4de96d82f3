//! Deployment of `apps`.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, number, object, present, reset, set_default, text};
use crate::{check, table, workload};

static COLUMNS: [Column; 8] = [
    table::NAME,
    table::string("Ready", "Number of the pod with ready state"),
    table::string(
        "Up-to-date",
        "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
    ),
    table::string(
        "Available",
        "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this deployment.",
    ),
    table::AGE,
    table::wide("Containers", "Names of each container in the template."),
    table::wide("Images", "Images referenced by each container in the template."),
    table::wide(
        "Selector",
        "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones affected by this deployment. It must match the pod template's labels.",
    ),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("apps", "v1", "Deployment", "deployments", Arc::new(Deployment))
        .short_names(&["deploy"])
        .categories(&["all"])
        .subresource(Subresource::scale())
        .subresource(Subresource::status("Deployment"))
}

struct Deployment;

#[async_trait::async_trait]
impl Strategy for Deployment {
    fn default(&self, obj: &mut Value) {
        object(obj, "status");
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        if let Some(strategy) = object(spec, "strategy") {
            set_default(strategy, "type", "RollingUpdate");
            if text(strategy, "/type") == "RollingUpdate"
                && let Some(rolling) = object(strategy, "rollingUpdate")
            {
                set_default(rolling, "maxUnavailable", "25%");
                set_default(rolling, "maxSurge", "25%");
            }
        }
        workload::default_template(spec);
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
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

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("status");
        let counts = [
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "collisionCount",
        ];
        workload::status(&mut errors, new, &counts, &[]);
        let replicas = number(new, "/status/replicas");
        let bound = |errors: &mut Vec<Error>, field: &'static str, most: i64, words: &str| {
            let n = number(new, &format!("/status/{field}"));
            if n > most {
                errors.push(Error::invalid(&path.child(field), n, words));
            }
        };
        for field in ["updatedReplicas", "readyReplicas", "availableReplicas"] {
            bound(&mut errors, field, replicas, "cannot be greater than status.replicas");
        }
        bound(
            &mut errors,
            "availableReplicas",
            number(new, "/status/readyReplicas"),
            "cannot be greater than readyReplicas",
        );
        let (count, before) = (number(new, "/status/collisionCount"), number(old, "/status/collisionCount"));
        if present(old, "/status/collisionCount") && count < before {
            errors.push(Error::invalid(&path.child("collisionCount"), count, "cannot be decremented"));
        }
        // Kubernetes says each of these once.
        let mut seen: Vec<String> = Vec::new();
        errors.retain(|e| {
            let text = e.to_string();
            !seen.contains(&text) && {
                seen.push(text);
                true
            }
        });
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        crate::pod::warnings::pod_spec(at(obj, "/spec/template/spec"), "spec.template.spec")
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            table::name(obj),
            format!("{}/{}", number(obj, "/status/readyReplicas"), number(obj, "/spec/replicas")).into(),
            number(obj, "/status/updatedReplicas").into(),
            number(obj, "/status/availableReplicas").into(),
            table::age(obj, now),
            table::containers(obj, "/name"),
            table::containers(obj, "/image"),
            table::selector(at(obj, "/spec/selector")).into(),
        ]
    }
}

fn spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    check::non_negative(errors, &path.child("replicas"), at(spec, "/replicas"));
    workload::selected_template(errors, spec, path, "ReplicaSet");
    strategy(errors, at(spec, "/strategy"), &path.child("strategy"));
    check::non_negative(errors, &path.child("minReadySeconds"), at(spec, "/minReadySeconds"));
    check::non_negative(errors, &path.child("revisionHistoryLimit"), at(spec, "/revisionHistoryLimit"));
    if let Some(deadline) = at(spec, "/progressDeadlineSeconds").as_i64() {
        let path = path.child("progressDeadlineSeconds");
        check::non_negative(errors, &path, &deadline.into());
        if deadline <= number(spec, "/minReadySeconds") {
            errors.push(Error::invalid(&path, deadline, "must be greater than minReadySeconds"));
        }
    }
}

fn strategy(errors: &mut Vec<Error>, strategy: &Value, path: &Path) {
    let rolling = at(strategy, "/rollingUpdate");
    let at_rolling = path.child("rollingUpdate");
    match text(strategy, "/type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors.push(Error::forbidden(
                    &at_rolling,
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => rolling_update(errors, rolling, &at_rolling),
        other => {
            errors.push(Error::not_supported(&path.child("type"), other, &["Recreate", "RollingUpdate"]))
        }
    }
}

fn rolling_update(errors: &mut Vec<Error>, rolling: &Value, path: &Path) {
    if rolling.is_null() {
        errors.push(Error::required(path, "this should be defaulted and never be nil"));
        return;
    }
    let (unavailable, surge) = (at(rolling, "/maxUnavailable"), at(rolling, "/maxSurge"));
    check::int_or_percent(errors, &path.child("maxUnavailable"), unavailable);
    check::int_or_percent(errors, &path.child("maxSurge"), surge);
    let zero = |v: &Value| check::percent(v) == Some(0) || v.as_i64() == Some(0);
    if zero(unavailable) && zero(surge) {
        errors.push(Error::invalid(
            &path.child("maxUnavailable"),
            unavailable.clone(),
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    check::at_most_100_percent(errors, &path.child("maxUnavailable"), unavailable);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(change: impl Fn(&mut Value)) -> Value {
        let mut d = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        change(&mut d);
        Deployment.default(&mut d);
        d
    }

    #[test]
    fn table() {
        let words =
            |d: &Value| Deployment.validate_create(d).iter().map(ToString::to_string).collect::<Vec<_>>();
        let good = deployment(|_| ());
        assert_eq!(words(&good), Vec::<String>::new());
        assert_eq!(
            good["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        let bad = deployment(|d| d["spec"]["replicas"] = json!(-1));
        assert_eq!(words(&bad), ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]);
        let bad = deployment(|d| {
            d["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}})
        });
        assert_eq!(
            words(&bad),
            [
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0"
            ]
        );
        let bad = deployment(|d| d["spec"]["template"]["spec"]["restartPolicy"] = json!("Never"));
        assert_eq!(
            words(&bad),
            ["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""]
        );
    }

    #[test]
    fn selector_is_immutable() {
        let (old, new) = (
            deployment(|_| ()),
            deployment(|d| {
                d["spec"]["selector"]["matchLabels"]["a"] = json!("c");
                d["spec"]["template"]["metadata"]["labels"]["a"] = json!("c");
            }),
        );
        let errors = Deployment.validate_update(&new, &old);
        assert_eq!(errors.len(), 1);
        assert_eq!(
            errors[0].to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"
        );
    }
}
