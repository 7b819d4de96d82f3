//! Strategic merge: lists of objects merge by the key that the schema names, lists of scalars that the schema marks merge as
//! sets, and directives in the patch delete, replace, reorder and retain.

mod order;

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::schema::{Kind, Schema, Type};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

pub(super) fn apply(target: &Value, patch: &Value, ty: &Type) -> Result<Value, Status> {
    let (Value::Object(target), Value::Object(patch)) = (target, patch) else {
        return Err(Status::bad_request("a strategic merge patch must be an object"));
    };
    merge_map(target.clone(), patch, Some(ty)).map(Value::Object)
}

// What is known of the value of a field.
#[derive(Clone, Copy, Default)]
struct Hint<'t> {
    schema: Option<&'t Schema>,
}

impl<'t> Hint<'t> {
    fn object(self) -> Option<&'t Type> {
        match self.schema.map(|s| &s.kind) {
            Some(Kind::Object(r)) => Some(r.get()).filter(|t| t.leaf.is_none()),
            _ => None,
        }
    }

    fn item(self) -> Option<&'t Type> {
        match self.schema.map(|s| &s.kind) {
            Some(Kind::List(item)) => Hint { schema: Some(item) }.object(),
            _ => None,
        }
    }

    fn merge_key(self) -> Option<&'t str> {
        self.schema.and_then(|s| s.patch_merge_key.as_deref())
    }

    fn merges(self) -> bool {
        self.schema.is_some_and(|s| s.patch_merge)
    }
}

fn hint<'t>(ty: Option<&'t Type>, key: &str) -> Hint<'t> {
    Hint { schema: ty.and_then(|t| t.field(key)).map(|f| &f.schema) }
}

fn merge_map(mut original: Object, patch: &Object, ty: Option<&Type>) -> Result<Object, Status> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(without_directives(patch)),
            Some("delete") => Ok(Object::new()),
            Some("merge") => merge_fields(original, patch, ty),
            _ => Err(bad_directive(directive, patch)),
        };
    }
    retain_keys(&mut original, patch)?;
    merge_fields(original, patch, ty)
}

fn merge_fields(mut original: Object, patch: &Object, ty: Option<&Type>) -> Result<Object, Status> {
    let before = original.clone();
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_LIST) {
            delete_scalars(&mut original, list, value)?;
        }
    }
    for (key, value) in patch {
        if key.starts_with('$') {
            if !is_directive(key) {
                original.insert(key.clone(), value.clone());
            }
            continue;
        }
        let hint = hint(ty, key);
        match (original.remove(key), value) {
            (_, Value::Null) => {}
            (Some(Value::Object(old)), Value::Object(new)) => {
                original.insert(key.clone(), Value::Object(merge_map(old, new, hint.object())?));
            }
            (Some(Value::Array(old)), Value::Array(new)) if hint.merges() => {
                original.insert(key.clone(), Value::Array(merge_list(old, new, hint)?));
            }
            (_, Value::Array(new)) if hint.merges() => {
                original.insert(key.clone(), Value::Array(merge_list(Vec::new(), new, hint)?));
            }
            (_, Value::Object(new)) => {
                original.insert(key.clone(), Value::Object(merge_map(Object::new(), new, hint.object())?));
            }
            (_, new) => {
                original.insert(key.clone(), new.clone());
            }
        }
    }
    for (key, wanted) in patch {
        if let Some(list) = key.strip_prefix(ELEMENT_ORDER) {
            let key = hint(ty, list).merge_key();
            order::set_element_order(&mut original, before.get(list), patch.get(list), list, wanted, key)?;
        }
    }
    Ok(original)
}

fn merge_list(original: Vec<Value>, patch: &[Value], hint: Hint<'_>) -> Result<Vec<Value>, Status> {
    if !original.iter().chain(patch).any(Value::is_object) {
        let mut seen = HashSet::new();
        let both = original.iter().chain(patch);
        let merged = both.filter(|v| seen.insert(v.to_string())).cloned().collect();
        return Ok(order::normalize(merged, patch, &original, None));
    }
    let Some(key) = hint.merge_key() else {
        return Err(Status::plain("cannot merge lists without merge key"));
    };
    let server = original.clone();
    let (mut merged, plain, replaced) = special_elements(original, patch, key)?;
    if replaced {
        return Ok(plain.iter().map(|v| Value::Object(without_directives(v))).collect());
    }
    let mut places = order::Positions::new(&merged, Some(key));
    for element in &plain {
        let wanted = element.get(key).ok_or_else(|| no_merge_key(element, key))?;
        match places.of_key(wanted).and_then(|at| merged.get_mut(at)) {
            Some(found) => {
                let old = found.as_object().cloned().unwrap_or_default();
                *found = Value::Object(merge_map(old, element, hint.item())?);
            }
            None => {
                places.add(wanted, merged.len());
                merged.push(Value::Object(merge_map(Object::new(), element, hint.item())?));
            }
        }
    }
    let plain: Vec<Value> = plain.into_iter().map(|v| Value::Object(v.clone())).collect();
    Ok(order::normalize(merged, &plain, &server, Some(key)))
}

// Carries out the elements that are directives. Returns the list, the other elements, and whether they replace the list.
fn special_elements<'p>(
    mut original: Vec<Value>,
    patch: &'p [Value],
    key: &str,
) -> Result<(Vec<Value>, Vec<&'p Object>, bool), Status> {
    let mut plain = Vec::new();
    let mut doomed = HashSet::new();
    let mut replaced = false;
    for element in patch {
        let Value::Object(map) = element else {
            return Err(Status::bad_request(
                "a list of a strategic merge patch mixes objects and other values",
            ));
        };
        match map.get(DIRECTIVE) {
            None => plain.push(map),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    let wanted = map.get(key).ok_or_else(|| no_merge_key(map, key))?;
                    doomed.insert(wanted.to_string());
                }
                Some("replace") => replaced = true,
                _ => return Err(bad_directive(directive, map)),
            },
        }
    }
    original.retain(|v| v.get(key).is_none_or(|k| !doomed.contains(&k.to_string())));
    Ok((original, plain, replaced))
}

fn retain_keys(original: &mut Object, patch: &Object) -> Result<(), Status> {
    let Some(keep) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let bad = || Status::bad_request("invalid patch format of retainKeys");
    let keep: Vec<&str> = keep.as_array().ok_or_else(bad)?.iter().filter_map(Value::as_str).collect();
    let listed = |key: &String| keep.contains(&key.as_str());
    if !patch.keys().filter(|k| !k.starts_with('$')).all(listed) {
        return Err(bad());
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

fn delete_scalars(original: &mut Object, list: &str, doomed: &Value) -> Result<(), Status> {
    let Value::Array(doomed) = doomed else {
        return Err(Status::bad_request("invalid patch format of primitive list"));
    };
    if let Some(Value::Array(values)) = original.get_mut(list) {
        let doomed: HashSet<String> = doomed.iter().map(Value::to_string).collect();
        values.retain(|v| !doomed.contains(&v.to_string()));
    }
    Ok(())
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(DELETE_LIST) || key.starts_with(ELEMENT_ORDER)
}

fn without_directives(object: &Object) -> Object {
    let clean = |value: &Value| match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(list) => list
            .iter()
            .map(|v| v.as_object().map_or_else(|| v.clone(), |m| Value::Object(without_directives(m))))
            .collect(),
        other => other.clone(),
    };
    object
        .iter()
        .filter(|(k, v)| !is_directive(k) && !v.is_null())
        .map(|(k, v)| (k.clone(), clean(v)))
        .collect()
}

fn no_merge_key(map: &Object, key: &str) -> Status {
    let shown = go_print(&Value::Object(map.clone()));
    Status::plain(format!("map: {shown} does not contain declared merge key: {key}"))
}

fn bad_directive(directive: &Value, map: &Object) -> Status {
    let shown = go_print(&Value::Object(map.clone()));
    Status::plain(format!("unknown patch type: {} in map: {shown}", go_print(directive)))
}

/// A value as Go's `%v` prints it.
fn go_print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(s) => s.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_print).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_print(v))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}
