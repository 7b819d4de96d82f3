//! JSON patch with the leniencies of Kubernetes': `replace` of a member that is missing adds it; a negative index counts
//! from the end.

use serde_json::Value;

use super::MAX_COPIED_BYTES;

/// The deepest document that a patch may make; decoding recurses.
const MAX_DEPTH: usize = 200;

/// `None` where an operation does not apply.
pub(super) fn apply(target: &Value, operations: &Value) -> Option<Value> {
    let mut document = target.clone();
    let mut copied = 0;
    // An upper bound of the depth of the document; measured again only when it grows past the limit.
    let mut depth = depth_of(target);
    for operation in operations.as_array()? {
        let text = |key: &str| operation.get(key).and_then(Value::as_str);
        let path = pointer(text("path")?)?;
        let value = || operation.get("value").cloned();
        let op = text("op")?;
        let grown = match op {
            "copy" | "move" => path.len() + depth,
            "add" | "replace" => path.len() + operation.get("value").map_or(0, depth_of),
            _ => 0,
        };
        match op {
            "add" => add(&mut document, &path, value()?)?,
            "replace" => replace(&mut document, &path, value()?)?,
            "remove" => drop(remove(&mut document, &path)?),
            "test" => {
                let found = get(&document, &path).unwrap_or(&Value::Null);
                let expected = operation.get("value").unwrap_or(&Value::Null);
                if !equal(found, expected) {
                    return None;
                }
            }
            "copy" => {
                let value = get(&document, &pointer(text("from")?)?)?.clone();
                copied += value.to_string().len();
                if copied > MAX_COPIED_BYTES {
                    return None;
                }
                add(&mut document, &path, value)?;
            }
            "move" => {
                let from = pointer(text("from")?)?;
                if path.len() > from.len() && path.starts_with(&from) {
                    return None;
                }
                let value = remove(&mut document, &from)?;
                add(&mut document, &path, value)?;
            }
            _ => return None,
        }
        depth = depth.max(grown);
        if depth > 2 * MAX_DEPTH {
            depth = depth_of(&document);
        }
        if depth > 2 * MAX_DEPTH {
            return None;
        }
    }
    (depth_of(&document) <= MAX_DEPTH).then_some(document)
}

// How deep objects and arrays nest, without recursion.
fn depth_of(value: &Value) -> usize {
    let mut open = vec![(value, 0)];
    let mut deepest = 0;
    while let Some((value, depth)) = open.pop() {
        deepest = deepest.max(depth);
        match value {
            Value::Array(list) => open.extend(list.iter().map(|v| (v, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|v| (v, depth + 1))),
            _ => {}
        }
    }
    deepest
}

// RFC 6901
fn pointer(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let rest = text.strip_prefix('/')?;
    Some(rest.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect())
}

fn index(part: &str, length: usize) -> Option<usize> {
    let at: i64 = part.parse().ok()?;
    let at = if at < 0 { at.checked_add(i64::try_from(length).ok()?)? } else { at };
    usize::try_from(at).ok()
}

fn get<'a>(document: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(document, |at, part| match at {
        Value::Object(map) => map.get(part),
        Value::Array(list) => list.get(index(part, list.len())?),
        _ => None,
    })
}

fn get_mut<'a>(document: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(document, |at, part| match at {
        Value::Object(map) => map.get_mut(part),
        Value::Array(list) => {
            let at = index(part, list.len())?;
            list.get_mut(at)
        }
        _ => None,
    })
}

fn add(document: &mut Value, path: &[String], value: Value) -> Option<()> {
    let Some((last, parent)) = path.split_last() else {
        *document = value;
        return Some(());
    };
    match get_mut(document, parent)? {
        Value::Object(map) => drop(map.insert(last.clone(), value)),
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            // Counted from the end, -1 is the place after the last item.
            let at = index(last, list.len() + usize::from(last.starts_with('-')))?;
            if at > list.len() {
                return None;
            }
            list.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn replace(document: &mut Value, path: &[String], value: Value) -> Option<()> {
    let Some((last, parent)) = path.split_last() else {
        *document = value;
        return Some(());
    };
    match get_mut(document, parent)? {
        Value::Object(map) => drop(map.insert(last.clone(), value)),
        Value::Array(list) => {
            let at = index(last, list.len())?;
            *list.get_mut(at)? = value;
        }
        _ => return None,
    }
    Some(())
}

fn remove(document: &mut Value, path: &[String]) -> Option<Value> {
    let (last, parent) = path.split_last()?;
    match get_mut(document, parent)? {
        Value::Object(map) => map.remove(last),
        Value::Array(list) => {
            let at = index(last, list.len())?;
            (at < list.len()).then(|| list.remove(at))
        }
        _ => None,
    }
}

// Numbers are equal by value: 1 and 1.0 are.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, x)| y.get(k).is_some_and(|y| equal(x, y)))
        }
        _ => a == b,
    }
}
