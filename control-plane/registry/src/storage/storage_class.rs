//! StorageClass.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::value::{at, entries, flag, same, set_default, text};
use crate::{check, table};

/// Most parameters, and most bytes of them.
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_SIZE_MAX: usize = 256 * 1024;

static COLUMNS: [Column; 6] = [
    table::NAME,
    table::string("Provisioner", "The type of the provisioner."),
    table::string("ReclaimPolicy", "The reclaim policy for volumes of this class."),
    table::string("VolumeBindingMode", "When volumes are provisioned and bound."),
    table::string("AllowVolumeExpansion", "Whether the class allows volumes to grow."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "StorageClass", "storageclasses", Arc::new(StorageClass))
        .cluster_scoped()
        .short_names(&["sc"])
}

struct StorageClass;

impl Strategy for StorageClass {
    fn default(&self, obj: &mut Value) {
        set_default(obj, "reclaimPolicy", "Delete");
        set_default(obj, "volumeBindingMode", "Immediate");
    }

    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        provisioner(&mut errors, text(obj, "/provisioner"), &Path::new("provisioner"));
        parameters(&mut errors, at(obj, "/parameters"), &Path::new("parameters"));
        let policy = text(obj, "/reclaimPolicy");
        check::one_of(&mut errors, &Path::new("reclaimPolicy"), policy, &["Delete", "Retain"], false);
        let mode = text(obj, "/volumeBindingMode");
        let modes = ["Immediate", "WaitForFirstConsumer"];
        check::one_of(&mut errors, &Path::new("volumeBindingMode"), mode, &modes, true);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        for (field, words) in [
            ("parameters", "updates to parameters are forbidden."),
            ("provisioner", "updates to provisioner are forbidden."),
            ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
        ] {
            let pointer = format!("/{field}");
            if !same(at(new, &pointer), at(old, &pointer)) {
                errors.push(Error::forbidden(&Path::new(field), words));
            }
        }
        let mode = "/volumeBindingMode";
        check::immutable(&mut errors, &Path::new("volumeBindingMode"), at(new, mode), at(old, mode));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let default = meta::annotation(obj, super::DEFAULT_CLASS) == Some("true");
        let name = text(obj, "/metadata/name");
        vec![
            if default { format!("{name} (default)").into() } else { name.into() },
            text(obj, "/provisioner").into(),
            text(obj, "/reclaimPolicy").into(),
            text(obj, "/volumeBindingMode").into(),
            flag(obj, "/allowVolumeExpansion").into(),
            table::age(obj, now),
        ]
    }
}

/// The name of a provisioner or driver: a qualified name, whose case does not matter.
fn provisioner(errors: &mut Vec<Error>, name: &str, path: &Path) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
    } else {
        let wrong = meta::validation::qualified_name(&name.to_lowercase());
        check::words(errors, path, name, wrong);
    }
}

/// Parameters of a class: bounded, with keys.
pub fn parameters(errors: &mut Vec<Error>, parameters: &Value, path: &Path) {
    let mut size = 0;
    let count = parameters.as_object().map_or(0, |p| p.len());
    if count > PARAMETERS_MAX {
        errors.push(Error::too_many(path, count, PARAMETERS_MAX));
        return;
    }
    for (key, value) in entries(parameters, "") {
        if key.is_empty() {
            errors.push(Error::invalid(path, key.as_str(), "field can not be empty."));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > PARAMETERS_SIZE_MAX {
        errors.push(Error::too_long(path, PARAMETERS_SIZE_MAX));
    }
}
