//! CSIDriver.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, flag, items, object, present, set, set_default, text};
use crate::{check, table};

const NAME_MAX: usize = 63;
const MODES: [&str; 2] = ["Ephemeral", "Persistent"];
const POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];

const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "boolean", "", description, 0)
}

static COLUMNS: [Column; 8] = [
    table::NAME,
    boolean("AttachRequired", "Whether volumes must be attached before they are mounted."),
    boolean("PodInfoOnMount", "Whether the driver wants to know of the pod."),
    boolean("StorageCapacity", "Whether the scheduler is to look at capacities."),
    table::string("TokenRequests", "Audiences of the tokens that the driver needs."),
    boolean("RequiresRepublish", "Whether volumes are published again from time to time."),
    table::string("Modes", "Kinds of volumes that the driver supports."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "CSIDriver", "csidrivers", Arc::new(CsiDriver)).cluster_scoped()
}

/// Errors of the name of a driver.
pub fn driver_name(errors: &mut Vec<Error>, name: &str, path: &Path) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
    } else if name.len() > NAME_MAX {
        errors.push(Error::too_long(path, NAME_MAX));
    } else {
        check::words(errors, path, name, rules::dns1123_subdomain(&name.to_lowercase()));
    }
}

struct CsiDriver;

impl Strategy for CsiDriver {
    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        for (field, value) in [
            ("attachRequired", true),
            ("podInfoOnMount", false),
            ("storageCapacity", false),
            ("requiresRepublish", false),
            ("seLinuxMount", false),
        ] {
            set_default(spec, field, value);
        }
        set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if items(spec, "/volumeLifecycleModes").is_empty() {
            set(spec, "volumeLifecycleModes", json!(["Persistent"]));
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let spec = Path::new("spec");
        let name = text(obj, "/metadata/name");
        driver_name(&mut errors, name, &Path::new("metadata").child("name"));
        let policy = text(obj, "/spec/fsGroupPolicy");
        check::one_of(&mut errors, &spec.child("fsGroupPolicy"), policy, &POLICIES, true);
        for mode in items(obj, "/spec/volumeLifecycleModes") {
            let mode = mode.as_str().unwrap_or_default();
            check::one_of(&mut errors, &spec.child("volumeLifecycleModes"), mode, &MODES, true);
        }
        let mut audiences = Vec::new();
        for (i, token) in items(obj, "/spec/tokenRequests").iter().enumerate() {
            let path = spec.child("tokenRequests").index(i);
            let audience = text(token, "/audience");
            if audiences.contains(&audience) {
                errors.push(Error::duplicate(&path.child("audience"), audience));
            }
            audiences.push(audience);
            if present(token, "/expirationSeconds") && crate::value::number(token, "/expirationSeconds") < 600
            {
                let words = "may not specify a duration less than 10 minutes";
                let value = at(token, "/expirationSeconds").clone();
                errors.push(Error::invalid(&path.child("expirationSeconds"), value, words));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let spec = Path::new("spec");
        for field in ["attachRequired", "volumeLifecycleModes"] {
            let pointer = format!("/spec/{field}");
            check::immutable(&mut errors, &spec.child(field), at(new, &pointer), at(old, &pointer));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let list = |pointer: &str| -> Vec<&str> {
            items(obj, pointer).iter().map(|v| v.as_str().unwrap_or(text(v, "/audience"))).collect()
        };
        let tokens = list("/spec/tokenRequests");
        vec![
            table::name(obj),
            flag(obj, "/spec/attachRequired").into(),
            flag(obj, "/spec/podInfoOnMount").into(),
            flag(obj, "/spec/storageCapacity").into(),
            if tokens.is_empty() { "<unset>".into() } else { tokens.join(",").into() },
            flag(obj, "/spec/requiresRepublish").into(),
            list("/spec/volumeLifecycleModes").join(",").into(),
            table::age(obj, now),
        ]
    }
}
