//! Pruning: what a schema does not name is dropped, and reported.

use serde_json::Value;

use super::{Additional, Structural};

/// The most unknown fields that are reported.
const MAX_REPORTED: usize = 100;

/// Drops unknown fields below `value`; `root` keeps `apiVersion`, `kind` and `metadata`. Paths of what was dropped
/// (`spec.a[0].b`) are added to `unknown`.
pub fn prune(schema: &Structural, value: &mut Value, root: bool, unknown: &mut Vec<String>) {
    walk(schema, value, root || schema.embedded, "", unknown);
}

fn walk(schema: &Structural, value: &mut Value, object: bool, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let keeps = schema.preserve_unknown || matches!(schema.additional, Additional::Any);
            map.retain(|key, member| {
                let at = || if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if object && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                    return true;
                }
                match schema.member(key) {
                    Some(inner) => {
                        walk(inner, member, inner.embedded, &at(), unknown);
                        true
                    }
                    None if keeps => true,
                    None => {
                        if unknown.len() < MAX_REPORTED {
                            unknown.push(at());
                        }
                        false
                    }
                }
            });
        }
        Value::Array(list) => {
            if let Some(items) = &schema.items {
                for (i, item) in list.iter_mut().enumerate() {
                    walk(items, item, items.embedded, &format!("{path}[{i}]"), unknown);
                }
            }
        }
        _ => {}
    }
}
