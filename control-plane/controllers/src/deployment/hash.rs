//! Names of ReplicaSets: a hash of the pod template.

use serde_json::Value;

use super::POD_TEMPLATE_HASH;

// No vowels, no digits that look like letters: Kubernetes' alphabet for generated names.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short word for a template; `collisions` makes another one when the first is taken.
pub fn of(template: &Value, collisions: i64) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let text = template.to_string();
    for byte in
        text.bytes().chain(if collisions > 0 { collisions.to_string() } else { String::new() }.bytes())
    {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

/// Whether two templates make the same pods: the hash label does not count.
pub fn same(a: &Value, b: &Value) -> bool {
    a.get("spec") == b.get("spec") && without_hash(a) == without_hash(b)
}

fn without_hash(template: &Value) -> Value {
    let mut meta = template.get("metadata").cloned().unwrap_or_default();
    if let Some(map) = meta.as_object_mut() {
        map.remove("creationTimestamp");
        if let Some(labels) = map.get_mut("labels").and_then(Value::as_object_mut) {
            labels.remove(POD_TEMPLATE_HASH);
        }
        map.retain(|_, v| !v.is_null() && v.as_object().is_none_or(|m| !m.is_empty()));
    }
    if meta.as_object().is_some_and(|m| m.is_empty()) { Value::Null } else { meta }
}
