//! An object without some of its fields.

use serde_json::{Map, Value};

use super::fields::{Fields, contains, field, inside};
use super::shape::{Node, Shape};

/// The value without the fields of a set. What becomes empty on the way stays, empty.
pub(super) fn remove(node: Node<'_>, value: &Value, set: &Fields) -> Value {
    match (node.shape(value), value) {
        (Shape::Map, Value::Object(map)) => {
            let mut out = Map::new();
            for (name, member) in map {
                let key = field(name);
                if contains(set, &key) {
                    continue;
                }
                let kept = match inside(set, &key) {
                    Some(below) => {
                        let inner = node.member(name).map_or(Node::Unknown, |(inner, _)| inner);
                        remove(inner, member, below)
                    }
                    None => member.clone(),
                };
                out.insert(name.clone(), kept);
            }
            Value::Object(out)
        }
        (shape @ (Shape::Set | Shape::Keyed(_)), Value::Array(list)) => {
            let mut out = Vec::with_capacity(list.len());
            for item in list {
                let Some(key) = node.key(shape, item) else {
                    out.push(item.clone());
                    continue;
                };
                if contains(set, &key) {
                    continue;
                }
                out.push(match inside(set, &key) {
                    Some(below) => remove(node.item(), item, below),
                    None => item.clone(),
                });
            }
            Value::Array(out)
        }
        _ => value.clone(),
    }
}
