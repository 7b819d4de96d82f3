//! CSIStorageCapacity: how much room a driver has in a part of the cluster.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::value::{at, text};
use crate::{check, table};

static COLUMNS: [Column; 2] = [table::NAME, table::CREATED_AT];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(CsiStorageCapacity);
    ResourceDef::new(super::GROUP, "v1", "CSIStorageCapacity", "csistoragecapacities", strategy)
}

struct CsiStorageCapacity;

impl Strategy for CsiStorageCapacity {
    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        check::label_selector(&mut errors, &Path::new("nodeTopology"), at(obj, "/nodeTopology"));
        let class = text(obj, "/storageClassName");
        check::words(&mut errors, &Path::new("storageClassName"), class, rules::dns1123_subdomain(class));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        for field in ["nodeTopology", "storageClassName"] {
            let pointer = format!("/{field}");
            check::immutable(&mut errors, &Path::new(field), at(new, &pointer), at(old, &pointer));
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
