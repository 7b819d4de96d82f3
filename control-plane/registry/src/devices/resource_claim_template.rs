//! ResourceClaimTemplate: from which each pod gets a claim of its own.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::claim;
use crate::value::at;
use crate::{check, table};

static COLUMNS: [Column; 2] = [table::NAME, table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(ResourceClaimTemplate);
    ResourceDef::new(super::GROUP, "v1", "ResourceClaimTemplate", "resourceclaimtemplates", strategy)
}

struct ResourceClaimTemplate;

impl Strategy for ResourceClaimTemplate {
    fn default(&self, obj: &mut Value) {
        if let Some(spec) = obj.pointer_mut("/spec/spec") {
            claim::defaults(spec);
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        claim::check(&mut errors, at(obj, "/spec/spec"), &Path::new("spec").child("spec"));
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
        vec![table::name(obj), table::age(obj, now)]
    }
}
