//! Sets of fields in the form of `fieldsV1`: `{"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}}`.
//!
//! A field is in the set if its entry is empty or has a `.`; other members lead to fields below it.

use serde_json::{Map, Value};

/// A set of fields.
pub type Fields = Map<String, Value>;

/// The member that says that the field itself is in the set.
pub(super) const SELF: &str = ".";

/// The most fields that are listed.
const MAX_LISTED: usize = 10_000;

fn below(value: &Value) -> Option<&Fields> {
    value.as_object()
}

fn has_self(fields: &Fields) -> bool {
    fields.is_empty() || fields.contains_key(SELF)
}

/// The entry of a field: whether it is in the set itself, and what is below it. `None` for neither.
pub(super) fn entry(own: bool, mut children: Fields) -> Option<Value> {
    if !children.is_empty() {
        children.remove(SELF);
    }
    match (own, children.is_empty()) {
        (false, true) => None,
        (true, false) => {
            children.insert(SELF.into(), Value::Object(Map::new()));
            Some(Value::Object(children))
        }
        _ => Some(Value::Object(children)),
    }
}

/// Everything that is in one of the two.
pub(super) fn union(mut a: Fields, b: &Fields) -> Fields {
    for (key, theirs) in b {
        if key == SELF {
            continue;
        }
        let joined = match (a.remove(key), below(theirs)) {
            (Some(Value::Object(ours)), Some(theirs)) => {
                let own = has_self(&ours) || has_self(theirs);
                entry(own, union(ours, theirs))
            }
            _ => Some(theirs.clone()),
        };
        if let Some(joined) = joined {
            a.insert(key.clone(), joined);
        }
    }
    a
}

/// What is in `a` and not in `b`. A field of `b` takes nothing that is below it.
pub(super) fn difference(a: &Fields, b: &Fields) -> Fields {
    combine(a, b, false)
}

/// What is in both.
pub(super) fn intersection(a: &Fields, b: &Fields) -> Fields {
    combine(a, b, true)
}

fn combine(a: &Fields, b: &Fields, both: bool) -> Fields {
    let mut out = Map::new();
    for (key, ours) in a {
        let Some(ours) = below(ours).filter(|_| key != SELF) else { continue };
        let kept = match b.get(key).and_then(below) {
            Some(theirs) => entry(has_self(ours) && has_self(theirs) == both, combine(ours, theirs, both)),
            None if both => None,
            None => Some(Value::Object(ours.clone())),
        };
        if let Some(kept) = kept {
            out.insert(key.clone(), kept);
        }
    }
    out
}

/// Whether the field itself is in the set.
pub(super) fn contains(fields: &Fields, key: &str) -> bool {
    fields.get(key).and_then(below).is_some_and(has_self)
}

/// What is below a field; `None` for nothing.
pub(super) fn inside<'a>(fields: &'a Fields, key: &str) -> Option<&'a Fields> {
    fields.get(key).and_then(below).filter(|f| f.keys().any(|k| k != SELF))
}

/// The paths of all fields of a set, as error messages write them: `.spec.containers[name="a"].image`.
pub(super) fn paths(fields: &Fields) -> Vec<String> {
    let mut out = Vec::new();
    walk(fields, "", &mut out);
    out
}

fn walk(fields: &Fields, path: &str, out: &mut Vec<String>) {
    let mut all: Vec<(String, &Fields)> = fields
        .iter()
        .filter(|(key, _)| *key != SELF)
        .filter_map(|(key, value)| Some((format!("{path}{}", step(key)), below(value)?)))
        .collect();
    for (path, inner) in &all {
        if has_self(inner) && out.len() < MAX_LISTED {
            out.push(path.clone());
        }
    }
    all.retain(|(_, inner)| !inner.is_empty());
    for (path, inner) in all {
        walk(inner, &path, out);
    }
}

/// One step of a path in words.
pub(super) fn step(key: &str) -> String {
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("i", index)) => format!("[{index}]"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", parts.join(","))
        }
        _ => format!(".{key}"),
    }
}

/// The key of a member of a map.
pub(super) fn field(name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 2);
    key.push_str("f:");
    key.push_str(name);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(value: Value) -> Fields {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn sets() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}}));
        let b = set(json!({"f:a": {"f:b": {}}, "f:e": {}}));
        assert_eq!(
            union(a.clone(), &b),
            set(json!({"f:a": {".": {}, "f:b": {}, "f:c": {}}, "f:d": {}, "f:e": {}}))
        );
        assert_eq!(difference(&a, &b), set(json!({"f:a": {".": {}, "f:c": {}}, "f:d": {}})));
        assert_eq!(difference(&b, &a), set(json!({"f:e": {}})));
        assert_eq!(intersection(&a, &b), set(json!({"f:a": {"f:b": {}}})));
        let whole = set(json!({"f:a": {}}));
        assert_eq!(difference(&a, &whole), set(json!({"f:a": {"f:b": {}, "f:c": {}}, "f:d": {}})));
        assert_eq!(difference(&whole, &a), Map::new());
        let listed =
            set(json!({"f:l": {"k:{\"a\":1,\"b\":\"x\"}": {".": {}, "f:v": {}}}, "f:s": {"v:\"y\"": {}}}));
        assert_eq!(paths(&listed), [".l[a=1,b=\"x\"]", ".l[a=1,b=\"x\"].v", ".s[=\"y\"]"]);
    }
}
