//! What a failed pod means to its Job (pod failure policy), and when enough has succeeded (success policy). Pure.

use std::collections::BTreeSet;

use super::indexes;
use crate::view::{ContainerStatus, Job, Meta, OnExitCodes, Pod, PodFailurePolicy, condition};

/// What a failed pod does to its Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts against the back-off limit.
    Count,
    /// It is replaced and not counted.
    Ignore,
    /// Its index has failed.
    FailIndex,
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
            "FailIndex" => Verdict::FailIndex,
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

/// Which rule of the success policy the indexes that are done fulfil, in Kubernetes' words; the first that holds counts.
pub fn succeeded(job: &Job, done: &BTreeSet<i64>) -> Option<String> {
    let policy = job.spec.success_policy.as_ref().filter(|_| job.is_indexed())?;
    let end = job.spec.completions.unwrap_or(i64::MAX);
    let holds = policy.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_deref().map(|text| indexes::read(text, end));
        let count = match &wanted {
            Some(wanted) => wanted.intersection(done).count(),
            None => done.len(),
        };
        let enough = rule.succeeded_count.and_then(|n| usize::try_from(n).ok());
        enough.or(wanted.map(|w| w.len())).is_some_and(|enough| count >= enough)
    })?;
    Some(format!("Matched rules at index {holds}"))
}
