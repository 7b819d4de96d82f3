//! LimitRange: bounds and defaults of what each pod, container or claim of a namespace asks for. Admission enforces it.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::quantity::Quantity;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::table;
use crate::value::{at, entries, items, items_mut, object, set_default, text};

static COLUMNS: [Column; 2] = [table::NAME, table::CREATED_AT];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("", "v1", "LimitRange", "limitranges", Arc::new(LimitRange)).short_names(&["limits"])
}

struct LimitRange;

/// A number that is said of each resource: `min`, `max` and so on.
const PARTS: [&str; 5] = ["max", "min", "defaultRequest", "default", "maxLimitRequestRatio"];

impl Strategy for LimitRange {
    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        for limit in items_mut(spec, "limits") {
            if text(limit, "/type") != "Container" {
                continue;
            }
            // The most is the default limit, the default limit the default request; the least is it where there is neither.
            for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
                let amounts = at(limit, &format!("/{from}")).clone();
                if amounts.as_object().is_none_or(|a| a.is_empty()) {
                    continue;
                }
                let Some(into) = object(limit, to) else { continue };
                for (name, amount) in entries(&amounts, "") {
                    set_default(into, name, amount.clone());
                }
            }
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("spec").child("limits");
        let mut seen = Vec::new();
        for (i, limit) in items(obj, "/spec/limits").iter().enumerate() {
            let path = path.index(i);
            let kind = text(limit, "/type");
            if seen.contains(&kind) {
                errors.push(Error::duplicate(&path.child("type"), kind));
            }
            seen.push(kind);
            one(&mut errors, limit, kind, &path);
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), text(obj, "/metadata/creationTimestamp").into()]
    }
}

fn one(errors: &mut Vec<Error>, limit: &Value, kind: &str, path: &Path) {
    if kind == "Pod" {
        for field in ["default", "defaultRequest"] {
            if entries(limit, &format!("/{field}")).next().is_some() {
                errors
                    .push(Error::forbidden(&path.child(field), "may not be specified when `type` is 'Pod'"));
            }
        }
    }
    if kind == "PersistentVolumeClaim" {
        let any = |part: &str| at(limit, &format!("/{part}/storage")).is_string();
        if !any("min") && !any("max") {
            errors.push(Error::required(
                &path.child("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            ));
        }
    }
    let mut names: Vec<&String> =
        PARTS.iter().flat_map(|p| entries(limit, &format!("/{p}")).map(|(name, _)| name)).collect();
    names.sort();
    names.dedup();
    for name in names {
        amounts(errors, limit, name, path);
    }
}

/// The numbers of one resource must not contradict each other.
fn amounts(errors: &mut Vec<Error>, limit: &Value, name: &str, path: &Path) {
    let part = |part: &str| -> Option<(Quantity, &str)> {
        let text = at(limit, &format!("/{part}")).get(name)?.as_str()?;
        Some((Quantity::parse(text).ok()?, text))
    };
    let (max, min) = (part("max"), part("min"));
    let (request, default) = (part("defaultRequest"), part("default"));
    let mut wrong = |field: &'static str, shown: &str, words: String| {
        errors.push(Error::invalid(&path.child(field).key(name), shown, words));
    };
    if let (Some((min, a)), Some((max, b))) = (min, max)
        && min > max
    {
        wrong("min", a, format!("min value {a} is greater than max value {b}"));
    }
    if let (Some((request, a)), Some((min, b))) = (request, min)
        && request < min
    {
        wrong("defaultRequest", a, format!("min value {b} is greater than default request value {a}"));
    }
    if let (Some((request, a)), Some((max, b))) = (request, max)
        && request > max
    {
        wrong("defaultRequest", a, format!("default request value {a} is greater than max value {b}"));
    }
    if let (Some((request, a)), Some((default, b))) = (request, default)
        && request > default
    {
        wrong(
            "defaultRequest",
            a,
            format!("default request value {a} is greater than default limit value {b}"),
        );
    }
    if let (Some((default, a)), Some((min, b))) = (default, min)
        && default < min
    {
        wrong("default", b, format!("min value {b} is greater than default value {a}"));
    }
    if let (Some((default, a)), Some((max, b))) = (default, max)
        && default > max
    {
        wrong("default", b, format!("default value {a} is greater than max value {b}"));
    }
    if let Some((ratio, a)) = part("maxLimitRequestRatio")
        && ratio.milli_value() < 1000
    {
        wrong("maxLimitRequestRatio", a, format!("ratio {a} is less than 1"));
    }
}
