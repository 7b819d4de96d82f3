//! Reading and completing objects that are JSON, with the rules of Kubernetes' types: an absent string is the empty
//! string, an absent number is 0, an absent list has no items.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// What a JSON pointer leads to; `Null` where that is nothing.
pub fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&NULL)
}

/// A string; empty where there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_default()
}

/// A number; 0 where there is none.
pub fn number(value: &Value, pointer: &str) -> i64 {
    at(value, pointer).as_i64().unwrap_or_default()
}

/// A number, if there is one.
pub fn maybe_number(value: &Value, pointer: &str) -> Option<i64> {
    at(value, pointer).as_i64()
}

/// A boolean; false where there is none.
pub fn flag(value: &Value, pointer: &str) -> bool {
    at(value, pointer).as_bool().unwrap_or_default()
}

/// The items of a list.
pub fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).as_array().map_or(&[], Vec::as_slice)
}

/// The entries of an object.
pub fn entries<'a>(
    value: &'a Value,
    pointer: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    at(value, pointer).as_object().into_iter().flatten()
}

/// Whether something is set: neither absent nor null.
pub fn present(value: &Value, pointer: &str) -> bool {
    !at(value, pointer).is_null()
}

/// Mutable items of a list field.
pub fn items_mut<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets a field that is absent, null or the empty string.
pub fn set_default(value: &mut Value, key: &str, default: impl Into<Value>) {
    let Some(map) = value.as_object_mut() else { return };
    let missing = map.get(key).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
    if missing {
        map.insert(key.into(), default.into());
    }
}

/// Sets a number that is absent, null or 0 (a number that Kubernetes holds by value).
pub fn set_default_number(value: &mut Value, key: &str, default: i64) {
    let Some(map) = value.as_object_mut() else { return };
    let missing = map.get(key).is_none_or(|v| v.is_null() || v.as_i64() == Some(0));
    if missing {
        map.insert(key.into(), default.into());
    }
}

/// Sets a field, whatever it was.
pub fn set(value: &mut Value, key: &str, to: impl Into<Value>) {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.into(), to.into());
    }
}

/// Removes a field.
pub fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut()?.remove(key)
}

/// A field that is an object, created if it is absent or null. `None` if it, or what it is in, is something else.
pub fn object<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let entry = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    if entry.is_null() {
        *entry = Value::Object(Map::new());
    }
    entry.is_object().then_some(entry)
}

/// A field that is a list, created if it is absent or null.
pub fn list<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Vec<Value>> {
    let entry = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    if entry.is_null() {
        *entry = Value::Array(Vec::new());
    }
    entry.as_array_mut()
}

/// Takes a whole object out of a field that holds one, for a kind's `status` that a client may not set.
pub fn reset(value: &mut Value, key: &str, to: Value) {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.into(), to);
    }
}

/// Equality as Kubernetes' semantic comparison sees it: null, empty lists and empty objects equal absence.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
            let mut keys = keys;
            keys.all(|k| same(x.get(k).unwrap_or(&NULL), y.get(k).unwrap_or(&NULL)))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absence_is_semantic() {
        assert!(same(&json!({"a": {}}), &json!({})));
        assert!(same(&json!({"a": null, "b": [1]}), &json!({"b": [1]})));
        assert!(!same(&json!({"a": 0}), &json!({})));
    }

    #[test]
    fn odd_shapes_are_no_panic() {
        let mut v = json!({"a": 5});
        assert!(object(&mut v, "a").is_none());
        assert!(list(&mut v, "a").is_none());
        assert_eq!(text(&v, "/a"), "");
        assert_eq!(items(&v, "/a").len(), 0);
        set_default(&mut v, "b", "x");
        assert_eq!(text(&v, "/b"), "x");
    }
}
