//! An applied configuration against its type: what it owns, and what is wrong with it.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::fields::{Fields, SELF, entry, field, step};
use super::shape::{Node, Shape, Wanted};

/// The most errors that are listed.
const MAX_ERRORS: usize = 20;

/// The fields that an object sets.
pub(super) fn field_set(node: Node<'_>, value: &Value) -> Fields {
    let mut out = Map::new();
    children(node, value, &mut out);
    out
}

/// Adds what is below a value; true if the value itself is a field to own.
fn children(node: Node<'_>, value: &Value, out: &mut Fields) -> bool {
    match (node.shape(value), value) {
        (Shape::Leaf, _) => true,
        (Shape::Map, Value::Object(map)) => {
            for (name, member) in map {
                let (inner, declared) = node.member(name).unwrap_or((Node::Unknown, true));
                let mut below = Map::new();
                let empty = member.is_null() || member.as_object().is_some_and(Map::is_empty);
                let own = children(inner, member, &mut below) || empty || !declared;
                if let Some(entry) = entry(own, below) {
                    out.insert(field(name), entry);
                }
            }
            false
        }
        (shape @ (Shape::Set | Shape::Keyed(_)), Value::Array(list)) => {
            for item in list {
                let Some(key) = node.key(shape, item) else { continue };
                let mut below = Map::new();
                children(node.item(), item, &mut below);
                if let Some(entry) = entry(true, below) {
                    out.insert(key, entry);
                }
            }
            false
        }
        _ => false,
    }
}

/// The set with every named field on the way to one of its fields.
pub(super) fn with_named(node: Node<'_>, set: &Fields) -> Fields {
    let mut out = Map::new();
    for (key, value) in set {
        let Some(inner) = value.as_object().filter(|_| key != SELF) else { continue };
        let own = inner.is_empty() || inner.contains_key(SELF);
        let (at, named) = match key.strip_prefix("f:") {
            Some(name) => node.member(name).unwrap_or((Node::Unknown, false)),
            None => (node.item(), false),
        };
        if let Some(entry) = entry(own || named, with_named(at, inner)) {
            out.insert(key.clone(), entry);
        }
    }
    out
}

/// What is wrong with the types of a configuration, in the words of structured-merge-diff; empty for nothing.
pub(super) fn errors(node: Node<'_>, value: &Value) -> Vec<String> {
    let mut out = Vec::new();
    check(node, value, "", &mut out);
    out.truncate(MAX_ERRORS);
    out
}

fn check(node: Node<'_>, value: &Value, path: &str, out: &mut Vec<String>) {
    if out.len() >= MAX_ERRORS || value.is_null() {
        return;
    }
    let wanted = node.wanted();
    let words = match (wanted, value) {
        (Wanted::Any, _)
        | (Wanted::Map, Value::Object(_))
        | (Wanted::List, Value::Array(_))
        | (Wanted::String, Value::String(_))
        | (Wanted::Number, Value::Number(_))
        | (Wanted::Boolean, Value::Bool(_)) => None,
        (Wanted::Map, _) => Some(format!("expected map, got {}", shown(value))),
        (Wanted::List, _) => Some(format!("expected list, got {}", shown(value))),
        (Wanted::String, _) => Some(format!("expected string, got {}", shown(value))),
        (Wanted::Number, _) => Some(format!("expected numeric (int or float), got {}", go_type(value))),
        (Wanted::Boolean, _) => Some(format!("expected boolean, got {}", shown(value))),
    };
    if let Some(words) = words {
        out.push(format!("{path}: {words}"));
        return;
    }
    match value {
        Value::Object(map) if wanted == Wanted::Map => {
            for (name, member) in map {
                let path = format!("{path}.{name}");
                match node.member(name) {
                    Some((inner, _)) => check(inner, member, &path, out),
                    None => out.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        Value::Array(list) if wanted == Wanted::List => {
            let shape = node.shape(value);
            let mut seen = HashSet::new();
            for (i, item) in list.iter().enumerate() {
                let place = match shape {
                    Shape::Leaf | Shape::Map => format!("{path}[{i}]"),
                    _ => match node.key(shape, item) {
                        None => {
                            out.push(format!(
                                "{path}: element {i}: associative list with keys has an element that omits all key fields (and doesn't have default values for any key fields)"
                            ));
                            continue;
                        }
                        Some(key) => {
                            let place = step(&key);
                            if !seen.insert(key) {
                                out.push(format!("{path}: duplicate entries for key {place}"));
                                continue;
                            }
                            format!("{path}{place}")
                        }
                    },
                };
                check(node.item(), item, &place, out);
            }
        }
        _ => {}
    }
}

fn shown(value: &Value) -> String {
    let inner = match value {
        Value::Object(_) => "map[]".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    format!("&value.valueUnstructured{{Value:{inner}}}")
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        _ => "nil",
    }
}
