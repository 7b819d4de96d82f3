//! `nodeSelector` and node affinity: the labels and fields that a node must, or should, have.

use coracle_api::labels::{Operator, Requirement};
use coracle_controllers::view::{Meta, Node};
use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm};

use super::Reasons;
use crate::demand::Demand;
use crate::snapshot::NodeInfo;

/// Refuses nodes that do not match `nodeSelector` or the required node affinity.
pub fn filter(demand: &Demand, node: &Node, _: &NodeInfo) -> Reasons {
    let mut wanted = demand.pod.spec.node_selector.iter().flatten();
    let selected = wanted.all(|(key, value)| node.label(key) == Some(value));
    let required = affinity(demand).and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    // Terms are alternatives; no term matches nothing.
    let allowed = required.is_none_or(|r| r.node_selector_terms.iter().any(|t| matches(t, node)));
    if selected && allowed { Vec::new() } else { vec!["node(s) didn't match Pod's node affinity/selector".into()] }
}

/// The sum of the weights of preferred terms that match.
pub fn preference(demand: &Demand, node: &Node) -> i64 {
    let preferred = affinity(demand).and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let terms = preferred.into_iter().flatten().filter(|p| matches(&p.preference, node));
    terms.map(|p| i64::from(p.weight)).sum()
}

fn affinity(demand: &Demand) -> Option<&NodeAffinity> {
    demand.pod.spec.affinity.as_ref()?.node_affinity.as_ref()
}

fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = |key: &str| Some(node.name()).filter(|_| key == "metadata.name");
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|r| holds(r, node.label(&r.key)))
        && fields.iter().all(|r| holds(r, name(&r.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return false,
    };
    let values = requirement.values.clone().unwrap_or_default();
    Requirement::new(&requirement.key, operator, values).is_ok_and(|r| r.matches(value))
}
