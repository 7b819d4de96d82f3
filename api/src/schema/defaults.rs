//! Defaults that the schema carries.

use serde_json::Value;

use super::{Kind, Type};

/// Sets the defaults that the schema states, in objects that are there. Defaults that depend on other fields are the
/// business of the registry.
pub fn apply_defaults(ty: &Type, object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    for field in &ty.fields {
        if let Some(default) = &field.schema.default {
            map.entry(field.name.as_str()).or_insert_with(|| default.clone());
        }
        if let Some(value) = map.get_mut(&field.name) {
            apply_kind(&field.schema.kind, value);
        }
    }
}

fn apply_kind(kind: &Kind, value: &mut Value) {
    match (kind, value) {
        (Kind::Object(r), value) => apply_defaults(r.get(), value),
        (Kind::List(item), Value::Array(list)) => list.iter_mut().for_each(|v| apply_kind(&item.kind, v)),
        (Kind::Map(item), Value::Object(map)) => map.values_mut().for_each(|v| apply_kind(&item.kind, v)),
        _ => {}
    }
}
