//! The order of merged lists: the patch's elements in the patch's order, the server's other elements in theirs, woven so that
//! elements that the server knew keep their places.

use serde_json::Value;

use super::{ELEMENT_ORDER, Object, go_print};
use crate::status::Status;

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

fn position(list: &[Value], value: &Value, key: Option<&str>) -> Option<usize> {
    list.iter().position(|v| same(v, value, key))
}

/// Orders a merged list by the order of the patch and the order that the server had.
pub(super) fn normalize(
    merged: Vec<Value>,
    patch: &[Value],
    server: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let (mut ours, mut theirs): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|v| position(patch, v, key).is_some());
    ours.sort_by_key(|v| position(patch, v, key).unwrap_or(usize::MAX));
    theirs.sort_by_key(|v| position(server, v, key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        let server_first = match (theirs.peek(), ours.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(t), Some(o)) => {
                matches!((position(server, t, key), position(server, o, key)), (Some(t), Some(o)) if t < o)
            }
        };
        out.extend(if server_first { theirs.next() } else { ours.next() });
    }
}

/// Carries out `$setElementOrder/<list>`.
pub(super) fn set_element_order(
    merged: &mut Object,
    before: Option<&Value>,
    patch: Option<&Value>,
    list: &str,
    wanted: &Value,
    key: Option<&str>,
) -> Result<(), Status> {
    let Value::Array(wanted) = wanted else {
        return Err(Status::bad_request("invalid patch format of setElementOrder list"));
    };
    let patch: Vec<&Value> = patch.and_then(Value::as_array).into_iter().flatten().collect();
    let kept = patch.iter().filter(|v| v.get("$patch").is_none());
    let mut last = None;
    for value in kept {
        let at = position(wanted, value, key);
        if at.is_none() || at <= last {
            let shown: Vec<String> = patch.iter().map(|v| go_print(v)).collect();
            return Err(Status::plain(format!(
                "The order in patch list:\n[{}]\n doesn't match {} list:\n{}\n",
                shown.join(" "),
                ELEMENT_ORDER.trim_end_matches('/'),
                go_print(&Value::Array(wanted.clone()))
            )));
        }
        last = at;
    }
    if let Some(Value::Array(values)) = merged.get_mut(list) {
        let server = before.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        *values = normalize(std::mem::take(values), wanted, server, key);
    }
    Ok(())
}
