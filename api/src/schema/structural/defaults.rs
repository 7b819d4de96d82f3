//! Defaults of a structural schema.

use serde_json::Value;

use super::Structural;

/// Sets the defaults that the schema states. A null where none is allowed counts as missing.
pub fn apply_defaults(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, member| {
                !member.is_null()
                    || schema.member(name).is_none_or(|inner| inner.nullable || inner.kind.is_none())
            });
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                let missing = map.get(name).is_none_or(|v| v.is_null() && !property.nullable);
                if missing {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, member) in map.iter_mut() {
                if let Some(inner) = schema.member(name) {
                    apply_defaults(inner, member);
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                list.iter_mut().for_each(|item| apply_defaults(items, item));
            }
        }
        _ => {}
    }
}
