//! What differs between two states of an object, by fields.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;

use serde_json::{Map, Value};

use super::fields::{Fields, entry, field, union};
use super::shape::{Node, Shape};

/// The fields that differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Comparison {
    pub added: Fields,
    pub removed: Fields,
    pub modified: Fields,
}

impl Comparison {
    /// What was added or modified.
    pub fn changed(&self) -> Fields {
        union(self.added.clone(), &self.modified)
    }

    /// Keeps what lies below the top-level fields that `keep` names.
    pub fn filter(&mut self, keep: impl Fn(&str) -> bool) {
        for fields in [&mut self.added, &mut self.removed, &mut self.modified] {
            fields.retain(|key, _| key.strip_prefix("f:").is_none_or(&keep));
        }
    }
}

/// From one state of an object to the next.
pub(super) fn compare(node: Node<'_>, old: &Value, new: &Value) -> Comparison {
    let mut out = Comparison::default();
    members(node, Some(old), Some(new), &mut out);
    out
}

static NULL: Value = Value::Null;

/// Adds what differs below a map.
fn members(node: Node<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) {
    let empty = Map::new();
    let (old, new) =
        (old.and_then(Value::as_object).unwrap_or(&empty), new.and_then(Value::as_object).unwrap_or(&empty));
    let mut one = |name: &str, before: Option<&Value>, after: Option<&Value>| {
        if before == after {
            return;
        }
        let inner = node.member(name).map_or(Node::Unknown, |(inner, _)| inner);
        put(inner, before, after, || field(name), out);
    };
    for (name, before) in old {
        one(name, Some(before), new.get(name));
    }
    for (name, after) in new {
        if !old.contains_key(name) {
            one(name, None, Some(after));
        }
    }
}

/// Adds what differs at one place under its key.
fn put(
    node: Node<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    key: impl Fn() -> String,
    out: &mut Comparison,
) {
    let mut inner = Comparison::default();
    let own = place(node, old, new, &mut inner);
    let Comparison { added, removed, modified } = inner;
    for (what, children, place) in [
        (Own::Added, added, &mut out.added),
        (Own::Removed, removed, &mut out.removed),
        (Own::Modified, modified, &mut out.modified),
    ] {
        if let Some(entry) = entry(own == what, children) {
            place.insert(key(), entry);
        }
    }
}

/// What happened to a field itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Same,
    Added,
    Removed,
    Modified,
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Own {
    match (old, new) {
        (None, None) => Own::Same,
        (None, Some(_)) => Own::Added,
        (Some(_), None) => Own::Removed,
        (Some(a), Some(b)) if a == b => Own::Same,
        _ => Own::Modified,
    }
}

fn place(node: Node<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) -> Own {
    let sample = new.filter(|v| !v.is_null()).or(old).unwrap_or(&NULL);
    let shape = node.shape(sample);
    let fits = |v: Option<&Value>| match (shape, v) {
        (_, None | Some(Value::Null)) => true,
        (Shape::Map, Some(v)) => v.is_object(),
        (Shape::Set | Shape::Keyed(_), Some(v)) => v.is_array(),
        (Shape::Leaf, _) => true,
    };
    let empty = |v: Option<&Value>| match v {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        _ => true,
    };
    if let (None, Some(new)) = (old, new) {
        fill(node, new, &mut out.added);
        return Own::Added;
    }
    // What no schema describes may become something else: what was in it is gone, and what is in it now is new.
    let other = |v: &Value| discriminant(&node.shape(v)) != discriminant(&shape);
    if let (Some(old), Some(new)) = (old, new)
        && !old.is_null()
        && !new.is_null()
        && (other(old) || other(new))
    {
        fill(node, old, &mut out.removed);
        fill(node, new, &mut out.added);
        return leaf(Some(old), Some(new));
    }
    if matches!(shape, Shape::Leaf) || !fits(old) || !fits(new) || (empty(old) && empty(new)) {
        return leaf(old, new);
    }
    match shape {
        Shape::Map => members(node, old, new, out),
        _ => items(node, shape, old, new, out),
    }
    match (old, new) {
        (None, _) => Own::Added,
        (_, None) => Own::Removed,
        _ => Own::Same,
    }
}

/// Adds everything below a value that was not there: the way of every create, so it makes nothing that it does not keep.
fn fill(node: Node<'_>, value: &Value, out: &mut Fields) {
    let mut add = |inner: Node<'_>, key: String, value: &Value| {
        let mut below = Map::new();
        fill(inner, value, &mut below);
        if let Some(entry) = entry(true, below) {
            out.insert(key, entry);
        }
    };
    match (node.shape(value), value) {
        (Shape::Map, Value::Object(map)) => {
            for (name, member) in map {
                let inner = node.member(name).map_or(Node::Unknown, |(inner, _)| inner);
                add(inner, field(name), member);
            }
        }
        (shape @ (Shape::Set | Shape::Keyed(_)), Value::Array(_)) => {
            for (key, same) in keyed(node, shape, Some(value)) {
                match same.as_slice() {
                    [item] => add(node.item(), key, item),
                    // Items that cannot be told apart are owned together.
                    _ => add(Node::Scalar, key, &NULL),
                }
            }
        }
        _ => {}
    }
}

fn items(node: Node<'_>, shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>, out: &mut Comparison) {
    let (old, new) = (keyed(node, shape, old), keyed(node, shape, new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let before = old.get(key).map(Vec::as_slice);
        let after = new.get(key).map(Vec::as_slice);
        match (before, after) {
            (Some([before]), Some([after])) => {
                if before != after {
                    put(node.item(), Some(before), Some(after), || key.clone(), out);
                }
            }
            (None, Some([after])) => put(node.item(), None, Some(after), || key.clone(), out),
            (Some([before]), None) => put(node.item(), Some(before), None, || key.clone(), out),
            // Items that cannot be told apart are owned together.
            (before, after) if before == after => {}
            (before, after) => {
                let whole = Value::Object(Map::new());
                let place = match (before, after) {
                    (None, _) => &mut out.added,
                    (_, None) => &mut out.removed,
                    _ => &mut out.modified,
                };
                place.insert(key.clone(), whole);
            }
        }
    }
}

/// The items of a list by what tells them apart.
fn keyed<'v>(node: Node<'_>, shape: Shape<'_>, list: Option<&'v Value>) -> BTreeMap<String, Vec<&'v Value>> {
    let mut out: BTreeMap<String, Vec<&'v Value>> = BTreeMap::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        if let Some(key) = node.key(shape, item) {
            out.entry(key).or_default().push(item);
        }
    }
    out
}
