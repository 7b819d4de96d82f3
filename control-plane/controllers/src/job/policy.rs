//! What a failed pod means to its Job: the pod failure policy. Pure.

use crate::view::{ContainerStatus, Meta, OnExitCodes, Pod, PodFailurePolicy, condition};

/// What a failed pod does to its Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts against the back-off limit.
    Count,
    /// It is replaced and not counted.
    Ignore,
    /// The Job has failed, with this message.
    FailJob(String),
}

/// The verdict on a pod that failed; the first rule that matches counts.
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    for (index, rule) in policy.iter().flat_map(|p| &p.rules).enumerate() {
        let Some(what) = matched(rule.on_exit_codes.as_ref(), &rule.on_pod_conditions, pod) else { continue };
        return match rule.action.as_str() {
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {index}")),
            "Ignore" => Verdict::Ignore,
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matched(
    codes: Option<&OnExitCodes>,
    conditions: &[crate::view::OnPodCondition],
    pod: &Pod,
) -> Option<String> {
    let name = format!("{}/{}", pod.namespace(), pod.name());
    if let Some(codes) = codes {
        let all = pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses);
        let (container, code) = all.filter_map(|c| Some((c, exit_code(c)?))).find(|(c, code)| {
            let named = codes.container_name.as_ref().is_none_or(|n| *n == c.name);
            named && *code != 0 && (codes.operator == "NotIn") != codes.values.contains(code)
        })?;
        return Some(format!("Container {} for pod {name} failed with exit code {code}", container.name));
    }
    let found = conditions.iter().find(|wanted| {
        let status = if wanted.status.is_empty() { "True" } else { &wanted.status };
        condition(&pod.status.conditions, &wanted.type_).is_some_and(|c| c.status == status)
    })?;
    Some(format!("Pod {name} has condition {}", found.type_))
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.terminated.as_ref()?.exit_code)
}
