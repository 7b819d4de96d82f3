//! DeviceClass: devices under a name, with parameters for their driver.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::request;
use crate::table;
use crate::value::items;

static COLUMNS: [Column; 2] = [table::NAME, table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "DeviceClass", "deviceclasses", Arc::new(DeviceClass))
        .cluster_scoped()
}

struct DeviceClass;

impl Strategy for DeviceClass {
    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let spec = Path::new("spec");
        request::selectors(&mut errors, items(obj, "/spec/selectors"), &spec.child("selectors"));
        for (i, config) in items(obj, "/spec/config").iter().enumerate() {
            request::configuration(&mut errors, config, &spec.child("config").index(i));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), table::age(obj, now)]
    }
}
