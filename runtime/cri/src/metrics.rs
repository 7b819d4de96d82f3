//! Counters and gauges of containers, as CRI's metrics: whole numbers with labels, under the names that cAdvisor's readers
//! know, and the names of this project where those have none.

pub mod guests;

use coracle_cri_api::v1;
use coracle_wasm::protocol::{ContainerStats, LATENCY_BOUNDS_MS};
use tonic::Status;

use crate::record::ContainerRecord;
use crate::service::Service;
use crate::state::Filter;

/// The labels of each metric; a histogram's bucket has one more.
const LABELS: [&str; 4] = ["container", "image", "namespace", "pod"];

const COUNTER: v1::MetricType = v1::MetricType::Counter;
const GAUGE: v1::MetricType = v1::MetricType::Gauge;

/// A metric with one value a container.
struct Plain {
    name: &'static str,
    help: &'static str,
    kind: v1::MetricType,
    /// Wasm handlers alone have it.
    serving: bool,
    value: fn(&ContainerStats) -> u64,
}

const PLAIN: [Plain; 6] = [
    Plain {
        name: "container_cpu_usage_seconds_total",
        help: "CPU time used, in whole seconds",
        kind: COUNTER,
        serving: false,
        value: |s| s.cpu_nanos / 1_000_000_000,
    },
    Plain {
        name: "container_memory_working_set_bytes",
        help: "Memory held: of a wasm container the linear memory of its instances, and what the host holds for them",
        kind: GAUGE,
        serving: false,
        value: |s| s.memory_bytes,
    },
    Plain {
        name: "coracle_container_cpu_usage_milliseconds_total",
        help: "CPU time used, in milliseconds",
        kind: COUNTER,
        serving: false,
        value: |s| s.cpu_nanos / 1_000_000,
    },
    Plain {
        name: "coracle_container_instances",
        help: "Live instances of a wasm container, or processes of a Linux container",
        kind: GAUGE,
        serving: false,
        value: |s| u64::from(s.instances),
    },
    Plain {
        name: "coracle_container_requests_total",
        help: "HTTP requests that a wasm handler was given",
        kind: COUNTER,
        serving: true,
        value: |s| s.requests,
    },
    Plain {
        name: "coracle_container_cold_starts_total",
        help: "HTTP requests that waited for a new instance of a wasm handler",
        kind: COUNTER,
        serving: true,
        value: |s| s.cold_starts,
    },
];

/// The parts of the histogram of latencies.
const BUCKET: &str = "coracle_container_request_duration_milliseconds_bucket";
const SUM: &str = "coracle_container_request_duration_milliseconds_sum";
const COUNT: &str = "coracle_container_request_duration_milliseconds_count";
const TOOK: &str = "Time from a request's arrival to the head of its response";

/// The metrics of every container that [`Service::list_pod_sandbox_metrics`] may answer.
fn descriptors() -> Vec<v1::MetricDescriptor> {
    let described = |name: &str, help: &str, more: &[&str]| v1::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS.iter().chain(more).map(|key| (*key).to_owned()).collect(),
    };
    let plain = PLAIN.iter().map(|metric| described(metric.name, metric.help, &[]));
    let parts = [described(BUCKET, TOOK, &["le"]), described(SUM, TOOK, &[]), described(COUNT, TOOK, &[])];
    plain.chain(parts).collect()
}

/// The metrics of one container.
fn of_container(stats: &ContainerStats, labels: &[String]) -> Vec<v1::Metric> {
    let metric = |name: &str, kind: v1::MetricType, more: Option<String>, value: u64| v1::Metric {
        name: name.to_owned(),
        timestamp: stats.timestamp_ns,
        metric_type: kind.into(),
        label_values: labels.iter().cloned().chain(more).collect(),
        value: Some(v1::UInt64Value { value }),
    };
    let serving = !stats.latency.counts.is_empty();
    let mut metrics: Vec<_> = PLAIN
        .iter()
        .filter(|plain| serving || !plain.serving)
        .map(|plain| metric(plain.name, plain.kind, None, (plain.value)(stats)))
        .collect();
    if serving {
        let bounds = LATENCY_BOUNDS_MS.iter().map(u64::to_string).chain(["+Inf".to_owned()]);
        let mut total = 0;
        for (bound, count) in bounds.zip(&stats.latency.counts) {
            total += count;
            metrics.push(metric(BUCKET, COUNTER, Some(bound), total));
        }
        metrics.push(metric(SUM, COUNTER, None, stats.latency.sum_micros / 1000));
        metrics.push(metric(COUNT, COUNTER, None, total));
    }
    metrics
}

impl Service {
    /// All metrics that [`Service::list_pod_sandbox_metrics`] may answer: those of every container, and those that guests
    /// have brought.
    pub async fn metric_descriptors(&self) -> Result<Vec<v1::MetricDescriptor>, Status> {
        self.guests.learn(&self.series().await?);
        Ok(descriptors().into_iter().chain(self.guests.descriptors()).collect())
    }

    /// The metrics of the running containers of ready pods.
    pub async fn list_pod_sandbox_metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        let (stats, series) = tokio::try_join!(self.measure(&[]), self.series())?;
        self.guests.learn(&series);
        let ready = self.state.sandboxes(&Filter::default()).into_iter().filter(|sandbox| sandbox.ready);
        let pods = ready.map(|sandbox| {
            let metadata = sandbox.config.metadata.clone().unwrap_or_default();
            let labels = |container: &ContainerRecord| {
                let image = container.config.image.clone().unwrap_or_default().image;
                [container.name().to_owned(), image, metadata.namespace.clone(), metadata.name.clone()]
            };
            let by = Filter { sandbox_id: &sandbox.id, ..Filter::default() };
            let containers = self.state.containers(&by);
            let container_metrics = containers.iter().filter_map(|container| {
                let (stats, labels) = (stats.get(&container.id)?, labels(container));
                let mut metrics = of_container(stats, &labels);
                let own = series.series.get(&container.id).map(Vec::as_slice).unwrap_or_default();
                metrics.extend(self.guests.metrics(own, stats.timestamp_ns, &labels));
                Some(v1::ContainerMetrics { container_id: container.id.clone(), metrics })
            });
            let container_metrics = container_metrics.collect();
            v1::PodSandboxMetrics { pod_sandbox_id: sandbox.id, metrics: Vec::new(), container_metrics }
        });
        Ok(pods.collect())
    }
}

#[cfg(test)]
mod tests {
    use coracle_wasm::protocol::Latency;

    use super::*;

    fn stats(latency: Latency) -> ContainerStats {
        ContainerStats {
            id: "c".into(),
            sandbox_id: "s".into(),
            timestamp_ns: 7,
            cpu_nanos: 2_500_000_000,
            memory_bytes: 65536,
            instances: 3,
            requests: 6,
            cold_starts: 2,
            latency,
        }
    }

    #[test]
    fn every_metric_is_described_and_has_its_labels() {
        let mut counts = vec![0; LATENCY_BOUNDS_MS.len() + 1];
        counts[0] = 4;
        counts[2] = 1;
        counts[LATENCY_BOUNDS_MS.len()] = 1;
        let labels = ["app", "hello:v1", "default", "web"].map(str::to_owned);
        let metrics = of_container(&stats(Latency { counts, sum_micros: 12_345_678 }), &labels);
        let known = descriptors();
        for metric in &metrics {
            let descriptor = known.iter().find(|d| d.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        assert!(known.iter().all(|d| metrics.iter().any(|m| m.name == d.name)));
        let value = |name: &str, le: Option<&str>| {
            let found =
                metrics.iter().find(|m| m.name == name && m.label_values.get(4).map(String::as_str) == le);
            found.and_then(|m| m.value).unwrap().value
        };
        assert_eq!(value("container_cpu_usage_seconds_total", None), 2);
        assert_eq!(value("coracle_container_cpu_usage_milliseconds_total", None), 2500);
        assert_eq!(value("coracle_container_instances", None), 3);
        assert_eq!(value("coracle_container_cold_starts_total", None), 2);
        let buckets = [("1", 4), ("2", 4), ("5", 5), ("10000", 5), ("+Inf", 6)];
        for (le, count) in buckets {
            assert_eq!(value(BUCKET, Some(le)), count, "{le}");
        }
        assert_eq!((value(SUM, None), value(COUNT, None)), (12345, 6));
        // What serves no requests has no numbers about them.
        let command = of_container(&stats(Latency::default()), &labels);
        assert!(command.iter().all(|m| !m.name.contains("request") && !m.name.contains("cold")));
    }
}
