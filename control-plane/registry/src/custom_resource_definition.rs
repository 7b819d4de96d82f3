//! CustomResourceDefinition of `apiextensions.k8s.io`: there are none, and none can be made yet.
//!
//! kubectl lists them to explain a kind that it does not find. The list is empty and read-only, so that it gets an honest answer;
//! a write is answered with 405.

use std::sync::Arc;

use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::table;
use crate::value::text;

static COLUMNS: [Column; 2] = [table::NAME, table::CREATED_AT];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        Arc::new(CustomResourceDefinition),
    )
    .cluster_scoped()
    .short_names(&["crd", "crds"])
    .categories(&["api-extensions"])
    .verbs(&["get", "list", "watch"])
}

struct CustomResourceDefinition;

impl Strategy for CustomResourceDefinition {
    fn has_status(&self) -> bool {
        false
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), text(obj, "/metadata/creationTimestamp").into()]
    }
}
