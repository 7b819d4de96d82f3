//! What webhooks and admission policies have in common: rules that say which calls they are about, selectors, and conditions.

mod validation;

use serde_json::Value;

use crate::check;
use crate::value::{at, items, items_mut, object, set_default, text};

pub use validation::{conditions, match_resources, rule, selectors};

/// What a rule is held against.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub name: &'a str,
    /// Whether the object lives in a namespace.
    pub namespaced: bool,
}

/// Whether a rule covers a call.
pub fn covers(rule: &Value, asked: &Asked<'_>) -> bool {
    let listed =
        |field: &str, value: &str| items(rule, &format!("/{field}")).iter().any(|v| v == "*" || v == value);
    let scope = match text(rule, "/scope") {
        "Cluster" => !asked.namespaced,
        "Namespaced" => asked.namespaced,
        _ => true,
    };
    let names = items(rule, "/resourceNames");
    scope
        && listed("operations", asked.operation)
        && listed("apiGroups", asked.group)
        && listed("apiVersions", asked.version)
        && items(rule, "/resources").iter().filter_map(Value::as_str).any(|r| resource(r, asked))
        && (names.is_empty() || names.iter().any(|n| n == asked.name))
}

/// `pods`, `pods/status`, `pods/*` (pods too), `*`, `*/scale` or `*/*`.
fn resource(pattern: &str, asked: &Asked<'_>) -> bool {
    let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
    (resource == "*" || resource == asked.resource) && (sub == "*" || sub == asked.subresource)
}

/// Whether one of some objects has the labels that a selector wants. An empty selector wants nothing.
pub fn chosen(selector: &Value, objects: [&Value; 2]) -> bool {
    check::selector_is_empty(selector)
        || objects
            .iter()
            .any(|o| o.is_object() && check::selector_matches(selector, at(o, "/metadata/labels")))
}

/// Fills in what a policy or a binding matches.
pub fn default_match(matched: &mut Value) {
    set_default(matched, "matchPolicy", "Equivalent");
    object(matched, "namespaceSelector");
    object(matched, "objectSelector");
    for list in ["resourceRules", "excludeResourceRules"] {
        items_mut(matched, list).for_each(|rule| set_default(rule, "scope", "*"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_covered() {
        let asked = |subresource| Asked {
            operation: "CREATE",
            group: "",
            version: "v1",
            resource: "pods",
            subresource,
            name: "p",
            namespaced: true,
        };
        let rule = |resources: &[&str]| json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["*"], "resources": resources});
        assert!(covers(&rule(&["pods"]), &asked("")));
        assert!(!covers(&rule(&["pods"]), &asked("status")));
        assert!(covers(&rule(&["pods/*"]), &asked("status")));
        assert!(covers(&rule(&["pods/*"]), &asked("")));
        assert!(covers(&rule(&["*/status"]), &asked("status")));
        assert!(covers(&rule(&["*/*"]), &asked("")));
        assert!(covers(&rule(&["*"]), &asked("")));
        assert!(!covers(&rule(&["*"]), &asked("status")));
        assert!(!covers(&rule(&["services"]), &asked("")));
        let mut cluster = rule(&["*"]);
        cluster["scope"] = "Cluster".into();
        assert!(!covers(&cluster, &asked("")));
        let mut named = rule(&["*"]);
        named["resourceNames"] = json!(["q"]);
        assert!(!covers(&named, &asked("")));
    }

    #[test]
    fn who_is_chosen() {
        let selector = json!({"matchLabels": {"a": "b"}});
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        assert!(chosen(&selector, [&Value::Null, &labelled]));
        assert!(chosen(&json!({}), [&Value::Null, &Value::Null]));
        let absent = json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]});
        assert!(!chosen(&absent, [&Value::Null, &Value::Null]), "what is no object has no labels");
        assert!(chosen(&absent, [&json!({"metadata": {}}), &Value::Null]));
    }
}
