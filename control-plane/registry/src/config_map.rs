//! ConfigMap.

use coracle_api::field::{Error, Path, root};
use coracle_api::meta::validation;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

use crate::table;
use crate::value::{at, entries, flag, same};

/// The most bytes that keys and values may take together.
pub const SIZE_MAX: usize = 1024 * 1024;

static COLUMNS: [Column; 3] = [
    table::NAME,
    table::string(
        "Data",
        "Data contains the configuration data. Each key must consist of alphanumeric characters, '-', '_' or '.'. Values with non-UTF-8 byte sequences must use the BinaryData field. The keys stored in Data must not overlap with the keys in the BinaryData field, this is enforced during validation process.",
    ),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("", "v1", "ConfigMap", "configmaps", Arc::new(ConfigMap)).short_names(&["cm"])
}

struct ConfigMap;

impl Strategy for ConfigMap {
    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut size = 0;
        let data = Path::new("data");
        for (key, value) in entries(obj, "/data") {
            check_key(&mut errors, &data, key);
            if at(obj, "/binaryData").get(key).is_some() {
                errors.push(Error::invalid(
                    &data.key(key),
                    key.as_str(),
                    "duplicate of key present in binaryData",
                ));
            }
            size += key.len() + value.as_str().map_or(0, str::len);
        }
        for (key, value) in entries(obj, "/binaryData") {
            check_key(&mut errors, &Path::new("binaryData"), key);
            size += key.len() + value.as_str().map_or(0, |v| v.len() / 4 * 3);
        }
        if size > SIZE_MAX {
            errors.push(Error::too_long(&root(), SIZE_MAX));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        if flag(old, "/immutable") {
            const WORDS: &str = "field is immutable when `immutable` is set";
            if !flag(new, "/immutable") {
                errors.push(Error::forbidden(&Path::new("immutable"), WORDS));
            }
            for field in ["data", "binaryData"] {
                let pointer = format!("/{field}");
                if !same(at(new, &pointer), at(old, &pointer)) {
                    errors.push(Error::forbidden(&Path::new(field), WORDS));
                }
            }
        }
        errors.extend(self.validate_create(new));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let keys = entries(obj, "/data").count() + entries(obj, "/binaryData").count();
        vec![table::name(obj), keys.into(), table::age(obj, now)]
    }
}

fn check_key(errors: &mut Vec<Error>, path: &Path, key: &str) {
    errors
        .extend(validation::config_map_key(key).into_iter().map(|w| Error::invalid(&path.key(key), key, w)));
}
