//! CSINode: the drivers of a node.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::check;
use crate::table;
use crate::value::{at, items, object, set_default, text};

static COLUMNS: [Column; 3] =
    [table::NAME, table::integer("Drivers", "The number of CSI drivers on the node."), table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "CSINode", "csinodes", Arc::new(CsiNode)).cluster_scoped()
}

struct CsiNode;

impl Strategy for CsiNode {
    fn default(&self, obj: &mut Value) {
        if let Some(spec) = object(obj, "spec") {
            set_default(spec, "drivers", json!([]));
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut seen = Vec::new();
        for (i, driver) in items(obj, "/spec/drivers").iter().enumerate() {
            let path = Path::new("spec").child("drivers").index(i);
            let name = text(driver, "/name");
            super::csi_driver::driver_name(&mut errors, name, &path.child("name"));
            if seen.contains(&name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            seen.push(name);
            if text(driver, "/nodeID").is_empty() {
                errors.push(Error::required(&path.child("nodeID"), ""));
            }
            let path = path.child("allocatable").child("count");
            check::non_negative(&mut errors, &path, at(driver, "/allocatable/count"));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), items(obj, "/spec/drivers").len().into(), table::age(obj, now)]
    }
}
