//! Workload: the templates of the pod groups that somebody makes for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::{GROUP, VERSION};
use crate::value::{at, items, text};
use crate::{check, table};

/// Most templates of a workload.
const MOST: usize = 8;

static COLUMNS: [Column; 3] = [
    table::NAME,
    table::string("Pod-Groups", "The templates, and how the pods of each are placed."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(GROUP, VERSION, "Workload", "workloads", Arc::new(Workload))
}

struct Workload;

impl Strategy for Workload {
    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        let controller = at(spec, "/controllerRef");
        if !controller.is_null() {
            for field in ["kind", "name"] {
                if text(controller, &format!("/{field}")).is_empty() {
                    errors.push(Error::required(&path.child("controllerRef").child(field), ""));
                }
            }
        }
        let (templates, path) = (items(spec, "/podGroupTemplates"), path.child("podGroupTemplates"));
        match templates.len() {
            0 => errors.push(Error::required(&path, "must have at least one item")),
            1..=MOST => {}
            given => errors.push(Error::too_many(&path, given, MOST)),
        }
        let mut names = BTreeSet::new();
        for (number, template) in templates.iter().enumerate().take(MOST) {
            let (name, path) = (text(template, "/name"), path.index(number));
            check::words(&mut errors, &path.child("name"), name, rules::dns1123_label(name));
            if !names.insert(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            super::policy(&mut errors, at(template, "/schedulingPolicy"), &path.child("schedulingPolicy"));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        check::immutable(&mut errors, &Path::new("spec"), at(new, "/spec"), at(old, "/spec"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let templates = items(obj, "/spec/podGroupTemplates").iter();
        let words = templates
            .map(|one| format!("{}: {}", text(one, "/name"), super::shown(at(one, "/schedulingPolicy"))));
        vec![table::name(obj), words.collect::<Vec<_>>().join(", ").into(), table::age(obj, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_to_eight_templates_each_with_a_name_of_its_own() {
        let template = |name: &str| json!({ "name": name, "schedulingPolicy": { "basic": {} } });
        let wrong = |templates: Vec<Value>| {
            let workload = json!({ "metadata": { "name": "w" }, "spec": { "podGroupTemplates": templates } });
            Workload.validate_create(&workload).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(wrong((0..8).map(|n| template(&format!("t{n}"))).collect()), [""; 0]);
        assert!(wrong(vec![])[0].contains("spec.podGroupTemplates: Required value"));
        assert!(wrong((0..9).map(|n| template(&format!("t{n}"))).collect())[0].contains("Too many"));
        assert!(
            wrong(vec![template("a"), template("a")])[0].contains("podGroupTemplates[1].name: Duplicate")
        );
        assert!(wrong(vec![template("A b")])[0].contains("podGroupTemplates[0].name"));
    }
}
