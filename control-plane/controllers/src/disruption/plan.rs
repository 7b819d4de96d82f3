//! From a budget and its pods to its status. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::deployment::limits::scaled;
use crate::events::whole_second;
use crate::view::{Condition, Meta, Pod, PodDisruptionBudget, PodDisruptionBudgetStatus, condition};

/// An eviction that was allowed and not seen after this many seconds did not happen.
const DISRUPTION_SECONDS: i64 = 120;

/// The status. `expected` is how many pods their controllers want; it decides where the budget is relative.
pub fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i64,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let count = i64::try_from(pods.iter().filter(|p| p.is_active()).count()).unwrap_or(i64::MAX);
    let (expected, desired) = match (&budget.spec.max_unavailable, &budget.spec.min_available) {
        (Some(most), _) => (expected, (expected - scaled(most, expected, true)).max(0)),
        (None, Some(IntOrString::Int(least))) => (count, i64::from(*least)),
        (None, Some(least)) => (expected, scaled(least, expected, true)),
        (None, None) => (count, count),
    };
    let mut disrupted = budget.status.disrupted_pods.clone();
    disrupted.retain(|name, at| {
        let there = pods.iter().any(|p| p.name() == name && !p.is_terminating());
        there && now.as_second() - at.0.as_second() < DISRUPTION_SECONDS
    });
    let healthy = pods.iter().filter(|p| p.is_active() && p.is_ready() && !disrupted.contains_key(p.name()));
    let healthy = i64::try_from(healthy.count()).unwrap_or(i64::MAX);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let mut conditions = budget.status.conditions.clone();
    let (value, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let before =
        condition(&conditions, "DisruptionAllowed").filter(|c| c.status == value && c.reason == reason);
    if before.is_none() {
        conditions.retain(|c| c.type_ != "DisruptionAllowed");
        conditions.push(Condition {
            type_: "DisruptionAllowed".into(),
            status: value.into(),
            reason: reason.into(),
            last_transition_time: Some(Time(whole_second(now))),
            ..Condition::default()
        });
    }
    PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation.unwrap_or(0),
        disrupted_pods: disrupted,
        disruptions_allowed: allowed,
        current_healthy: healthy,
        desired_healthy: desired,
        expected_pods: expected,
        conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_may_go() {
        let pod = |name: &str, ready: bool| -> Arc<Pod> {
            let status = if ready { "True" } else { "False" };
            Arc::new(serde_json::from_value(json!({
                "metadata": { "name": name }, "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": status }] },
            })).unwrap())
        };
        let pods = [pod("a", true), pod("b", true), pod("c", true), pod("d", false)];
        let now = Timestamp::from_second(1000).unwrap();
        let allowed = |spec: Value, status: Value| {
            let budget =
                serde_json::from_value(json!({ "metadata": {}, "spec": spec, "status": status })).unwrap();
            let status = super::status(&budget, &pods, 4, now);
            (status.desired_healthy, status.disruptions_allowed)
        };
        assert_eq!(allowed(json!({ "minAvailable": 2 }), json!({})), (2, 1));
        assert_eq!(allowed(json!({ "minAvailable": "50%" }), json!({})), (2, 1));
        assert_eq!(allowed(json!({ "maxUnavailable": 1 }), json!({})), (3, 0));
        assert_eq!(allowed(json!({ "maxUnavailable": "50%" }), json!({})), (2, 1));
        let recent = json!({ "disruptedPods": { "a": crate::events::api_time(now) } });
        assert_eq!(allowed(json!({ "minAvailable": 2 }), recent), (2, 0), "an eviction under way counts");
        let stale = json!({ "disruptedPods": { "a": "1970-01-01T00:10:00Z" } });
        assert_eq!(allowed(json!({ "minAvailable": 2 }), stale), (2, 1));
    }
}
