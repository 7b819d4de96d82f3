//! What wasm guests measure of themselves (coracle:observe), beside what is measured of them: under names with a prefix, so
//! that no guest can speak as somebody else, and with the labels of its container.

use std::collections::BTreeMap;

use coracle_cri_api::v1;
use coracle_wasm::protocol::{ContainerStats, Series, SeriesKind};
use parking_lot::Mutex;

use super::LABELS;

/// In front of the names that guests choose.
const PREFIX: &str = "coracle_guest_";
/// The most names that are remembered.
const MAX_NAMES: usize = 4096;

/// The metrics that guests have brought: the first one of a name says of which kind it is and which labels it has.
#[derive(Default)]
pub struct Guests(Mutex<BTreeMap<String, Shape>>);

struct Shape {
    kind: SeriesKind,
    labels: Vec<String>,
}

impl Shape {
    fn fits(&self, series: &Series) -> bool {
        self.kind == series.kind && self.labels.iter().eq(series.labels.iter().map(|(key, _)| key))
    }
}

impl Guests {
    /// Remembers the names that are new.
    pub fn learn(&self, series: &[Series]) {
        let mut known = self.0.lock();
        for series in series {
            if known.len() < MAX_NAMES && !known.contains_key(&series.name) {
                let labels = series.labels.iter().map(|(key, _)| key.clone()).collect();
                known.insert(series.name.clone(), Shape { kind: series.kind, labels });
            }
        }
    }

    /// What is known.
    pub fn descriptors(&self) -> Vec<v1::MetricDescriptor> {
        let known = self.0.lock();
        let described = known.iter().map(|(name, shape)| v1::MetricDescriptor {
            name: format!("{PREFIX}{name}"),
            help: "Measured by wasm guests (coracle:observe)".into(),
            label_keys: LABELS
                .iter()
                .map(|key| (*key).to_owned())
                .chain(shape.labels.iter().map(own))
                .collect(),
        });
        described.collect()
    }

    /// The measurements of a container's guests; those that are unlike the first of their name are left out.
    pub fn metrics(&self, stats: &ContainerStats, labels: &[String]) -> Vec<v1::Metric> {
        self.learn(&stats.series);
        let known = self.0.lock();
        let fitting = stats.series.iter().filter(|s| known.get(&s.name).is_some_and(|shape| shape.fits(s)));
        let metric = |series: &Series| v1::Metric {
            name: format!("{PREFIX}{}", series.name),
            timestamp: stats.timestamp_ns,
            metric_type: match series.kind {
                SeriesKind::Counter => v1::MetricType::Counter.into(),
                SeriesKind::Gauge => v1::MetricType::Gauge.into(),
            },
            label_values: labels
                .iter()
                .chain(series.labels.iter().map(|(_, value)| value))
                .cloned()
                .collect(),
            value: Some(v1::UInt64Value { value: series.value }),
        };
        fitting.map(metric).collect()
    }
}

/// A guest's label, with another name where the container has one of that name.
fn own(key: &String) -> String {
    if LABELS.contains(&key.as_str()) { format!("exported_{key}") } else { key.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_name_decides() {
        let series = |kind, key: &str| Series {
            name: "orders".into(),
            labels: vec![(key.into(), "x".into())],
            kind,
            value: 3,
        };
        let guests = Guests::default();
        guests.learn(&[series(SeriesKind::Counter, "pod")]);
        let described = guests.descriptors();
        assert_eq!(described[0].name, "coracle_guest_orders");
        assert_eq!(described[0].label_keys, ["container", "image", "namespace", "pod", "exported_pod"]);
        assert!(guests.0.lock()["orders"].fits(&series(SeriesKind::Counter, "pod")));
        assert!(!guests.0.lock()["orders"].fits(&series(SeriesKind::Gauge, "pod")));
        assert!(!guests.0.lock()["orders"].fits(&series(SeriesKind::Counter, "other")));
    }
}
