//! Tables: what `kubectl get` prints, computed by the server.

use serde_json::Value;

use crate::strategy::Column;

/// Name and age, for kinds that say nothing else.
pub static DEFAULT_COLUMNS: [Column; 2] = [
    Column::new("Name", "string", "name", "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names", 0),
    Column::new("Created At", "date", "", "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata", 0),
];

/// The cells for [`DEFAULT_COLUMNS`].
pub fn default_row(obj: &Value) -> Vec<Value> {
    let at = |p: &str| obj.pointer(p).cloned().unwrap_or(Value::Null);
    vec![at("/metadata/name"), at("/metadata/creationTimestamp")]
}
