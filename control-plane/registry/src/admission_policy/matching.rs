//! Which calls a policy or a binding is about. Pure.

use serde_json::Value;

use crate::check;
use crate::value::{at, items, text};

/// What is matched.
pub struct Call<'a> {
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: Option<&'a str>,
    pub name: &'a str,
    pub namespaced: bool,
    /// Labels of the namespace, or of the object itself if it is one; null where there is none.
    pub namespace_labels: &'a Value,
    /// Labels of the object before and after.
    pub labels: [&'a Value; 2],
}

/// Whether `matchConstraints` or `matchResources` cover a call. A binding without rules covers all that its policy does.
pub fn covers(matched: &Value, call: &Call<'_>) -> bool {
    let rules = items(matched, "/resourceRules");
    let any = |rules: &[Value]| rules.iter().any(|r| rule(r, call));
    if !rules.is_empty() && !any(rules) || any(items(matched, "/excludeResourceRules")) {
        return false;
    }
    let namespaces = at(matched, "/namespaceSelector");
    let in_namespace = check::selector_is_empty(namespaces)
        || call.namespace_labels.is_null()
        || check::selector_matches(namespaces, call.namespace_labels);
    let objects = at(matched, "/objectSelector");
    let chosen = check::selector_is_empty(objects)
        || call.labels.iter().any(|l| !l.is_null() && check::selector_matches(objects, l));
    in_namespace && chosen
}

fn rule(rule: &Value, call: &Call<'_>) -> bool {
    let listed =
        |field: &str, value: &str| items(rule, &format!("/{field}")).iter().any(|v| v == "*" || v == value);
    let scope = match text(rule, "/scope") {
        "Cluster" => !call.namespaced,
        "Namespaced" => call.namespaced,
        _ => true,
    };
    let names = items(rule, "/resourceNames");
    scope
        && listed("operations", call.operation)
        && listed("apiGroups", call.group)
        && listed("apiVersions", call.version)
        && items(rule, "/resources").iter().filter_map(Value::as_str).any(|r| resource(r, call))
        && (names.is_empty() || names.iter().any(|n| n == call.name))
}

/// `pods`, `pods/status`, `pods/*`, `*`, `*/scale` or `*/*`.
fn resource(pattern: &str, call: &Call<'_>) -> bool {
    let (resource, sub) = match pattern.split_once('/') {
        Some((resource, sub)) => (resource, Some(sub)),
        None => (pattern, None),
    };
    let subresource = match (sub, call.subresource) {
        (None, given) => given.is_none(),
        (Some("*"), given) => given.is_some() || pattern == "*/*",
        (Some(sub), given) => given == Some(sub),
    };
    (resource == "*" || resource == call.resource) && subresource
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_covered() {
        let labels = json!({"a": "b"});
        let call = |subresource| Call {
            operation: "CREATE",
            group: "",
            version: "v1",
            resource: "pods",
            subresource,
            name: "p",
            namespaced: true,
            namespace_labels: &labels,
            labels: [&Value::Null, &labels],
        };
        let matched = |resources: &[&str]| json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["*"], "resources": resources}]});
        assert!(covers(&matched(&["pods"]), &call(None)));
        assert!(!covers(&matched(&["pods"]), &call(Some("status"))));
        assert!(covers(&matched(&["pods/*"]), &call(Some("status"))));
        assert!(covers(&matched(&["*/*"]), &call(None)));
        assert!(!covers(&matched(&["services"]), &call(None)));
        let mut only = matched(&["pods"]);
        only["namespaceSelector"] = json!({"matchLabels": {"a": "c"}});
        assert!(!covers(&only, &call(None)));
        let mut but = matched(&["*"]);
        but["excludeResourceRules"] = matched(&["pods"])["resourceRules"].clone();
        assert!(!covers(&but, &call(None)));
        assert!(covers(&json!({}), &call(None)));
    }
}
