//! The spec of a claim, which templates of claims have too.

use coracle_api::field::{Error, Path};
use serde_json::Value;

use super::request;
use crate::value::{items, items_mut, present, text};

/// Most requests, constraints and configurations of a claim.
const MAX: usize = 32;

/// Sets what the spec of a claim leaves out.
pub fn defaults(spec: &mut Value) {
    if let Some(devices) = spec.get_mut("devices") {
        items_mut(devices, "requests").for_each(request::defaults);
    }
}

/// Everything wrong with the spec of a claim.
pub fn check(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let path = path.child("devices");
    let requests = items(spec, "/devices/requests");
    for (field, count) in [
        ("requests", requests.len()),
        ("constraints", items(spec, "/devices/constraints").len()),
        ("config", items(spec, "/devices/config").len()),
    ] {
        if count > MAX {
            errors.push(Error::too_many(&path.child(field), count, MAX));
        }
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, one) in requests.iter().enumerate() {
        let path = path.child("requests").index(i);
        let name = text(one, "/name");
        if names.contains(&name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        names.push(name);
        request::request(errors, one, &path);
    }
    for (i, constraint) in items(spec, "/devices/constraints").iter().enumerate() {
        let path = path.child("constraints").index(i);
        named(errors, constraint, &names, &path);
        if !present(constraint, "/matchAttribute") && !present(constraint, "/distinctAttribute") {
            errors.push(Error::required(
                &path,
                "exactly one of `matchAttribute` or `distinctAttribute` is required",
            ));
        }
    }
    for (i, config) in items(spec, "/devices/config").iter().enumerate() {
        let path = path.child("config").index(i);
        named(errors, config, &names, &path);
        request::configuration(errors, config, &path);
    }
}

/// What names requests must name some that are there, or their alternatives.
fn named(errors: &mut Vec<Error>, what: &Value, names: &[&str], path: &Path) {
    for (i, name) in items(what, "/requests").iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        let (main, _) = name.split_once('/').unwrap_or((name, ""));
        if !names.contains(&main) {
            let words = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
            errors.push(Error::invalid(&path.child("requests").index(i), name, words));
        }
    }
}

/// The requests that ask for devices in use by others, which only administrators may.
pub fn asks_for_admin_access(spec: &Value) -> bool {
    items(spec, "/devices/requests").iter().any(|r| crate::value::flag(r, "/exactly/adminAccess"))
}
