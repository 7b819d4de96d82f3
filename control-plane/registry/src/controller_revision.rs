//! ControllerRevision of `apps`: what a StatefulSet or DaemonSet was at some time. Its data never changes.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::value::{at, number, present, text};
use crate::{check, table};

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("Controller", "Controller of the object"),
    table::string("Revision", "Revision indicates the revision of the state represented by Data."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("apps", "v1", "ControllerRevision", "controllerrevisions", Arc::new(ControllerRevision))
}

struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        if !present(obj, "/data") {
            errors.push(Error::required(&Path::new("data"), "data is mandatory"));
        }
        check::non_negative(&mut errors, &Path::new("revision"), at(obj, "/revision"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        check::immutable(&mut errors, &Path::new("data"), at(new, "/data"), at(old, "/data"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let controller = match meta::controller_of(obj) {
            Some(owner) => {
                let (group, _) = meta::split_api_version(text(owner, "/apiVersion"));
                let kind = text(owner, "/kind").to_lowercase();
                let dot = if group.is_empty() { "" } else { "." };
                format!("{kind}{dot}{group}/{}", text(owner, "/name"))
            }
            None => "<none>".into(),
        };
        vec![
            table::name(obj),
            controller.into(),
            number(obj, "/revision").to_string().into(),
            table::age(obj, now),
        ]
    }
}
