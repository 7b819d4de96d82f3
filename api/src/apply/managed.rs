//! Managers and what they own: `metadata.managedFields`.

use serde_json::{Map, Value, json};

use super::compare::{Comparison, compare};
use super::conflict::{self, Conflict};
use super::fields::{self, Fields, difference, intersection, union};
use super::merge::merge;
use super::remove::remove;
use super::shape::Node;
use super::typed::{errors, field_set, with_named};
use crate::status::Status;

/// The most managers that only updated an object; the oldest beyond are counted as one.
const MAX_UPDATERS: usize = 10;
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const OLDEST: &str = "ancient-changes";
/// Who owned the fields of an object that nobody owned when it was first applied.
const BEFORE: &str = "before-first-apply";

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
    fn is(&self, other: &Self) -> bool {
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
    writer: Writer,
    fields: Fields,
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
    fn keeps(self, name: &str) -> bool {
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
fn strip(fields: &mut Fields) {
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
    take(&mut entries, &removed, &own, |_| false);
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
fn take(entries: &mut Vec<Entry>, removed: &Fields, changed: &Fields, spared: impl Fn(&Entry) -> bool) {
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

/// An apply.
pub struct Apply<'a> {
    pub node: Node<'a>,
    /// The object as it is; as it is before anybody set anything, for one that is to be made.
    pub live: &'a Value,
    /// Whether the object exists.
    pub exists: bool,
    /// What is applied, as it was sent.
    pub config: &'a Value,
    pub entries: Vec<Entry>,
    pub writer: &'a Writer,
    pub scope: Scope,
    /// Takes what others own.
    pub force: bool,
}

/// Why a configuration is not applied.
#[derive(Clone, Debug, PartialEq)]
pub enum ApplyError {
    /// It does not fit the type.
    Type(Vec<String>),
    /// Others own what it sets.
    Conflicts(Vec<Conflict>),
}

impl ApplyError {
    /// As the server answers it. `what` is `namespace/name; apps/v1, Kind=Deployment`.
    pub fn status(&self, what: &str) -> Status {
        match self {
            Self::Conflicts(conflicts) => conflict::status(conflicts),
            Self::Type(errors) => {
                let words = match errors.as_slice() {
                    [one] => one.clone(),
                    many => format!("errors:\n  {}", many.join("\n  ")),
                };
                Status::plain(format!("failed to create typed patch object ({what}): {words}"))
            }
        }
    }
}

/// What an apply makes of an object, and the managers after it.
pub fn apply(apply: &Apply<'_>) -> Result<(Value, Vec<Entry>), ApplyError> {
    let Apply { node, live, config, writer, scope, .. } = *apply;
    let wrong = errors(node, config);
    if !wrong.is_empty() {
        return Err(ApplyError::Type(wrong));
    }
    let mut entries = apply.entries.clone();
    if entries.is_empty() && apply.exists {
        let before = Writer { manager: BEFORE.into(), operation: Operation::Update, ..writer.clone() };
        let nothing = json!({});
        entries = after_update(node, &nothing, live, entries, &before, Scope::Everything);
    }
    let merged = merge(node, live, config);
    let mut set = field_set(node, config);
    set.retain(|key, _| key.strip_prefix("f:").is_none_or(|name| scope.keeps(name)));
    let last = entries.iter().position(|e| e.writer.is(writer)).map(|i| entries.remove(i).fields);
    let mine = Entry { writer: writer.clone(), fields: set };
    entries.push(mine);
    let result = match last {
        Some(last) if !last.is_empty() => pruned(node, &merged, &last, &entries),
        _ => merged,
    };
    let mut found = compare(node, live, &result);
    found.filter(|name| scope.keeps(name));
    let changed = found.changed();
    let mut contested = changed.clone();
    if writer.manager == "kubectl"
        && let Some(own) = applied_before(node, live)
    {
        contested = difference(&contested, &own);
    }
    let conflicts = if apply.force { Vec::new() } else { conflicts(&entries, writer, &contested) };
    if !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    take(&mut entries, &found.removed, &changed, |e| e.writer.is(writer));
    for entry in entries.iter_mut().filter(|e| e.writer.is(writer)) {
        strip(&mut entry.fields);
    }
    entries.retain(|e| !e.fields.is_empty());
    Ok((result, entries))
}

/// The fields that kubectl set when it still kept the last configuration in an annotation, as far as they are as it set them.
/// It may take them over when it begins to apply on the server's side.
fn applied_before(node: Node<'_>, live: &Value) -> Option<Fields> {
    let text = live.pointer("/metadata/annotations")?.get(LAST_APPLIED)?.as_str()?;
    let last: Value = serde_json::from_str(text).ok()?;
    let set = field_set(node, &last);
    let found = compare(node, &last, live);
    Some([found.modified, found.added, found.removed].iter().fold(set, |set, other| difference(&set, other)))
}

fn conflicts(entries: &[Entry], writer: &Writer, changed: &Fields) -> Vec<Conflict> {
    let mut out = Vec::new();
    for entry in entries.iter().filter(|e| !e.writer.is(writer)) {
        let both = intersection(&entry.fields, changed);
        let manager = conflict::manager(&entry.writer);
        out.extend(fields::paths(&both).into_iter().map(|path| Conflict { manager: manager.clone(), path }));
    }
    out.sort_by(|a, b| a.manager.cmp(&b.manager));
    out
}

/// Without what the applier set before and no longer sets, unless another manager owns it.
fn pruned(node: Node<'_>, merged: &Value, last: &Fields, entries: &[Entry]) -> Value {
    let last = with_named(node, last);
    let bare = remove(node, merged, &last);
    let all = with_named(node, &field_set(node, merged));
    let left = with_named(node, &field_set(node, &bare));
    // What anybody owns comes back.
    let owned = entries.iter().fold(Map::new(), |all, e| union(all, &e.fields));
    let kept = union(left, &with_named(node, &owned));
    let bare = remove(node, merged, &difference(&all, &kept));
    // And what the applier never owned.
    let left = with_named(node, &field_set(node, &bare));
    remove(node, merged, &intersection(&difference(&all, &left), &last))
}
