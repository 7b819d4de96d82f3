//! What wasm guests measure of themselves (coracle:observe), beside what is measured of them: under names with a prefix, so
//! that no guest can speak as somebody else, and with the labels of its container.
//!
//! A metric of the node has one kind and one set of labels, and containers that know nothing of each other may choose the
//! same name: its labels are those of all, empty where a container has none of that name, and what is a counter here and
//! a gauge there is a gauge.

use std::collections::{BTreeMap, BTreeSet};

use coracle_cri_api::{VALUE_LABEL, v1};
use coracle_wasm::protocol::{Measured, Number, Series, SeriesKind};
use parking_lot::Mutex;

use super::LABELS;

/// In front of the names that guests choose.
const PREFIX: &str = "coracle_guest_";
/// The most labels of a metric over all containers.
const MAX_LABELS: usize = 64;

/// The metrics that the guests of running containers have.
#[derive(Default)]
pub struct Guests(Mutex<Known>);

#[derive(Default)]
struct Known {
    metrics: BTreeMap<String, Shape>,
    /// Containers and metrics that are not shown, and that the log has said so of.
    left_out: BTreeSet<String>,
}

struct Shape {
    kind: SeriesKind,
    /// Some of its values are not whole: each is told in a label of its own too.
    fractions: bool,
    /// In an order that stays while the metric is known: values are told in another message than names.
    labels: Vec<String>,
}

impl Shape {
    fn has(&self, series: &Series) -> bool {
        series.labels.iter().all(|(key, _)| self.labels.contains(key))
    }

    /// A label's name as it is shown: of a histogram's bucket `le` is what it means everywhere.
    fn shown(&self, key: &str) -> String {
        if self.kind == SeriesKind::Bucket && key == "le" { key.to_owned() } else { own(key) }
    }
}

impl Guests {
    /// What there is now; what is there no more is forgotten.
    pub fn learn(&self, measured: &Measured) {
        let known = &mut *self.0.lock();
        let mut seen = BTreeSet::new();
        let mut left_out = measured.left_out.clone();
        for series in measured.series.values().flatten() {
            let first = seen.insert(series.name.as_str());
            let shape = known.metrics.entry(series.name.clone()).or_insert_with(|| Shape {
                kind: series.kind,
                fractions: false,
                labels: Vec::new(),
            });
            shape.fractions |= matches!(series.value, Number::Fraction(_));
            if first || shape.kind != series.kind {
                shape.kind = if first { series.kind } else { SeriesKind::Gauge };
            }
            for (key, _) in &series.labels {
                if shape.labels.len() < MAX_LABELS && !shape.labels.contains(key) {
                    shape.labels.push(key.clone());
                }
            }
            if !shape.has(series) {
                left_out.insert(series.name.clone());
            }
        }
        known.metrics.retain(|name, _| seen.contains(name.as_str()));
        for new in left_out.difference(&known.left_out) {
            tracing::warn!(
                of = new,
                "measurements of guests are not shown: there are too many, or a name has too many labels"
            );
        }
        known.left_out = left_out;
    }

    /// What is known.
    pub fn descriptors(&self) -> Vec<v1::MetricDescriptor> {
        let known = self.0.lock();
        let described = known.metrics.iter().map(|(name, shape)| v1::MetricDescriptor {
            name: format!("{PREFIX}{name}"),
            help: "Measured by wasm guests (coracle:observe)".into(),
            label_keys: LABELS
                .iter()
                .map(|key| (*key).to_owned())
                .chain(shape.labels.iter().map(|key| shape.shown(key)))
                .chain(shape.fractions.then(|| VALUE_LABEL.to_owned()))
                .collect(),
        });
        described.collect()
    }

    /// The measurements of a container's guests, which were learned before.
    pub fn metrics(&self, series: &[Series], at_ns: i64, labels: &[String]) -> Vec<v1::Metric> {
        let known = self.0.lock();
        let metric = |series: &Series| {
            let shape = known.metrics.get(&series.name).filter(|shape| shape.has(series))?;
            let value = |key: &String| {
                let of_guest = series.labels.iter().find(|(of_guest, _)| of_guest == key);
                of_guest.map(|(_, value)| value.clone()).unwrap_or_default()
            };
            Some(v1::Metric {
                name: format!("{PREFIX}{}", series.name),
                timestamp: at_ns,
                metric_type: match shape.kind {
                    SeriesKind::Counter | SeriesKind::Bucket => v1::MetricType::Counter.into(),
                    SeriesKind::Gauge => v1::MetricType::Gauge.into(),
                },
                label_values: labels
                    .iter()
                    .cloned()
                    .chain(shape.labels.iter().map(value))
                    .chain(shape.fractions.then(|| match series.value {
                        Number::Whole(value) => value.to_string(),
                        Number::Fraction(bits) => f64::from_bits(bits).to_string(),
                    }))
                    .collect(),
                value: Some(v1::UInt64Value {
                    value: match series.value {
                        Number::Whole(value) => value,
                        Number::Fraction(bits) => f64::from_bits(bits) as u64,
                    },
                }),
            })
        };
        series.iter().filter_map(metric).collect()
    }
}

/// A guest's label, with `exported_` before the names that have a meaning here, and before those that look so already: no
/// two become one.
fn own(key: &str) -> String {
    let mut bare = key;
    while let Some(rest) = bare.strip_prefix("exported_") {
        bare = rest;
    }
    // Of a histogram's bucket, what a reader takes for a number.
    let taken = LABELS.contains(&bare) || bare == "le";
    if taken { format!("exported_{key}") } else { key.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, kind: SeriesKind, labels: &[(&str, &str)]) -> Series {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Series { name: name.into(), labels, kind, value: Number::Whole(3) }
    }

    fn measured(containers: &[(&str, &[Series])]) -> Measured {
        let series = containers.iter().map(|(id, series)| ((*id).to_owned(), series.to_vec()));
        Measured { series: series.collect(), ..Measured::default() }
    }

    const OF_CONTAINER: [&str; 4] = ["app", "shop:v1", "default", "web"];

    fn values(guests: &Guests, series: &Series) -> Vec<String> {
        let metrics = guests.metrics(std::slice::from_ref(series), 7, &OF_CONTAINER.map(str::to_owned));
        metrics.into_iter().flat_map(|metric| metric.label_values).skip(4).collect()
    }

    #[test]
    fn containers_may_choose_the_same_name() {
        let (one, two) = (
            series("orders", SeriesKind::Counter, &[("kind", "tea")]),
            series("orders", SeriesKind::Gauge, &[("area", "north"), ("kind", "")]),
        );
        let (a, b) = (std::slice::from_ref(&one), std::slice::from_ref(&two));
        let guests = Guests::default();
        guests.learn(&measured(&[("a", a)]));
        guests.learn(&measured(&[("a", a), ("b", b)]));
        let described = guests.descriptors();
        assert_eq!(described[0].name, "coracle_guest_orders");
        assert_eq!(described[0].label_keys, ["container", "image", "namespace", "pod", "kind", "area"]);
        assert_eq!(
            (values(&guests, &one), values(&guests, &two)),
            (vec!["tea".to_owned(), String::new()], vec![String::new(), "north".to_owned()],)
        );
        let kind = guests.metrics(a, 7, &[])[0].metric_type();
        assert_eq!(kind, v1::MetricType::Gauge);
        // Names are given back: a node lives longer than its containers.
        guests.learn(&measured(&[("a", a)]));
        assert_eq!(guests.metrics(a, 7, &[])[0].metric_type(), v1::MetricType::Counter);
        guests.learn(&Measured::default());
        assert!(guests.descriptors().is_empty());
    }

    #[test]
    fn no_label_of_a_guest_is_given_twice() {
        let keys = ["exported_exported_pod", "exported_kind", "exported_pod", "le", "pod"];
        let all: Vec<_> = keys.iter().map(|key| (*key, "x")).collect();
        let guests = Guests::default();
        guests.learn(&measured(&[("a", &[series("a_bucket", SeriesKind::Counter, &all)])]));
        let described = guests.descriptors().remove(0).label_keys;
        let unlike: BTreeSet<_> = described.iter().collect();
        assert!(unlike.len() == 4 + keys.len() && !described.contains(&"le".to_owned()), "{described:?}");
        assert!(described.contains(&"exported_kind".to_owned()), "{described:?}");
    }

    #[test]
    fn buckets_have_bounds_and_fractions_a_label() {
        let guests = Guests::default();
        let bucket = series("took_bucket", SeriesKind::Bucket, &[("path", "/"), ("le", "0.5")]);
        let mut sum = series("took_sum", SeriesKind::Counter, &[("path", "/")]);
        sum.value = Number::from(2.25);
        guests.learn(&measured(&[("a", &[bucket.clone(), sum.clone()])]));
        let keys: Vec<Vec<String>> =
            guests.descriptors().into_iter().map(|d| d.label_keys[4..].to_vec()).collect();
        assert_eq!(keys, [vec!["path", "le"], vec!["path", VALUE_LABEL]]);
        assert_eq!(
            (values(&guests, &bucket), values(&guests, &sum)),
            (vec!["/".to_owned(), "0.5".to_owned()], vec!["/".to_owned(), "2.25".to_owned()],)
        );
        // Somebody else's gauge of that name: it is no histogram any more.
        let other = series("took_bucket", SeriesKind::Gauge, &[]);
        guests.learn(&measured(&[("a", &[bucket]), ("b", &[other])]));
        assert!(guests.descriptors()[0].label_keys.contains(&"exported_le".to_owned()));
    }

    #[test]
    fn a_name_with_too_many_labels_is_left_out() {
        let guests = Guests::default();
        let keys: Vec<String> = (0..MAX_LABELS).map(|n| format!("k{n}")).collect();
        let many: Vec<Series> =
            keys.iter().map(|key| series("orders", SeriesKind::Counter, &[(key, "x")])).collect();
        let one_more = series("orders", SeriesKind::Counter, &[("more", "x")]);
        guests.learn(&measured(&[("a", &many), ("b", std::slice::from_ref(&one_more))]));
        assert!(values(&guests, &one_more).is_empty() && !values(&guests, &many[0]).is_empty());
        assert!(guests.0.lock().left_out.contains("orders"));
    }
}
