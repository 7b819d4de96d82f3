//! Metrics that others serve: `custom.metrics.k8s.io` (of pods and objects) and `external.metrics.k8s.io`. Pure.

use std::collections::BTreeMap;

use coracle_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::MetricIdentifier;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use super::replicas::Used;

/// The versions of `custom.metrics.k8s.io`, the preferred one first.
pub const CUSTOM: [&str; 2] = ["/apis/custom.metrics.k8s.io/v1beta2", "/apis/custom.metrics.k8s.io/v1beta1"];
/// The API of external metrics.
pub const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";

/// A MetricValueList or an ExternalMetricValueList.
#[derive(Debug, Default, Deserialize)]
pub struct Values {
    #[serde(default)]
    items: Vec<MetricValue>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    #[serde(default)]
    described_object: Described,
    timestamp: Option<Timestamp>,
    #[serde(default)]
    window_seconds: Option<i64>,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Described {
    name: String,
}

impl Values {
    /// The value of each pod, by name.
    pub fn by_pod(&self, now: Timestamp) -> BTreeMap<String, Used> {
        let used = |one: &MetricValue| {
            let milli = Quantity::parse(&one.value).ok()?.milli_value();
            let window = one.window_seconds.unwrap_or(60);
            Some((
                one.described_object.name.clone(),
                Used { milli, at: one.timestamp.unwrap_or(now), window },
            ))
        };
        self.items.iter().filter_map(used).collect()
    }

    /// The sum of all values, in thousandths; None when there are none.
    pub fn sum(&self) -> Option<i64> {
        let all: Option<Vec<i64>> =
            self.items.iter().map(|one| Some(Quantity::parse(&one.value).ok()?.milli_value())).collect();
        all.filter(|all| !all.is_empty()).map(|all| all.into_iter().fold(0, i64::saturating_add))
    }
}

/// A label selector as a query has it; text of values is escaped.
pub fn query(name: &str, selector: Option<&LabelSelector>) -> Option<String> {
    let selector = selector?;
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let terms = selector.match_expressions.iter().flatten().map(|term| {
        let values = term.values.clone().unwrap_or_default().join(",");
        match term.operator.as_str() {
            "In" => format!("{} in ({values})", term.key),
            "NotIn" => format!("{} notin ({values})", term.key),
            "DoesNotExist" => format!("!{}", term.key),
            _ => term.key.clone(),
        }
    });
    let all = labels.chain(terms).collect::<Vec<_>>().join(",");
    (!all.is_empty()).then(|| format!("{name}={}", escaped(&all)))
}

/// Percent-encodes what may not stand in a query.
pub fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    let each = text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") });
    each.collect()
}

/// The path of a metric below one of [`CUSTOM`]: `of` is `pods/*` or, say, `ingresses.networking.k8s.io/main`.
pub fn path(namespace: &str, of: &str, metric: &MetricIdentifier, pods: Option<&str>) -> String {
    let name = escaped(&metric.name);
    let place = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
    let pods = pods.map(|selector| format!("labelSelector={}", escaped(selector)));
    let queries: Vec<String> =
        pods.into_iter().chain(query("metricLabelSelector", metric.selector.as_ref())).collect();
    let question = if queries.is_empty() { "" } else { "?" };
    format!("{place}/{of}/{name}{question}{}", queries.join("&"))
}
