//! Conditions of an autoscaler. Pure.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::events::whole_second;

/// Sets a condition; its time changes only with its status.
pub fn set(
    status: &mut HorizontalPodAutoscalerStatus,
    type_: &str,
    holds: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let value = if holds { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let since = conditions.iter().find(|c| c.type_ == type_ && c.status == value);
    let since = since.and_then(|c| c.last_transition_time.clone());
    let new = HorizontalPodAutoscalerCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(since.unwrap_or_else(|| Time(whole_second(now)))),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(there) => *there = new,
        None => conditions.push(new),
    }
}
