//! Tables and metadata-only forms: what `kubectl get` prints and what caches of metadata read.

use coracle_api::{Status, field};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::query::Query;
use crate::state::Served;
use crate::strategy::Column;

/// Name and age, for kinds that say nothing else.
pub static DEFAULT_COLUMNS: [Column; 2] = [
    Column::new(
        "Name",
        "string",
        "name",
        "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
        0,
    ),
    Column::new(
        "Created At",
        "date",
        "",
        "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
        0,
    ),
];

/// The cells for [`DEFAULT_COLUMNS`].
pub fn default_row(obj: &Value) -> Vec<Value> {
    let at = |p: &str| obj.pointer(p).cloned().unwrap_or(Value::Null);
    vec![at("/metadata/name"), at("/metadata/creationTimestamp")]
}

/// What a row carries besides its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn of(query: &Query) -> Result<Self, Status> {
        match query.get("includeObject").unwrap_or("") {
            "" | "Metadata" => Ok(Self::Metadata),
            "Object" => Ok(Self::Object),
            "None" => Ok(Self::None),
            other => {
                let error = field::Error::invalid(
                    &field::Path::new("includeObject"),
                    other,
                    "must be 'Metadata', 'Object', 'None', or empty",
                );
                Err(Status::bad_request(format!("Unable to convert to Table as requested: {error}")))
            }
        }
    }
}

/// The list metadata of a Table of one object.
pub(crate) fn list_meta(obj: &Value) -> Value {
    match obj.pointer("/metadata/resourceVersion") {
        Some(version) => json!({"resourceVersion": version}),
        None => json!({}),
    }
}

/// A Table of these objects.
pub(crate) fn table(
    served: &Served,
    version: &str,
    objects: &[&Value],
    metadata: Value,
    include: Include,
    now: Timestamp,
) -> Value {
    let columns: Vec<Value> = served.def.strategy.columns().iter().map(column).collect();
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows(served, version, objects, include, now),
    })
}

/// A Table without column definitions, as all but the first event of a watch carry.
pub(crate) fn rows_only(
    served: &Served,
    version: &str,
    obj: &Value,
    include: Include,
    now: Timestamp,
) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_meta(obj),
        "columnDefinitions": null,
        "rows": rows(served, version, &[obj], include, now),
    })
}

fn rows(served: &Served, version: &str, objects: &[&Value], include: Include, now: Timestamp) -> Vec<Value> {
    let row = |obj: &&Value| {
        let mut row = Map::new();
        row.insert("cells".into(), served.def.strategy.row(obj, now).into());
        let object = match include {
            Include::None => Value::Null,
            Include::Metadata => partial(obj, version),
            Include::Object => (*obj).clone(),
        };
        row.insert("object".into(), object);
        Value::Object(row)
    };
    objects.iter().map(row).collect()
}

fn column(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.r#type,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    })
}

/// Metadata alone.
pub(crate) fn partial(obj: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": obj.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}
