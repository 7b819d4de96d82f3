//! From what pods use to how many there should be. Pure.
//!
//! Pods that say nothing count against any change: as fully used when scaling down, as idle when scaling up.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::quantity::Quantity;
use jiff::Timestamp;

use crate::view::{Meta, Pod, condition};

/// A pod's readiness counts only when it is this old, or its metrics are fresh, in seconds.
const INITIALIZATION: i64 = 300;
/// A pod that turned unready this soon after its start never was ready, in seconds.
const INITIAL_READINESS: i64 = 30;

/// What a pod uses of one resource, in thousandths of its unit.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub milli: i64,
    pub at: Timestamp,
    /// Seconds that the number is an average over.
    pub window: i64,
}

/// What the metric asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Percent of what the pods request.
    Utilization(i64),
    /// Thousandths of the unit, a pod.
    AverageValue(i64),
}

/// The pods and what is known of them.
pub struct State<'a> {
    pub pods: &'a [Arc<Pod>],
    pub used: &'a BTreeMap<String, Used>,
    /// `cpu` or `memory`.
    pub resource: &'a str,
    /// Only this container's requests.
    pub container: Option<&'a str>,
    /// `(up, down)`: how far from the target is near enough.
    pub tolerance: (f64, f64),
    pub now: Timestamp,
}

/// How many pods there should be, and how it was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    pub replicas: i64,
    /// Percent of requests; only for a target in percent.
    pub utilization: Option<i64>,
    /// Average over pods, in thousandths.
    pub average: i64,
}

struct Groups<'a> {
    ready: Vec<(&'a Arc<Pod>, i64)>,
    unready: Vec<&'a Arc<Pod>>,
    missing: Vec<&'a Arc<Pod>>,
}

/// The number of pods that the target asks for, given that `current` are wanted now.
///
/// # Errors
/// Why it cannot be told, for people.
pub fn replicas(state: &State<'_>, target: Target, current: i64) -> Result<Answer, String> {
    if state.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_string());
    }
    let groups = group(state);
    if groups.ready.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_string());
    }
    let requests = match target {
        Target::Utilization(_) => requests(state)?,
        Target::AverageValue(_) => BTreeMap::new(),
    };
    let request = |pod: &Arc<Pod>| requests.get(pod.name()).copied().unwrap_or(0);
    let ratio = |all: &[(&Arc<Pod>, i64)]| -> Result<(f64, Option<i64>, i64), String> {
        let sum: i64 = all.iter().map(|(_, used)| used).sum();
        let average = sum / i64::try_from(all.len()).unwrap_or(1).max(1);
        match target {
            Target::AverageValue(wanted) => Ok((average as f64 / wanted.max(1) as f64, None, average)),
            Target::Utilization(percent) => {
                let asked: i64 = all.iter().map(|(pod, _)| request(pod)).sum();
                if asked == 0 {
                    return Err("no metrics returned matched known pods".to_string());
                }
                let utilization = sum.saturating_mul(100) / asked;
                Ok((utilization as f64 / percent.max(1) as f64, Some(utilization), average))
            }
        }
    };
    let (first, utilization, average) = ratio(&groups.ready)?;
    let answer = |replicas| Ok(Answer { replicas, utilization, average });
    let near = |ratio: f64| near(ratio, state.tolerance);
    let up = first > 1.0;
    if groups.missing.is_empty() && (groups.unready.is_empty() || !up) {
        if near(first) {
            return answer(current);
        }
        return answer(ceil(first * groups.ready.len() as f64));
    }
    let mut all = groups.ready.clone();
    for pod in &groups.missing {
        let full = match target {
            Target::Utilization(percent) => request(pod).saturating_mul(percent.max(100)) / 100,
            Target::AverageValue(wanted) => wanted,
        };
        all.push((pod, if up { 0 } else { full }));
    }
    if up {
        all.extend(groups.unready.iter().map(|pod| (*pod, 0)));
    }
    let (second, ..) = ratio(&all)?;
    let turned = (up && second < 1.0) || (!up && second > 1.0);
    if near(second) || turned {
        return answer(current);
    }
    let wanted = ceil(second * all.len() as f64);
    let backwards = (second < 1.0 && wanted > current) || (second > 1.0 && wanted < current);
    answer(if backwards { current } else { wanted })
}

/// The number of pods for a value as a whole, such as the length of a queue: in proportion to the ready pods.
pub fn by_value(used: i64, target: i64, wanted: i64, ready: i64, tolerance: (f64, f64)) -> i64 {
    let ratio = used as f64 / target.max(1) as f64;
    if wanted == 0 {
        return ceil(ratio);
    }
    if near(ratio, tolerance) { wanted } else { ceil(ratio * ready as f64) }
}

/// The number of pods for a value of which each pod takes its part; `there` is how many there are.
pub fn by_average(used: i64, target: i64, there: i64, tolerance: (f64, f64)) -> i64 {
    let target = target.max(1);
    let ratio = used as f64 / (target as f64 * there as f64);
    if there > 0 && near(ratio, tolerance) { there } else { ceil(used as f64 / target as f64) }
}

fn near(ratio: f64, (up, down): (f64, f64)) -> bool {
    if ratio > 1.0 { ratio - 1.0 <= up } else { 1.0 - ratio <= down }
}

fn ceil(number: f64) -> i64 {
    // What is a whole number but for rounding stays it.
    (number - 1e-9).ceil() as i64
}

fn group<'a>(state: &State<'a>) -> Groups<'a> {
    let mut groups = Groups { ready: Vec::new(), unready: Vec::new(), missing: Vec::new() };
    for pod in state.pods {
        if pod.is_terminating() || pod.phase() == "Failed" {
            continue;
        }
        if pod.phase() == "Pending" {
            groups.unready.push(pod);
            continue;
        }
        let Some(used) = state.used.get(pod.name()) else {
            groups.missing.push(pod);
            continue;
        };
        if state.resource == "cpu" && !settled(pod, used, state.now) {
            groups.unready.push(pod);
        } else {
            groups.ready.push((pod, used.milli));
        }
    }
    groups
}

// Whether a pod's use of CPU says something: not while it is starting.
fn settled(pod: &Pod, used: &Used, now: Timestamp) -> bool {
    let Some(started) = pod.status.start_time.as_ref().map(|t| t.0.as_second()) else { return false };
    let Some(ready) = condition(&pod.status.conditions, "Ready") else { return false };
    let since = ready.last_transition_time.as_ref().map_or(started, |t| t.0.as_second());
    if now.as_second() < started + INITIALIZATION {
        ready.status == "True" && used.at.as_second() >= since + used.window
    } else {
        !(ready.status == "False" && started + INITIAL_READINESS > since)
    }
}

fn requests(state: &State<'_>) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in state.pods {
        let sidecars =
            pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let mut sum: i64 = 0;
        for container in pod.spec.containers.iter().chain(sidecars) {
            if state.container.is_some_and(|name| name != container.name) {
                continue;
            }
            let wanted = container.resources.requests.as_ref().and_then(|all| all.get(state.resource));
            let wanted = wanted.and_then(|text| Quantity::parse(text).ok()).ok_or_else(|| {
                let (resource, name) = (state.resource, pod.name());
                format!("missing request for {resource} in container {} of Pod {name}", container.name)
            })?;
            sum = sum.saturating_add(wanted.milli_value());
        }
        all.insert(pod.name().to_string(), sum);
    }
    Ok(all)
}
