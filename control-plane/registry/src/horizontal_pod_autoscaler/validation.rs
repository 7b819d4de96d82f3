//! What may be wrong with the spec of a HorizontalPodAutoscaler.

use coracle_api::field::{Error, Path};
use coracle_api::quantity::Quantity;
use serde_json::Value;

use crate::check;
use crate::value::{at, items, maybe_number, number, present, text};

const KINDS: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
/// Most seconds of a policy's period and of stabilization.
const PERIOD_MAX: i64 = 1800;
const WINDOW_MAX: i64 = 3600;

/// Everything wrong with a spec.
pub fn spec(spec: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let (least, most) = (maybe_number(spec, "/minReplicas"), number(spec, "/maxReplicas"));
    if let Some(least) = least.filter(|n| *n < 1) {
        errors.push(Error::invalid(&path.child("minReplicas"), least, "must be greater than or equal to 1"));
    }
    let at_most = path.child("maxReplicas");
    if most < 1 {
        errors.push(Error::required(&at_most, "must be set and greater than 0"));
    }
    if least.is_some_and(|least| most < least) {
        errors.push(Error::invalid(&at_most, most, "must be greater than or equal to `minReplicas`"));
    }
    reference(&mut errors, at(spec, "/scaleTargetRef"), &path.child("scaleTargetRef"), true);
    for (i, m) in items(spec, "/metrics").iter().enumerate() {
        metric(&mut errors, m, &path.child("metrics").index(i));
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = at(spec, &format!("/behavior/{direction}"));
        if !rules.is_null() {
            behavior(&mut errors, rules, &path.child("behavior").child(direction));
        }
    }
    errors
}

fn reference(errors: &mut Vec<Error>, reference: &Value, path: &Path, group: bool) {
    for field in ["kind", "name"] {
        let value = text(reference, &format!("/{field}"));
        let path = path.child(field);
        if value.is_empty() {
            errors.push(Error::required(&path, ""));
        } else {
            check::words(errors, &path, value, coracle_api::meta::validation::path_segment(value));
        }
    }
    let version = text(reference, "/apiVersion");
    // The core group has one kind that scales.
    let core = version == "v1" && text(reference, "/kind") == "ReplicationController";
    if group && !version.contains('/') && !core {
        errors.push(Error::invalid(&path.child("apiVersion"), version, "apiVersion must specify API group"));
    }
}

fn metric(errors: &mut Vec<Error>, metric: &Value, path: &Path) {
    let kind = text(metric, "/type");
    let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    let given: Vec<&str> =
        KINDS.iter().filter(|(_, field)| present(metric, &format!("/{field}"))).map(|(_, f)| *f).collect();
    let Some((_, field)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        if kind.is_empty() {
            errors.push(Error::required(&path.child("type"), "must specify a metric source type"));
        } else {
            // Kubernetes says this twice.
            let error = Error::not_supported(&path.child("type"), kind, &names);
            errors.extend([error.clone(), error]);
        }
        return;
    };
    if !given.contains(field) {
        let words = "must populate information for the given metric source";
        errors.push(Error::required(&path.child(*field), words));
        return;
    }
    for other in given.iter().filter(|g| *g != field) {
        let words = "must populate the given metric source only";
        errors.push(Error::forbidden(&path.child(other.to_string()), words));
    }
    source(errors, at(metric, &format!("/{field}")), kind, &path.child(*field));
}

fn source(errors: &mut Vec<Error>, source: &Value, kind: &str, path: &Path) {
    let resource = matches!(kind, "Resource" | "ContainerResource");
    if resource && text(source, "/name").is_empty() {
        errors.push(Error::required(&path.child("name"), "must specify a resource name"));
    }
    if kind == "ContainerResource" && text(source, "/container").is_empty() {
        errors.push(Error::required(&path.child("container"), "must specify a container name"));
    }
    if kind == "Object" {
        reference(errors, at(source, "/describedObject"), &path.child("describedObject"), false);
    }
    if !resource && text(source, "/metric/name").is_empty() {
        errors.push(Error::required(&path.child("metric").child("name"), "must specify a metric name"));
    }
    let (target, path) = (at(source, "/target"), path.child("target"));
    let kinds = ["AverageValue", "Utilization", "Value"];
    check::one_of(errors, &path.child("type"), text(target, "/type"), &kinds, true);
    for field in ["value", "averageValue"] {
        let amount = text(target, &format!("/{field}"));
        if !amount.is_empty() && Quantity::parse(amount).is_ok_and(|q| q.sign() != 1) {
            errors.push(Error::invalid(&path.child(field), amount, "must be positive"));
        }
    }
    let percent = maybe_number(target, "/averageUtilization");
    if let Some(n) = percent.filter(|n| *n < 1) {
        errors.push(Error::invalid(&path.child("averageUtilization"), n, "must be greater than 0"));
    }
    let (value, average) = (present(target, "/value"), present(target, "/averageValue"));
    if resource {
        if percent.is_some() && average {
            let words = "may not set both a target raw value and a target utilization";
            errors.push(Error::forbidden(&path.child("averageValue"), words));
        } else if percent.is_none() && !average {
            let words = "must set either a target raw value or a target utilization";
            errors.push(Error::required(&path.child("averageUtilization"), words));
        }
    } else if kind == "Pods" && !average {
        errors.push(Error::required(
            &path.child("averageValue"),
            "must specify a positive target averageValue",
        ));
    } else if kind != "Pods" && !average && !value {
        let words = "must set either a target value for metric or a per-pod target";
        errors.push(Error::required(&path.child("averageValue"), words));
    }
}

fn behavior(errors: &mut Vec<Error>, rules: &Value, path: &Path) {
    if let Some(window) = maybe_number(rules, "/stabilizationWindowSeconds") {
        let path = path.child("stabilizationWindowSeconds");
        check::non_negative(errors, &path, &window.into());
        if window > WINDOW_MAX {
            errors.push(Error::invalid(&path, window, format!("must be less than or equal to {WINDOW_MAX}")));
        }
    }
    let select = text(rules, "/selectPolicy");
    check::one_of(errors, &path.child("selectPolicy"), select, &["Disabled", "Max", "Min"], false);
    for (i, policy) in items(rules, "/policies").iter().enumerate() {
        let path = path.child("policies").index(i);
        check::one_of(errors, &path.child("type"), text(policy, "/type"), &["Percent", "Pods"], true);
        for (field, most) in [("value", i64::MAX), ("periodSeconds", PERIOD_MAX)] {
            let (n, path) = (number(policy, &format!("/{field}")), path.child(field));
            if n <= 0 {
                errors.push(Error::invalid(&path, n, "must be greater than zero"));
            } else if n > most {
                errors.push(Error::invalid(&path, n, format!("must be less than or equal to {most}")));
            }
        }
    }
}
