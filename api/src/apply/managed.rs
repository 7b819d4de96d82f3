//! Managers and what they own: `metadata.managedFields`.

use serde_json::{Map, Value};

use super::compare::{Comparison, compare};
use super::fields::{self, Fields, difference, union};
use super::shape::Node;
use super::versions::{Elsewhere, Versions};

/// The most managers that only updated an object; the oldest beyond are counted as one.
const MAX_UPDATERS: usize = 10;
const OLDEST: &str = "ancient-changes";

/// How fields came to their manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    pub manager: String,
    pub operation: Operation,
    /// `apps/v1`
    pub api_version: String,
    /// `status`, `scale`; empty for the object itself.
    pub subresource: String,
    /// RFC 3339, in seconds; empty where it is not told.
    pub time: String,
}

impl Writer {
    /// Whether both are one manager. An applier is the same in every version.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.operation == other.operation
            && self.manager == other.manager
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn order(&self) -> (Operation, &str, &str, &str, &str) {
        (self.operation, &self.time, &self.manager, &self.api_version, &self.subresource)
    }
}

/// A manager and what it owns.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub(super) writer: Writer,
    pub(super) fields: Fields,
}

/// The top-level fields that a call may change; others are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    /// Everything but `status`.
    AllButStatus,
    /// `status` alone.
    Status,
    /// `spec` alone: what a scale changes.
    Spec,
}

impl Scope {
    pub(super) fn keeps(self, name: &str) -> bool {
        match self {
            Scope::Everything => true,
            Scope::AllButStatus => name != "status",
            Scope::Status => name == "status",
            Scope::Spec => name == "spec",
        }
    }
}

/// Reads `managedFields`; `None` if it is not what the server writes.
pub fn decode(list: &Value) -> Option<Vec<Entry>> {
    let mut out = Vec::new();
    for entry in list.as_array()? {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let fields = match entry.get("fieldsV1") {
            None | Some(Value::Null) => Map::new(),
            Some(fields) => fields.as_object()?.clone(),
        };
        let writer = Writer {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
        };
        out.push(Entry { writer, fields });
    }
    Some(out)
}

/// Writes `managedFields`, in Kubernetes' order. `None` for nobody.
pub fn encode(mut entries: Vec<Entry>) -> Option<Value> {
    if entries.is_empty() {
        return None;
    }
    entries.sort_by(|a, b| a.writer.order().cmp(&b.writer.order()));
    let one = |entry: Entry| {
        let Entry { writer, fields } = entry;
        let mut out = Map::new();
        let mut put = |name: &str, value: Value| drop(out.insert(name.into(), value));
        put("apiVersion", writer.api_version.into());
        put("fieldsType", "FieldsV1".into());
        put("fieldsV1", Value::Object(fields));
        put("manager", writer.manager.into());
        put("operation", writer.operation.as_str().into());
        if !writer.subresource.is_empty() {
            put("subresource", writer.subresource.into());
        }
        if !writer.time.is_empty() {
            put("time", writer.time.into());
        }
        Value::Object(out)
    };
    Some(Value::Array(entries.into_iter().map(one).collect()))
}

/// Whether two values of `managedFields` differ in times alone.
pub fn same_but_times(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else { return false };
    let same = |a: &Value, b: &Value| {
        ["manager", "operation", "apiVersion", "subresource", "fieldsV1"].iter().all(|k| a.get(k) == b.get(k))
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

/// What no manager owns: the server's own, and what every object has.
pub(super) fn strip(fields: &mut Fields) {
    fields.remove("f:apiVersion");
    fields.remove("f:kind");
    let Some(Value::Object(mut metadata)) = fields.remove("f:metadata") else { return };
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        metadata.remove(&fields::field(name));
    }
    if let Some(entry) = fields::entry(false, metadata) {
        fields.insert("f:metadata".into(), entry);
    }
}

/// The managers after an update from one state to the next. Neither state needs `managedFields`.
pub fn after_update(
    node: Node<'_>,
    versions: &dyn Versions,
    old: &Value,
    new: &Value,
    mut entries: Vec<Entry>,
    writer: &Writer,
    scope: Scope,
) -> Vec<Entry> {
    let mut found = compare(node, old, new);
    found.filter(|name| scope.keeps(name));
    let Comparison { added, removed, modified } = found;
    let mut own = union(added, &modified);
    let elsewhere = Elsewhere::of(versions, &mut entries, (old, new), writer, scope);
    take(&mut entries, &removed, &own, |e| elsewhere.covers(e));
    elsewhere.take(&mut entries, |_| false);
    strip(&mut own);
    if !own.is_empty() {
        match entries.iter_mut().find(|e| e.writer.is(writer)) {
            Some(entry) => {
                entry.fields = union(own, &entry.fields);
                entry.writer.time.clone_from(&writer.time);
            }
            None => entries.push(Entry { writer: writer.clone(), fields: own }),
        }
    }
    cap(&mut entries);
    entries
}

/// Takes what changed and what is gone from all managers but those that are `spared`.
pub(super) fn take(
    entries: &mut Vec<Entry>,
    removed: &Fields,
    changed: &Fields,
    spared: impl Fn(&Entry) -> bool,
) {
    for entry in entries.iter_mut().filter(|e| !spared(e)) {
        if !changed.is_empty() {
            entry.fields = difference(&entry.fields, changed);
        }
        if !removed.is_empty() {
            entry.fields = difference(&entry.fields, removed);
        }
    }
    entries.retain(|e| !e.fields.is_empty());
}

fn cap(entries: &mut Vec<Entry>) {
    loop {
        let updaters = entries.iter().filter(|e| e.writer.operation == Operation::Update);
        if updaters.clone().count() <= MAX_UPDATERS {
            return;
        }
        let mut ages: Vec<(bool, String, usize)> = entries
            .iter()
            .enumerate()
            .filter(|(_, e)| e.writer.operation == Operation::Update)
            .map(|(i, e)| (e.writer.manager != OLDEST, e.writer.time.clone(), i))
            .collect();
        ages.sort();
        let [(_, _, first), (_, time, second), ..] = ages.as_slice() else { return };
        let taken = entries.get(*second).map(|e| e.fields.clone()).unwrap_or_default();
        if let Some(bucket) = entries.get_mut(*first) {
            bucket.fields = union(taken, &bucket.fields);
            bucket.writer.manager = OLDEST.into();
            bucket.writer.subresource = String::new();
            bucket.writer.time.clone_from(time);
        }
        entries.remove(*second);
    }
}
