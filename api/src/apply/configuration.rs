//! Laying a configuration over an object: what changes, what goes, and with whom that conflicts.

use serde_json::{Map, Value, json};

use super::compare::compare;
use super::conflict::{self, Conflict};
use super::fields::{self, Fields, difference, intersection, union};
use super::managed::{Entry, Operation, Scope, Writer, after_update, strip, take};
use super::merge::merge;
use super::remove::remove;
use super::shape::Node;
use super::typed::{errors, field_set, with_named};
use crate::status::Status;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who owned the fields of an object that nobody owned when it was first applied.
const BEFORE: &str = "before-first-apply";

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
