//! The rules that names, label keys and label values obey, in Kubernetes' words. Each function returns what is wrong with
//! a value; empty means valid. Rules: RFC 1123, RFC 1035 and "Labels and Selectors" of the Kubernetes documentation.

use serde_json::{Map, Value};

use crate::field::{Error, Path};

/// The longest DNS-1123 label, in bytes.
pub const LABEL_MAX: usize = 63;
/// The longest DNS-1123 subdomain, in bytes.
pub const SUBDOMAIN_MAX: usize = 253;
/// The most bytes that all annotations of an object may take together.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;

const LABEL_WORDS: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_WORDS: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_WORDS: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_WORDS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_WORDS: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY_WORDS: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(s: &str) -> bool {
    let b = s.as_bytes();
    b.first().is_some_and(|c| lower(*c))
        && b.last().is_some_and(|c| lower(*c))
        && b.iter().all(|c| lower(*c) || *c == b'-')
}

fn is_subdomain(s: &str) -> bool {
    s.split('.').all(is_label)
}

fn is_qualified(s: &str) -> bool {
    let b = s.as_bytes();
    b.first().is_some_and(u8::is_ascii_alphanumeric)
        && b.last().is_some_and(u8::is_ascii_alphanumeric)
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// A DNS-1123 label: most namespaced names that become host names.
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !is_label(value) {
        wrong.push(if is_subdomain(value) { "must not contain dots".into() } else { LABEL_WORDS.into() });
    }
    wrong
}

/// A DNS-1123 subdomain: the names of most objects.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    if !is_subdomain(value) {
        wrong.push(SUBDOMAIN_WORDS.into());
    }
    wrong
}

/// A DNS-1035 label: the names of Services before 1.34.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > LABEL_MAX {
        wrong.push(too_long(LABEL_MAX));
    }
    if !(is_label(value) && value.as_bytes().first().is_some_and(u8::is_ascii_lowercase)) {
        wrong.push(DNS1035_WORDS.into());
    }
    wrong
}

/// A name that is one segment of a URL path: names of RBAC objects.
pub fn path_segment(value: &str) -> Vec<String> {
    match value {
        "." | ".." => vec![format!("may not be '{value}'")],
        _ => ["/", "%"]
            .iter()
            .filter(|c| value.contains(**c))
            .map(|c| format!("may not contain '{c}'"))
            .collect(),
    }
}

/// A qualified name: `name` or `prefix.example.com/name`. Label keys and resource names.
pub fn qualified_name(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = match value.split('/').collect::<Vec<_>>().as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".into());
            } else {
                wrong.extend(dns1123_subdomain(prefix).into_iter().map(|w| format!("prefix part {w}")));
            }
            *name
        }
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED_WORDS} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        wrong.push(format!("name part must be no more than {LABEL_MAX} bytes"));
    }
    if !is_qualified(name) {
        wrong.push(format!("name part {QUALIFIED_WORDS}"));
    }
    wrong
}

/// A label key.
pub fn label_key(value: &str) -> Vec<String> {
    qualified_name(value)
}

/// A label value; may be empty.
pub fn label_value(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > LABEL_MAX {
        wrong.push(format!("must be no more than {LABEL_MAX} bytes"));
    }
    if !value.is_empty() && !is_qualified(value) {
        wrong.push(VALUE_WORDS.into());
    }
    wrong
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        wrong.push(too_long(SUBDOMAIN_MAX));
    }
    let fits = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(fits) {
        wrong.push(CONFIG_KEY_WORDS.into());
    }
    match value {
        "." => wrong.push("must not be '.'".into()),
        ".." => wrong.push("must not be '..'".into()),
        v if v.starts_with("..") => wrong.push("must not start with '..'".into()),
        _ => {}
    }
    wrong
}

/// Errors of a map of labels at `path`: keys and values.
pub fn labels(labels: Option<&Value>, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errors.extend(label_key(key).into_iter().map(|w| Error::invalid(path, key.as_str(), w)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(label_value(value).into_iter().map(|w| Error::invalid(path, value, w)));
    }
    errors
}

/// Bytes of all keys and values, which [`ANNOTATIONS_MAX`] bounds.
pub fn annotations_size(annotations: &Map<String, Value>) -> usize {
    annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum()
}

/// Errors of a map of annotations at `path`: keys, and the size of all together.
pub fn annotations(annotations: Option<&Value>, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let annotations = annotations.and_then(Value::as_object);
    for key in annotations.into_iter().flatten().map(|(key, _)| key) {
        // Annotation keys are compared without case: Kubernetes lowers them before it checks them.
        let lowered = key.to_ascii_lowercase();
        errors.extend(qualified_name(&lowered).into_iter().map(|w| Error::invalid(path, key.as_str(), w)));
    }
    if annotations.is_some_and(|all| annotations_size(all) > ANNOTATIONS_MAX) {
        errors.push(Error::too_long(path, ANNOTATIONS_MAX));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(dns1123_label("a-1").is_empty());
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(dns1123_label("Bad"), [LABEL_WORDS]);
        assert_eq!(dns1123_label(""), [LABEL_WORDS]);
        assert_eq!(dns1123_label(&"n".repeat(64)), ["must be no more than 63 characters"]);
        assert!(dns1123_subdomain("a.b-c.d").is_empty());
        assert_eq!(dns1123_subdomain("a..b"), [SUBDOMAIN_WORDS]);
        assert_eq!(dns1035_label("1a"), [DNS1035_WORDS]);
        assert!(dns1035_label("a1").is_empty());
    }

    #[test]
    fn label_keys_and_values() {
        assert!(label_key("app.kubernetes.io/name").is_empty());
        assert_eq!(label_key("a b"), [format!("name part {QUALIFIED_WORDS}")]);
        assert_eq!(label_key("/a"), ["prefix part must be non-empty"]);
        assert_eq!(label_key("a/").first().map(String::as_str), Some("name part must be non-empty"));
        assert_eq!(label_key("a/b/c").len(), 1);
        assert!(label_value("").is_empty());
        assert_eq!(label_value(&"x".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(label_value("a b"), [VALUE_WORDS]);
    }

    #[test]
    fn config_keys() {
        assert!(config_map_key("a.b_c-D").is_empty());
        assert_eq!(config_map_key(".."), ["must not be '..'"]);
        assert_eq!(config_map_key("bad key"), [CONFIG_KEY_WORDS]);
    }
}
