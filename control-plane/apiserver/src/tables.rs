//! Tables and metadata-only forms: what `kubectl get` prints and what caches of metadata read.

use coracle_api::{Status, field, time};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::query::Query;
use crate::state::Served;
use crate::strategy::Column;

/// Name and age, for kinds that say nothing else.
pub static DEFAULT_COLUMNS: [Column; 2] = [NAME, Column::new("Created At", "date", "", CREATED, 0)];

const NAME: Column = Column::new(
    "Name",
    "string",
    "name",
    "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
    0,
);
const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The cells for [`DEFAULT_COLUMNS`].
pub fn default_row(obj: &Value) -> Vec<Value> {
    let at = |p: &str| obj.pointer(p).cloned().unwrap_or(Value::Null);
    vec![at("/metadata/name"), at("/metadata/creationTimestamp")]
}

/// The columns of a Scale.
static SCALE_COLUMNS: [Column; 4] = [
    NAME,
    Column::new(
        "Desired",
        "integer",
        "",
        "replicas is the desired number of instances for the scaled object.",
        0,
    ),
    Column::new(
        "Available",
        "integer",
        "",
        "replicas is the actual number of observed instances of the scaled object.",
        0,
    ),
    Column::new("Age", "string", "", CREATED, 0),
];

/// The cells for [`SCALE_COLUMNS`].
fn scale_row(obj: &Value, now: Timestamp) -> Vec<Value> {
    let at = |p: &str| obj.pointer(p).cloned().unwrap_or(Value::Null);
    let number = |p: &str| obj.pointer(p).and_then(Value::as_i64).unwrap_or(0).into();
    let created = obj.pointer("/metadata/creationTimestamp").and_then(Value::as_str).unwrap_or_default();
    vec![
        at("/metadata/name"),
        number("/spec/replicas"),
        number("/status/replicas"),
        time::since(created, now).into(),
    ]
}

/// A Table of one object, of a resource's kind or of another that a subresource has.
pub(crate) fn of_one(served: &Served, version: &str, obj: &Value, include: Include, now: Timestamp) -> Value {
    let mut table = table(served, version, &[obj], list_meta(obj), include, now);
    let says = |field: &str| obj.get(field).and_then(Value::as_str);
    // A custom kind may have the same name.
    if (says("apiVersion"), says("kind")) != (Some("autoscaling/v1"), Some("Scale")) {
        return table;
    }
    if let Some(definitions) = table.get_mut("columnDefinitions") {
        *definitions = SCALE_COLUMNS.iter().map(column).collect();
    }
    if let Some(row) = table.pointer_mut("/rows/0/cells") {
        *row = scale_row(obj, now).into();
    }
    table
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
