//! What the columns of several kinds share: headings, ages, lists of names.

pub use coracle_api::time::{duration, since};
use coracle_apiserver::Column;
use jiff::Timestamp;
use serde_json::Value;

use crate::value::{at, entries, items, text};

/// What the columns of ages and creation times say of themselves.
pub const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// What the column of names says of itself.
pub const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// The column of the object's name.
pub const NAME: Column = Column::new("Name", "string", "name", NAME_DESCRIPTION, 0);

/// The column of the moment at which the object was created.
pub const CREATED_AT: Column = Column::new("Created At", "date", "", CREATED, 0);

/// The column of the object's age.
pub const AGE: Column = Column::new("Age", "string", "", CREATED, 0);

/// A column of text.
pub const fn string(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "string", "", description, 0)
}

/// A column of numbers.
pub const fn integer(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "integer", "", description, 0)
}

/// A column that only `-o wide` shows.
pub const fn wide(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "string", "", description, 1)
}

/// The cell of an object's name.
pub fn name(obj: &Value) -> Value {
    text(obj, "/metadata/name").into()
}

/// The cell of an object's age.
pub fn age(obj: &Value, now: Timestamp) -> Value {
    since(text(obj, "/metadata/creationTimestamp"), now).into()
}

/// Text, or `<none>` where it is empty.
pub fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// Labels as `a=b,c=d`, or `<none>`.
pub fn labels(obj: &Value, pointer: &str) -> Value {
    let all: Vec<String> =
        entries(obj, pointer).map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    or_none(&all.join(","))
}

/// A label selector object in the words of `kubectl -l`, or `<none>`.
pub fn selector(selector: &Value) -> String {
    let mut parts: Vec<String> = entries(selector, "/matchLabels")
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    for requirement in items(selector, "/matchExpressions") {
        let key = text(requirement, "/key");
        let values: Vec<&str> = items(requirement, "/values").iter().filter_map(Value::as_str).collect();
        let mut values = values;
        values.sort_unstable();
        parts.push(match text(requirement, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_string(),
            "DoesNotExist" => format!("!{key}"),
            other => format!("{key} {other}"),
        });
    }
    parts.sort();
    if parts.is_empty() { "<none>".into() } else { parts.join(",") }
}

/// One field of each container of a pod template: `a,b`.
pub fn containers(obj: &Value, field: &str) -> Value {
    names_of(at(obj, "/spec/template/spec"), field)
}

/// One field of each container of a pod spec: `a,b`.
pub fn names_of(spec: &Value, field: &str) -> Value {
    let all: Vec<&str> = items(spec, "/containers").iter().map(|c| text(c, field)).collect();
    all.join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let table = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (47 * 3600, "47h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (3 * 365 * 86400 + 86400, "3y1d"),
            (9 * 365 * 86400, "9y"),
        ];
        for (seconds, words) in table {
            assert_eq!(duration(seconds), words, "{seconds}");
        }
    }
}
