//! `/metrics/cadvisor`: what the runtime counts of each container, in Prometheus text. Names, help and labels are the
//! runtime's own (`ListMetricDescriptors`); the agent adds nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use coracle_cri_api::VALUE_LABEL;
use coracle_cri_api::v1::{Metric, MetricDescriptor, MetricType, PodSandboxMetrics};

use super::*;

/// A label's value, with what the format wants escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The name of the family that a sample belongs to: a histogram's parts are one.
fn family(name: &str) -> (&str, bool) {
    let part = [("_bucket", true), ("_sum", true), ("_count", true)];
    let of = part.iter().find_map(|(end, _)| name.strip_suffix(end));
    of.map_or((name, false), |family| (family, true))
}

fn text(descriptors: &[MetricDescriptor], pods: Vec<PodSandboxMetrics>) -> String {
    let known: HashMap<&str, &MetricDescriptor> = descriptors.iter().map(|d| (d.name.as_str(), d)).collect();
    // Guests choose names too, which may end like a histogram's: its buckets have bounds.
    let buckets = descriptors.iter().filter(|d| d.label_keys.iter().any(|key| key == "le"));
    let histograms: Vec<&str> = buckets.filter_map(|d| d.name.strip_suffix("_bucket")).collect();
    // Families have to be in one piece each.
    let mut families = BTreeMap::<String, (MetricType, String, String)>::new();
    let containers = pods.into_iter().flat_map(|pod| {
        let of_pod = pod.metrics.into_iter();
        of_pod.chain(pod.container_metrics.into_iter().flat_map(|container| container.metrics))
    });
    for metric in containers {
        let Some(descriptor) = known.get(metric.name.as_str()) else { continue };
        let name = match family(&metric.name) {
            (family, true) if histograms.contains(&family) => family.to_owned(),
            _ => metric.name.clone(),
        };
        let kind = metric.metric_type();
        let (_, _, samples) =
            families.entry(name).or_insert_with(|| (kind, descriptor.help.clone(), String::new()));
        sample(samples, descriptor, &metric);
    }
    let mut text = String::new();
    for (name, (kind, help, samples)) in families {
        let kind = match kind {
            _ if histograms.contains(&name.as_str()) => "histogram",
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
    }
    text
}

fn sample(text: &mut String, descriptor: &MetricDescriptor, metric: &Metric) {
    let labels = || descriptor.label_keys.iter().zip(&metric.label_values);
    let exact = labels().find(|(key, _)| *key == VALUE_LABEL).and_then(|(_, text)| text.parse::<f64>().ok());
    let labels: Vec<_> = labels()
        .filter(|(key, _)| *key != VALUE_LABEL)
        .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
        .collect();
    let whole = metric.value.as_ref().map_or(0, |v| v.value);
    let value = exact.map_or_else(|| whole.to_string(), |exact| exact.to_string());
    let milliseconds = metric.timestamp / 1_000_000;
    let _ = writeln!(text, "{}{{{}}} {value} {milliseconds}", metric.name, labels.join(","));
}

/// The metrics of all containers.
pub async fn get(State(shared): State<Shared>) -> Response {
    match shared.context.runtime.metrics().await {
        Ok((descriptors, pods)) => {
            let content = [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")];
            (content, text(&descriptors, pods)).into_response()
        }
        Err(error) => {
            let words = format!("the runtime tells no metrics: {}\n", error.message());
            (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_cri_api::v1::{ContainerMetrics, UInt64Value};

    use super::*;

    #[test]
    fn families_are_in_one_piece() {
        let descriptor = |name: &str, labels: &[&str]| MetricDescriptor {
            name: name.into(),
            help: "what it is".into(),
            label_keys: labels.iter().map(|l| (*l).to_owned()).collect(),
        };
        let descriptors = [
            descriptor("took_bucket", &["pod", "le"]),
            descriptor("took_sum", &["pod", VALUE_LABEL]),
            descriptor("held", &["pod"]),
            descriptor("ice_bucket", &["pod"]),
        ];
        let metric = |name: &str, labels: &[&str], value, kind: MetricType| Metric {
            name: name.into(),
            timestamp: 5_000_000,
            metric_type: kind.into(),
            label_values: labels.iter().map(|l| (*l).to_owned()).collect(),
            value: Some(UInt64Value { value }),
        };
        let of = |pod: &str| PodSandboxMetrics {
            container_metrics: vec![ContainerMetrics {
                container_id: pod.into(),
                metrics: vec![
                    metric("took_bucket", &[pod, "+Inf"], 3, MetricType::Counter),
                    metric("held", &[pod], 9, MetricType::Gauge),
                    metric("took_sum", &[pod, "4.25"], 4, MetricType::Counter),
                    metric("ice_bucket", &[pod], 2, MetricType::Counter),
                    metric("unknown", &[], 1, MetricType::Counter),
                ],
            }],
            ..Default::default()
        };
        let expected = "# HELP held what it is\n# TYPE held gauge\nheld{pod=\"a\"} 9 5\nheld{pod=\"b\\\"\"} 9 5\n\
            # HELP ice_bucket what it is\n# TYPE ice_bucket counter\nice_bucket{pod=\"a\"} 2 5\n\
            ice_bucket{pod=\"b\\\"\"} 2 5\n\
            # HELP took what it is\n# TYPE took histogram\ntook_bucket{pod=\"a\",le=\"+Inf\"} 3 5\n\
            took_sum{pod=\"a\"} 4.25 5\ntook_bucket{pod=\"b\\\"\",le=\"+Inf\"} 3 5\ntook_sum{pod=\"b\\\"\"} 4.25 5\n";
        assert_eq!(text(&descriptors, vec![of("a"), of("b\"")]), expected);
    }
}
