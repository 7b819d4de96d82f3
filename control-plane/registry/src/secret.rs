//! Secret. `stringData` is folded into `data` on every write, and never stored.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::field::{Error, Path, root};
use coracle_api::meta::{self, validation};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

use crate::config_map::SIZE_MAX;
use crate::value::{at, entries, flag, object, present, remove, same, set, set_default, text};
use crate::{check, table};

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string(
        "Type",
        "Used to facilitate programmatic handling of secret data. More info: https://kubernetes.io/docs/concepts/configuration/secret/#secret-types",
    ),
    table::string(
        "Data",
        "Data contains the secret data. Each key must consist of alphanumeric characters, '-', '_' or '.'. The serialized form of the secret data is a base64 encoded string, representing the arbitrary (possibly non-string) data value here. Described in https://tools.ietf.org/html/rfc4648#section-4",
    ),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("", "v1", "Secret", "secrets", Arc::new(Secret))
}

struct Secret;

impl Strategy for Secret {
    fn has_status(&self) -> bool {
        false
    }

    fn default(&self, obj: &mut Value) {
        set_default(obj, "type", "Opaque");
        let Some(Value::Object(strings)) = remove(obj, "stringData") else { return };
        if strings.is_empty() {
            return;
        }
        let Some(data) = object(obj, "data") else { return };
        for (key, value) in strings {
            set(data, &key, STANDARD.encode(value.as_str().unwrap_or_default()));
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let data = Path::new("data");
        let mut size = 0;
        for (key, value) in entries(obj, "/data") {
            errors.extend(
                validation::config_map_key(key)
                    .into_iter()
                    .map(|w| Error::invalid(&data.key(key), key.as_str(), w)),
            );
            size += value.as_str().map_or(0, |v| v.len() / 4 * 3);
        }
        if size > SIZE_MAX {
            errors.push(Error::too_long(&data, SIZE_MAX));
        }
        check_type(&mut errors, obj, &data);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        check::immutable(&mut errors, &Path::new("type"), at(new, "/type"), at(old, "/type"));
        if flag(old, "/immutable") {
            const WORDS: &str = "field is immutable when `immutable` is set";
            if !flag(new, "/immutable") {
                errors.push(Error::forbidden(&Path::new("immutable"), WORDS));
            }
            if !same(at(new, "/data"), at(old, "/data")) {
                errors.push(Error::forbidden(&Path::new("data"), WORDS));
            }
        }
        errors.extend(self.validate_create(new));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let keys = entries(obj, "/data").count();
        vec![table::name(obj), text(obj, "/type").into(), keys.into(), table::age(obj, now)]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        (path == "type").then(|| text(obj, "/type").to_string())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["type"]
    }
}

/// What a Secret of a known type must hold.
fn check_type(errors: &mut Vec<Error>, obj: &Value, data: &Path) {
    let has = |key: &str| at(obj, "/data").get(key).is_some();
    let require = |errors: &mut Vec<Error>, key: &str| {
        if !has(key) {
            errors.push(Error::required(&data.key(key), ""));
        }
    };
    match text(obj, "/type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if meta::annotation(obj, key).is_none_or(str::is_empty) {
                errors.push(Error::required(&root().child("metadata").child("annotations").key(key), ""));
            }
        }
        "kubernetes.io/dockercfg" => json_value(errors, obj, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_value(errors, obj, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require(errors, "username");
            require(errors, "password");
        }
        "kubernetes.io/ssh-auth" => {
            let pointer = "/data/ssh-privatekey";
            if !present(obj, pointer) || text(obj, pointer).is_empty() {
                errors.push(Error::required(&data.key("ssh-privatekey"), ""));
            }
        }
        "kubernetes.io/tls" => {
            require(errors, "tls.crt");
            require(errors, "tls.key");
        }
        _ => {}
    }
}

/// A key whose value must be JSON.
fn json_value(errors: &mut Vec<Error>, obj: &Value, data: &Path, key: &str) {
    let path = data.key(key);
    let Some(value) = at(obj, "/data").get(key).and_then(Value::as_str) else {
        errors.push(Error::required(&path, ""));
        return;
    };
    let decoded = STANDARD.decode(value).unwrap_or_default();
    if let Some(words) = coracle_api::schema::json_syntax_error(&decoded) {
        errors.push(Error::invalid(&path, "<secret contents redacted>", words));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn string_data_is_folded_in() {
        let mut s = json!({"data": {"a": "aGVsbG8="}, "stringData": {"b": "plain"}});
        Secret.default(&mut s);
        assert_eq!(s, json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "cGxhaW4="}}));
    }

    #[test]
    fn types_demand_keys() {
        let table = [
            (json!({"type": "kubernetes.io/tls", "data": {}}), 2),
            (json!({"type": "kubernetes.io/basic-auth", "data": {"username": ""}}), 0),
            (json!({"type": "kubernetes.io/ssh-auth"}), 1),
            (json!({"type": "kubernetes.io/service-account-token"}), 1),
            (json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}), 0),
            (
                json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "bm90anNvbg=="}}),
                1,
            ),
            (json!({"type": "Opaque"}), 0),
        ];
        for (secret, count) in table {
            assert_eq!(Secret.validate_create(&secret).len(), count, "{secret}");
        }
    }
}
