//! VolumeAttributesClass.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::storage_class::parameters;
use crate::value::{at, same, text};
use crate::{check, table};

static COLUMNS: [Column; 3] =
    [table::NAME, table::string("DriverName", "The name of the CSI driver."), table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(VolumeAttributesClass);
    ResourceDef::new(super::GROUP, "v1", "VolumeAttributesClass", "volumeattributesclasses", strategy)
        .cluster_scoped()
        .short_names(&["vac"])
}

struct VolumeAttributesClass;

impl Strategy for VolumeAttributesClass {
    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        super::csi_driver::driver_name(&mut errors, text(obj, "/driverName"), &Path::new("driverName"));
        let path = Path::new("parameters");
        if at(obj, "/parameters").as_object().is_none_or(|p| p.is_empty()) {
            errors.push(Error::required(&path, "must contain at least one key/value pair"));
        }
        parameters(&mut errors, at(obj, "/parameters"), &path);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        for field in ["driverName", "parameters"] {
            let pointer = format!("/{field}");
            if !same(at(new, &pointer), at(old, &pointer)) {
                errors.push(Error::invalid(&Path::new(field), at(new, &pointer).clone(), check::IMMUTABLE));
            }
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), text(obj, "/driverName").into(), table::age(obj, now)]
    }
}
