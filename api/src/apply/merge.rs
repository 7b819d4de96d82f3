//! An object with a configuration laid over it.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::shape::{Node, Shape};

/// What the configuration sets is as it says; the rest stays.
pub(super) fn merge(node: Node<'_>, live: &Value, config: &Value) -> Value {
    match (node.shape(config), live, config) {
        (Shape::Map, Value::Object(live), Value::Object(config)) => {
            let mut out = live.clone();
            for (name, theirs) in config {
                let inner = node.member(name).map_or(Node::Unknown, |(inner, _)| inner);
                let merged = match live.get(name) {
                    Some(ours) => merge(inner, ours, theirs),
                    None => theirs.clone(),
                };
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::Map, Value::Object(live), Value::Null) if !live.is_empty() => Value::Object(live.clone()),
        (shape @ (Shape::Set | Shape::Keyed(_)), Value::Array(live), Value::Array(config)) => {
            lists(node, shape, live, config)
        }
        (Shape::Set | Shape::Keyed(_), Value::Array(live), Value::Null) if !live.is_empty() => {
            Value::Array(live.clone())
        }
        _ => config.clone(),
    }
}

/// Items of both, those of the configuration in its order, the others where they stood among them.
fn lists(node: Node<'_>, shape: Shape<'_>, live: &[Value], config: &[Value]) -> Value {
    let key = |item: &Value| node.key(shape, item).unwrap_or_default();
    let (ours, theirs): (Vec<String>, Vec<String>) =
        (live.iter().map(key).collect(), config.iter().map(key).collect());
    let place: HashMap<&String, &Value> = ours.iter().zip(live).collect();
    let wanted: HashSet<&String> = theirs.iter().collect();
    let mut shared = theirs.iter().filter(|k| place.contains_key(k)).peekable();
    let merged = |k: &String, item: &Value| match place.get(k) {
        Some(old) => merge(node.item(), old, item),
        None => item.clone(),
    };
    let mut out = Vec::with_capacity(live.len() + config.len());
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < config.len() {
        if let (Some(ours), Some(item)) = (ours.get(l), live.get(l)) {
            if !wanted.contains(ours) {
                out.push(item.clone());
                l += 1;
                continue;
            }
            // Shared, but not the next one: it comes where the configuration has it.
            if shared.peek().is_some_and(|next| *next != ours) || r >= config.len() {
                l += 1;
                continue;
            }
        }
        let (Some(theirs), Some(item)) = (theirs.get(r), config.get(r)) else {
            l += 1;
            continue;
        };
        out.push(merged(theirs, item));
        if shared.peek() == Some(&theirs) {
            shared.next();
            if ours.get(l) == Some(theirs) {
                l += 1;
            }
        }
        r += 1;
    }
    Value::Array(out)
}
