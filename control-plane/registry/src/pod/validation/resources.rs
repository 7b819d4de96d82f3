//! Requests and limits.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::quantity::Quantity;
use serde_json::Value;

use crate::check::{self, words};
use crate::value::{at, entries};

/// `resources` of a container.
pub fn resources(errors: &mut Vec<Error>, r: &Value, path: &Path) {
    let quantity = |v: &Value| v.as_str().and_then(|s| Quantity::parse(s).ok());
    for (name, value) in entries(r, "/limits") {
        let path = path.child("limits").key(name.as_str());
        resource_name(errors, &path, name);
        amount(errors, &path, name, value);
    }
    for (name, value) in entries(r, "/requests") {
        let keyed = path.child("requests").key(name.as_str());
        resource_name(errors, &keyed, name);
        amount(errors, &keyed, name, value);
        let Some(limit) = at(r, "/limits").get(name) else { continue };
        if let (Some(request), Some(most)) = (quantity(value), quantity(limit)) {
            let words = if extended(name) && request != most {
                format!("must be equal to {name} limit of {}", limit.as_str().unwrap_or_default())
            } else if request > most {
                format!(
                    "must be less than or equal to {name} limit of {}",
                    limit.as_str().unwrap_or_default()
                )
            } else {
                continue;
            };
            errors.push(Error::invalid(&path.child("requests"), value.clone(), words));
        }
    }
}

/// A map of resources to amounts, such as an overhead.
pub fn amounts(errors: &mut Vec<Error>, map: &Value, path: &Path) {
    for (name, value) in entries(map, "") {
        let path = path.key(name.as_str());
        resource_name(errors, &path, name);
        amount(errors, &path, name, value);
    }
}

fn standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

fn extended(name: &str) -> bool {
    name.contains('/')
        && !name.starts_with("requests.")
        && !name.split('/').next().unwrap_or_default().ends_with("kubernetes.io")
}

/// Names that are standard somewhere, in quotas for instance, though not for containers.
const STANDARD_ELSEWHERE: [&str; 17] = [
    "storage",
    "pods",
    "services",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "services.nodeports",
    "services.loadbalancers",
];

fn resource_name(errors: &mut Vec<Error>, path: &Path, name: &str) {
    let wrong = rules::qualified_name(name);
    if !wrong.is_empty() {
        words(errors, path, name, wrong);
        return;
    }
    if name.contains('/') || standard(name) {
        return;
    }
    if !STANDARD_ELSEWHERE.contains(&name) {
        errors.push(Error::invalid(path, name, "must be a standard resource type or fully qualified"));
    }
    errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
}

fn amount(errors: &mut Vec<Error>, path: &Path, name: &str, value: &Value) {
    let Some(q) = value.as_str().and_then(|s| Quantity::parse(s).ok()) else { return };
    if q.sign() < 0 {
        errors.push(Error::invalid(path, value.clone(), check::NEGATIVE));
    } else if extended(name) && !q.is_whole() {
        errors.push(Error::invalid(path, value.clone(), "must be an integer"));
    }
}
