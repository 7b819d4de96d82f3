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
use super::versions::{Elsewhere, Versions, others};
use crate::meta::validation::{ANNOTATIONS_MAX, annotations_size};
use crate::status::Status;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who owned the fields of an object that nobody owned when it was first applied.
const BEFORE: &str = "before-first-apply";

/// An apply.
pub struct Apply<'a> {
    pub node: Node<'a>,
    /// Where managers wrote in other versions.
    pub versions: &'a dyn Versions,
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
    let Apply { node, versions, live, config, writer, scope, .. } = *apply;
    let wrong = errors(node, config);
    if !wrong.is_empty() {
        return Err(ApplyError::Type(wrong));
    }
    let mut entries = apply.entries.clone();
    if entries.is_empty() && apply.exists {
        let before = Writer { manager: BEFORE.into(), operation: Operation::Update, ..writer.clone() };
        let nothing = json!({});
        entries = after_update(node, versions, &nothing, live, entries, &before, Scope::Everything);
    }
    let merged = merge(node, live, config);
    let mut set = field_set(node, config);
    set.retain(|key, _| key.strip_prefix("f:").is_none_or(|name| scope.keeps(name)));
    let last = entries.iter().position(|e| e.writer.is(writer)).map(|i| entries.remove(i));
    let mine = Entry { writer: writer.clone(), fields: set };
    entries.push(mine);
    let result = match last {
        Some(last) if !last.fields.is_empty() => {
            Pruning { node, versions, entries: &entries, own: &writer.api_version }.run(&merged, &last)
        }
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
    let elsewhere = Elsewhere::of(versions, &mut entries, (live, &result), writer, scope);
    let conflicts =
        if apply.force { Vec::new() } else { conflicts(&entries, writer, &contested, &elsewhere) };
    if !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    take(&mut entries, &found.removed, &changed, |e| e.writer.is(writer) || elsewhere.covers(e));
    elsewhere.take(&mut entries, |e| e.writer.is(writer));
    for entry in entries.iter_mut().filter(|e| e.writer.is(writer)) {
        strip(&mut entry.fields);
    }
    entries.retain(|e| !e.fields.is_empty());
    let mut result = result;
    if writer.manager == "kubectl" {
        keep_last_applied(&mut result, config);
    }
    Ok((result, entries))
}

/// An object that kubectl applied itself before says in its annotation what it applied now, so that it may go back to that:
/// unless that is more than annotations may be.
fn keep_last_applied(object: &mut Value, config: &Value) {
    let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    let Some(all) = annotations.filter(|all| all.contains_key(LAST_APPLIED)) else { return };
    let mut config = config.clone();
    if let Some(own) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        own.remove(LAST_APPLIED);
    }
    all.insert(LAST_APPLIED.into(), format!("{config}\n").into());
    if annotations_size(all) > ANNOTATIONS_MAX {
        all.remove(LAST_APPLIED);
    }
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

fn conflicts(entries: &[Entry], writer: &Writer, changed: &Fields, elsewhere: &Elsewhere) -> Vec<Conflict> {
    let mut out = Vec::new();
    for entry in entries.iter().filter(|e| !e.writer.is(writer)) {
        let both = match elsewhere.change(entry) {
            Some(found) => intersection(&entry.fields, &found.changed()),
            None if elsewhere.covers(entry) => continue,
            None => intersection(&entry.fields, changed),
        };
        let manager = conflict::manager(&entry.writer);
        out.extend(fields::paths(&both).into_iter().map(|path| Conflict { manager: manager.clone(), path }));
    }
    out.sort_by(|a, b| a.manager.cmp(&b.manager));
    out
}

/// Taking away what an applier set before and no longer sets.
struct Pruning<'a> {
    node: Node<'a>,
    versions: &'a dyn Versions,
    /// All managers, the applier with what it sets now.
    entries: &'a [Entry],
    /// The version that is written.
    own: &'a str,
}

impl Pruning<'_> {
    /// The object without what the applier set `last` and no longer sets, unless another manager owns it. It is looked at in
    /// the version in which the applier set it.
    fn run(&self, merged: &Value, last: &Entry) -> Value {
        let (own, version) = (self.own, last.writer.api_version.as_str());
        let others = others(self.versions, std::slice::from_ref(last), own);
        let pruned = match others.first() {
            None => self.pruned(self.node, own, merged, &last.fields),
            // A version that is gone says nothing any more.
            Some((_, None)) => None,
            Some((_, Some(node))) => self.versions.convert(merged, own, version).and_then(|there| {
                let pruned = self.pruned(*node, version, &there, &last.fields)?;
                self.versions.convert(&pruned, version, own)
            }),
        };
        pruned.unwrap_or_else(|| merged.clone())
    }

    /// `None` where it cannot be seen what managers of other versions own.
    fn pruned(&self, node: Node<'_>, version: &str, merged: &Value, last: &Fields) -> Option<Value> {
        let last = with_named(node, last);
        let bare = remove(node, merged, &last);
        // What anybody owns comes back.
        let others = others(self.versions, self.entries, version);
        let is_other = |e: &&Entry| others.iter().any(|(other, _)| *other == e.writer.api_version);
        let here = self.entries.iter().filter(|e| !is_other(e));
        let mut bare = restored(node, merged, &bare, here);
        for (other, node) in others.iter().filter_map(|(other, node)| Some((other, (*node)?))) {
            let there = |obj: &Value| self.versions.convert(obj, version, other);
            let owners = self.entries.iter().filter(|e| e.writer.api_version == *other);
            let back = restored(node, &there(merged)?, &there(&bare)?, owners);
            bare = self.versions.convert(&back, other, version)?;
        }
        // And what the applier never owned.
        let all = with_named(node, &field_set(node, merged));
        let left = with_named(node, &field_set(node, &bare));
        Some(remove(node, merged, &intersection(&difference(&all, &left), &last)))
    }
}

/// What is left of an object, and what managers own of it.
fn restored<'e>(
    node: Node<'_>,
    merged: &Value,
    bare: &Value,
    owners: impl Iterator<Item = &'e Entry>,
) -> Value {
    let all = with_named(node, &field_set(node, merged));
    let left = with_named(node, &field_set(node, bare));
    let owned = owners.fold(Map::new(), |all, e| union(all, &e.fields));
    let kept = union(left, &with_named(node, &owned));
    remove(node, merged, &difference(&all, &kept))
}
