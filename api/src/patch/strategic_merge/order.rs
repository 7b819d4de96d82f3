//! The order of merged lists: the patch's elements in the patch's order, the server's other elements in theirs, woven so that
//! elements that the server knew keep their places.

use std::collections::HashMap;

use serde_json::Value;

use super::{ELEMENT_ORDER, Object, go_print};
use crate::status::Status;

/// Where elements are in a list: by their merge key, or by themselves where they are no objects.
pub(super) struct Positions<'k> {
    key: Option<&'k str>,
    at: HashMap<String, usize>,
}

impl<'k> Positions<'k> {
    pub(super) fn new(list: &[Value], key: Option<&'k str>) -> Self {
        let mut positions = Positions { key, at: HashMap::with_capacity(list.len()) };
        for (i, value) in list.iter().enumerate() {
            if let Some(identity) = positions.identity(value) {
                positions.at.entry(identity).or_insert(i);
            }
        }
        positions
    }

    /// The first place of an equal element.
    pub(super) fn of(&self, value: &Value) -> Option<usize> {
        self.at.get(&self.identity(value)?).copied()
    }

    /// The first place of an element with this merge key.
    pub(super) fn of_key(&self, key: &Value) -> Option<usize> {
        self.at.get(&key.to_string()).copied()
    }

    /// Notes where an element with this merge key is.
    pub(super) fn add(&mut self, key: &Value, at: usize) {
        self.at.entry(key.to_string()).or_insert(at);
    }

    fn identity(&self, value: &Value) -> Option<String> {
        match self.key {
            Some(key) => value.get(key).map(Value::to_string),
            None => Some(value.to_string()),
        }
    }
}

/// Orders a merged list by the order of the patch and the order that the server had.
pub(super) fn normalize(
    merged: Vec<Value>,
    patch: &[Value],
    server: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let (patch, server) = (Positions::new(patch, key), Positions::new(server, key));
    let (mut ours, mut theirs): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|v| patch.of(v).is_some());
    ours.sort_by_cached_key(|v| patch.of(v).unwrap_or(usize::MAX));
    theirs.sort_by_cached_key(|v| server.of(v).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ours.len() + theirs.len());
    let (mut ours, mut theirs) = (ours.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        let server_first = match (theirs.peek(), ours.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(t), Some(o)) => matches!((server.of(t), server.of(o)), (Some(t), Some(o)) if t < o),
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
    // Elements that are no objects have no merge key.
    let key = key.filter(|_| wanted.iter().any(Value::is_object));
    let positions = Positions::new(wanted, key);
    let patch: Vec<&Value> = patch.and_then(Value::as_array).into_iter().flatten().collect();
    let mut last = None;
    for value in patch.iter().filter(|v| v.get("$patch").is_none()) {
        let at = positions.of(value);
        if at.is_none() || at < last {
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
