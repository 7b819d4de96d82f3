//! Metrics of pods, as `metrics.k8s.io` serves them, and the numbers that a metric specification asks for.

use std::collections::BTreeMap;

use coracle_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{MetricSpec, MetricTarget};
use serde::Deserialize;

use super::replicas::{Target, Used};

/// What is read of a list of PodMetrics.
#[derive(Debug, Default, Deserialize)]
pub struct PodMetricsList {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

#[derive(Debug, Deserialize)]
struct PodMetrics {
    metadata: Name,
    timestamp: Timestamp,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Name {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Container {
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, String>,
}

impl PodMetricsList {
    /// What each pod uses of a resource, all its containers or one.
    pub fn used(&self, resource: &str, container: Option<&str>) -> BTreeMap<String, Used> {
        let used = |pod: &PodMetrics| {
            let mut milli = 0_i64;
            let mut known = false;
            for one in pod.containers.iter().filter(|c| container.is_none_or(|name| name == c.name)) {
                let amount = one.usage.get(resource).and_then(|text| Quantity::parse(text).ok())?;
                milli = milli.saturating_add(amount.milli_value());
                known = true;
            }
            let window = pod.window.split(['.', 's']).next().and_then(|s| s.parse().ok()).unwrap_or(60);
            known.then_some((pod.metadata.name.clone(), Used { milli, at: pod.timestamp, window }))
        };
        self.items.iter().filter_map(used).collect()
    }
}

/// A metric, as it can be computed here.
#[derive(Debug, PartialEq)]
pub struct Wanted<'a> {
    pub resource: &'a str,
    pub container: Option<&'a str>,
    pub target: Target,
}

/// Why a metric cannot be had: the reason of the condition and its words.
pub type Refusal = (&'static str, String);

/// What a specification asks for of a resource.
///
/// # Errors
/// That it names no resource.
pub fn wanted(spec: &MetricSpec) -> Result<Wanted<'_>, Refusal> {
    let (resource, container, given) = match (&spec.resource, &spec.container_resource) {
        (Some(one), _) => (&one.name, None, &one.target),
        (None, Some(one)) => (&one.name, Some(one.container.as_str()), &one.target),
        (None, None) => return Err(invalid(spec)),
    };
    Ok(Wanted { resource, container, target: target(given).ok_or_else(|| invalid(spec))? })
}

/// The refusal of a metric that is not one.
pub fn invalid(spec: &MetricSpec) -> Refusal {
    (
        "InvalidMetricSourceType",
        format!("the HPA target's metric source of type {:?} cannot be used", spec.type_),
    )
}

fn target(of: &MetricTarget) -> Option<Target> {
    if let Some(percent) = of.average_utilization {
        return Some(Target::Utilization(i64::from(percent)));
    }
    let value = of.average_value.as_ref()?;
    Some(Target::AverageValue(Quantity::parse(&value.0).ok()?.milli_value()))
}
