//! PodTemplate.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::value::at;
use crate::{table, workload};

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("Containers", "Names of each container in the template."),
    table::string("Images", "Images referenced by each container in the template."),
    table::string("Pod Labels", "The labels for the pod template."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("", "v1", "PodTemplate", "podtemplates", Arc::new(PodTemplate))
}

struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, obj: &mut Value) {
        workload::default_template(obj);
    }

    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        workload::template(&mut errors, at(obj, "/template"), &Path::new("template"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        let spec = at(obj, "/template/spec");
        vec![
            table::name(obj),
            table::names_of(spec, "/name"),
            table::names_of(spec, "/image"),
            table::labels(obj, "/template/metadata/labels"),
        ]
    }
}
