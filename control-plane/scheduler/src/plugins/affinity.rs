//! Node selector and required node affinity.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::Reasons;
use crate::cycle::Room;
use crate::view::PodView;

/// Refuses a node whose labels do not match.
pub fn filter(pod: &PodView, room: &Room) -> Reasons {
    let labels = &room.node.labels;
    let selected = pod.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let required = pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        required.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    // Terms are alternatives; an empty list matches nothing.
    let wanted = required.is_none_or(|selector| {
        selector.node_selector_terms.iter().any(|term| matches(term, labels, &room.node.name))
    });
    if selected && wanted {
        Vec::new()
    } else {
        vec!["node(s) didn't match Pod's node affinity/selector".to_owned()]
    }
}

fn matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|one| holds(one, labels.get(&one.key).map(String::as_str)))
        && fields.iter().all(|one| one.key == "metadata.name" && holds(one, Some(name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|one| one == value));
    let compare = |wanted: fn(&i64, &i64) -> bool| {
        let number = value.and_then(|value| value.parse().ok());
        let bound = values.first().and_then(|value| value.parse().ok());
        number.zip(bound).is_some_and(|(number, bound)| wanted(&number, &bound))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}
