//! What a request for devices says: classes, numbers, selectors, tolerations.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use crate::check;
use crate::custom_resource_definition::rules::compile::{compile_for, with_stack};
use crate::value::{at, entries, items, present, set_default, text};

/// Most selectors of a request or class.
const SELECTORS_MAX: usize = 32;
/// Most alternatives of a request.
const ALTERNATIVES_MAX: usize = 8;
/// Longest expression of a selector, in bytes.
const EXPRESSION_MAX: usize = 10 * 1024;
/// Most bytes of the parameters of a driver.
const PARAMETERS_MAX: usize = 10 * 1024;
const MODES: [&str; 2] = ["All", "ExactCount"];
const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

/// Sets what a request leaves out.
pub fn defaults(request: &mut Value) {
    if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
        one_defaults(exactly);
    }
    for alternative in crate::value::items_mut(request, "firstAvailable") {
        one_defaults(alternative);
    }
}

fn one_defaults(request: &mut Value) {
    set_default(request, "allocationMode", "ExactCount");
    if text(request, "/allocationMode") == "ExactCount" {
        crate::value::set_default_number(request, "count", 1);
    }
    for toleration in crate::value::items_mut(request, "tolerations") {
        set_default(toleration, "operator", "Equal");
    }
}

/// Everything wrong with a request.
pub fn request(errors: &mut Vec<Error>, request: &Value, path: &Path) {
    let name = text(request, "/name");
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        check::words(errors, &path.child("name"), name, rules::dns1123_label(name));
    }
    let alternatives = items(request, "/firstAvailable");
    match (present(request, "/exactly"), alternatives.is_empty()) {
        (true, true) => one(errors, at(request, "/exactly"), &path.child("exactly")),
        (false, false) => {
            let path = path.child("firstAvailable");
            if alternatives.len() > ALTERNATIVES_MAX {
                errors.push(Error::too_many(&path, alternatives.len(), ALTERNATIVES_MAX));
            }
            let mut names = Vec::new();
            for (i, alternative) in alternatives.iter().enumerate() {
                let path = path.index(i);
                let name = text(alternative, "/name");
                check::words(errors, &path.child("name"), name, rules::dns1123_label(name));
                if names.contains(&name) {
                    errors.push(Error::duplicate(&path.child("name"), name));
                }
                names.push(name);
                one(errors, alternative, &path);
            }
        }
        (true, false) => {
            let words =
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.push(Error::invalid(path, request.clone(), words));
        }
        (false, true) => {
            errors.push(Error::required(path, "exactly one of `exactly` or `firstAvailable` is required"));
        }
    }
}

fn one(errors: &mut Vec<Error>, request: &Value, path: &Path) {
    let class = text(request, "/deviceClassName");
    if class.is_empty() {
        errors.push(Error::required(&path.child("deviceClassName"), ""));
    } else {
        check::words(errors, &path.child("deviceClassName"), class, rules::dns1123_subdomain(class));
    }
    selectors(errors, items(request, "/selectors"), &path.child("selectors"));
    let mode = text(request, "/allocationMode");
    check::one_of(errors, &path.child("allocationMode"), mode, &MODES, true);
    let count = crate::value::number(request, "/count");
    if mode == "All" && count != 0 {
        let words = "must not be specified when allocationMode is 'All'";
        errors.push(Error::invalid(&path.child("count"), count, words));
    }
    if mode == "ExactCount" && count <= 0 {
        errors.push(Error::invalid(&path.child("count"), count, "must be greater than zero"));
    }
    for (i, toleration) in items(request, "/tolerations").iter().enumerate() {
        let path = path.child("tolerations").index(i);
        let operator = text(toleration, "/operator");
        check::one_of(errors, &path.child("operator"), operator, &["Equal", "Exists"], true);
        check::one_of(errors, &path.child("effect"), text(toleration, "/effect"), &EFFECTS, false);
        if operator == "Exists" && !text(toleration, "/value").is_empty() {
            let words = "must be empty for operator `Exists`";
            errors.push(Error::invalid(&path.child("value"), text(toleration, "/value"), words));
        }
    }
}

/// Everything wrong with selectors.
pub fn selectors(errors: &mut Vec<Error>, selectors: &[Value], path: &Path) {
    if selectors.len() > SELECTORS_MAX {
        errors.push(Error::too_many(path, selectors.len(), SELECTORS_MAX));
        return;
    }
    for (i, selector) in selectors.iter().enumerate() {
        let path = path.index(i).child("cel");
        if !present(selector, "/cel") {
            errors.push(Error::required(&path, ""));
            continue;
        }
        let path = path.child("expression");
        let source = text(selector, "/cel/expression");
        if source.trim().is_empty() {
            errors.push(Error::required(&path, ""));
        } else if source.len() > EXPRESSION_MAX {
            errors.push(Error::too_long(&path, EXPRESSION_MAX));
        } else {
            match with_stack(|| compile_for(source, &["device"]).err().map(|e| e.to_string())) {
                Some(None) => {}
                Some(Some(why)) => {
                    errors.push(Error::invalid(&path, source, format!("compilation failed: {why}")));
                }
                None => errors.push(Error::internal(&path, "the expression could not be read")),
            }
        }
    }
}

/// Everything wrong with parameters for drivers.
pub fn configuration(errors: &mut Vec<Error>, config: &Value, path: &Path) {
    if !present(config, "/opaque") {
        errors.push(Error::required(&path.child("opaque"), ""));
        return;
    }
    let path = path.child("opaque");
    let driver = text(config, "/opaque/driver");
    driver_name(errors, driver, &path.child("driver"));
    let parameters = at(config, "/opaque/parameters");
    if parameters.is_null() {
        errors.push(Error::required(&path.child("parameters"), ""));
    } else if !parameters.is_object() {
        let words = "parameters must be a valid JSON object";
        errors.push(Error::invalid(&path.child("parameters"), "<value omitted>", words));
    } else if parameters.to_string().len() > PARAMETERS_MAX {
        errors.push(Error::too_long(&path.child("parameters"), PARAMETERS_MAX));
    }
}

/// Everything wrong with the name of a driver.
pub fn driver_name(errors: &mut Vec<Error>, name: &str, path: &Path) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
    } else if name.len() > 63 {
        errors.push(Error::too_long(path, 63));
    } else {
        check::words(errors, path, name, rules::dns1123_subdomain(name));
    }
}

/// Errors of names such as `model` or `example.com/model`.
pub fn qualified(errors: &mut Vec<Error>, map: &Value, path: &Path) {
    for (name, _) in entries(map, "") {
        let (domain, id) = name.rsplit_once('/').unwrap_or(("", name));
        let path = path.key(name);
        if !domain.is_empty() {
            check::words(errors, &path, domain, rules::dns1123_subdomain(domain));
        }
        let begins = id.bytes().next().is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
        let fits = begins && id.len() <= 32 && id.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !fits {
            errors.push(Error::invalid(
                &path,
                id,
                "a valid C identifier of at most 32 characters is required",
            ));
        }
    }
}
