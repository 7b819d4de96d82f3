//! The measurements of a container: counters, gauges and histograms by their names and labels, all of them bounded.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

use super::MAX_TEXT;
use crate::protocol::{Number, Series, SeriesKind};

/// The most series of a container; a histogram has one for each bucket, and two more.
const MAX_SERIES: usize = 200;
/// The longest name of a metric or label, in bytes.
const MAX_NAME: usize = 64;
/// The most labels of a series.
const MAX_LABELS: usize = 8;
/// The most bounds of a histogram.
const MAX_BOUNDS: usize = 32;
/// What the parts of a histogram are called, after its name.
const PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Names and values.
pub type Labels = Vec<(String, String)>;

/// What the instances of a container have measured.
#[derive(Default)]
pub struct Measurements(Mutex<State>);

#[derive(Default)]
struct State {
    series: BTreeMap<(String, Labels), Value>,
    /// Where the buckets of each histogram end.
    bounds: HashMap<String, Vec<f64>>,
    /// How many series there are, each bucket counted.
    used: usize,
}

enum Value {
    Whole(SeriesKind, u64),
    Fraction(SeriesKind, f64),
    /// How many fell into each bucket, beyond the last bound too, and their sum.
    Histogram(Vec<u64>, f64),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Whole(SeriesKind::Counter, _) | Value::Fraction(SeriesKind::Counter, _) => "a counter",
            Value::Whole(..) | Value::Fraction(..) => "a gauge",
            Value::Histogram(..) => "a histogram",
        }
    }

    fn of(kind: SeriesKind) -> &'static str {
        Value::Whole(kind, 0).kind()
    }
}

impl State {
    /// The value of a series, made anew where there is none; refused in words where it does not fit those that are there.
    fn series(
        &mut self,
        name: String,
        mut labels: Labels,
        kind: &'static str,
        new: impl FnOnce(&State) -> (Value, usize),
    ) -> Result<&mut Value, String> {
        labels.sort();
        check(&name, &labels)?;
        // A histogram's parts are not another metric's names.
        let part = PARTS.iter().find_map(|part| name.strip_suffix(part));
        if let Some(histogram) = part.filter(|of| self.bounds.contains_key(*of)) {
            return Err(format!("{name} is a part of the histogram {histogram}"));
        }
        if kind != "a histogram" && self.bounds.contains_key(&name) {
            return Err(format!("{name} is both {kind} and a histogram"));
        }
        let key = (name, labels);
        if !self.series.contains_key(&key) {
            let first = (key.0.clone(), Labels::new());
            let mut others = self.series.range(first..).take_while(|((other, _), _)| *other == key.0);
            if let Some(((_, other), value)) = others.next() {
                if value.kind() != kind {
                    return Err(format!("{} is both {} and {kind}", key.0, value.kind()));
                }
                if !other.iter().map(|l| &l.0).eq(key.1.iter().map(|l| &l.0)) {
                    return Err(format!("{} has had other labels before", key.0));
                }
            }
            let (value, size) = new(self);
            if self.used.saturating_add(size) > MAX_SERIES {
                return Err(format!("there are more than {MAX_SERIES} series"));
            }
            self.used += size;
            self.series.insert(key.clone(), value);
        }
        let value = self.series.get_mut(&key).ok_or("there is no such series")?;
        if value.kind() != kind {
            return Err(format!("{} is both {} and {kind}", key.0, value.kind()));
        }
        Ok(value)
    }
}

fn check(name: &str, labels: &Labels) -> Result<(), String> {
    check_name(name)?;
    if labels.len() > MAX_LABELS {
        return Err(format!("{name} has more than {MAX_LABELS} labels"));
    }
    for (index, (key, value)) in labels.iter().enumerate() {
        check_name(key)?;
        if value.len() > MAX_TEXT {
            return Err(format!("the label {key} of {name} has more than {MAX_TEXT} bytes"));
        }
        if labels.get(index + 1).is_some_and(|(next, _)| next == key) {
            return Err(format!("the label {key} of {name} is given twice"));
        }
    }
    Ok(())
}

/// As Prometheus wants names; two underscores in front are its own.
fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let fits = first && name.len() <= MAX_NAME && name.chars().all(plain) && !name.starts_with("__");
    let words = || {
        let shown: String = name.chars().take(MAX_NAME).collect();
        format!("{shown:?} is no name: letters, digits and underscores, at most {MAX_NAME}")
    };
    if fits { Ok(()) } else { Err(words()) }
}

impl Measurements {
    /// Adds to a counter or sets a gauge.
    pub fn whole(&self, name: String, labels: Labels, kind: SeriesKind, value: u64) -> Result<(), String> {
        let mut state = self.0.lock();
        match state.series(name, labels, Value::of(kind), |_| (Value::Whole(kind, 0), 1))? {
            Value::Whole(SeriesKind::Counter, now) => *now = now.saturating_add(value),
            Value::Whole(_, now) => *now = value,
            Value::Fraction(SeriesKind::Counter, now) => *now += value as f64,
            Value::Fraction(_, now) => *now = value as f64,
            Value::Histogram(..) => {}
        }
        Ok(())
    }

    /// The same with a number that has fractions.
    pub fn fraction(&self, name: String, labels: Labels, kind: SeriesKind, value: f64) -> Result<(), String> {
        let counter = kind == SeriesKind::Counter;
        if !value.is_finite() || (counter && value < 0.0) {
            return Err(format!("{value} is nothing that {name} can be"));
        }
        let mut state = self.0.lock();
        let series = state.series(name, labels, Value::of(kind), |_| (Value::Fraction(kind, 0.0), 1))?;
        let before = match series {
            Value::Whole(_, now) => *now as f64,
            Value::Fraction(_, now) => *now,
            Value::Histogram(..) => 0.0,
        };
        let next = if counter { before + value } else { value };
        *series = Value::Fraction(kind, if next.is_finite() { next } else { before });
        Ok(())
    }

    /// Says where the buckets of a histogram end.
    pub fn histogram(&self, name: String, bounds: Vec<f64>) -> Result<(), String> {
        // Its parts have longer names.
        check_name(&format!("{name}_bucket"))?;
        if bounds.len() > MAX_BOUNDS {
            return Err(format!("the histogram {name} has more than {MAX_BOUNDS} bounds"));
        }
        let ascend = bounds.iter().zip(bounds.iter().skip(1)).all(|(one, next)| one < next);
        if !ascend || bounds.iter().any(|bound| !bound.is_finite()) {
            return Err(format!("the bounds of the histogram {name} are not finite numbers that ascend"));
        }
        let mut state = self.0.lock();
        if let Some(before) = state.bounds.get(&name) {
            let same = *before == bounds;
            return if same {
                Ok(())
            } else {
                Err(format!("the histogram {name} has had other bounds before"))
            };
        }
        let taken =
            |other: &str| other == name || PARTS.iter().any(|part| other.strip_suffix(part) == Some(&name));
        if let Some(((other, _), value)) = state.series.iter().find(|((other, _), _)| taken(other)) {
            return Err(format!("{other} is {} already", value.kind()));
        }
        if state.bounds.len() >= MAX_SERIES {
            return Err(format!("there are more than {MAX_SERIES} histograms"));
        }
        state.bounds.insert(name, bounds);
        Ok(())
    }

    /// Counts a value in a histogram.
    pub fn observe(&self, name: String, labels: Labels, value: f64) -> Result<(), String> {
        if !value.is_finite() {
            return Err(format!("{value} is nothing that {name} can be"));
        }
        if labels.iter().any(|(key, _)| key == "le") {
            return Err(format!("the label le of the histogram {name} says where its buckets end"));
        }
        let mut state = self.0.lock();
        let bounds = state.bounds.get(&name).ok_or_else(|| format!("{name} is no histogram yet"))?;
        let (index, length) = (bounds.partition_point(|bound| *bound < value), bounds.len() + 1);
        let new = |_: &State| (Value::Histogram(vec![0; length], 0.0), length + PARTS.len() - 1);
        if let Value::Histogram(counts, sum) = state.series(name, labels, "a histogram", new)? {
            if let Some(count) = counts.get_mut(index) {
                *count = count.saturating_add(1);
            }
            if (*sum + value).is_finite() {
                *sum += value;
            }
        }
        Ok(())
    }

    /// All of them as they are now, a histogram in its parts.
    pub fn read(&self) -> Vec<Series> {
        let state = self.0.lock();
        let mut all = Vec::with_capacity(state.used);
        for ((name, labels), value) in &state.series {
            let one = |name: String, kind, value| Series { name, labels: labels.clone(), kind, value };
            match value {
                Value::Whole(kind, value) => all.push(one(name.clone(), *kind, Number::Whole(*value))),
                Value::Fraction(kind, value) => all.push(one(name.clone(), *kind, Number::from(*value))),
                Value::Histogram(counts, sum) => {
                    let bounds = state.bounds.get(name).map(Vec::as_slice).unwrap_or_default();
                    let ends = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
                    let mut total = 0_u64;
                    for (end, count) in ends.zip(counts) {
                        total = total.saturating_add(*count);
                        let mut bucket =
                            one(format!("{name}_bucket"), SeriesKind::Bucket, Number::Whole(total));
                        bucket.labels.push(("le".to_owned(), end));
                        all.push(bucket);
                    }
                    all.push(one(format!("{name}_sum"), SeriesKind::Counter, Number::from(*sum)));
                    all.push(one(format!("{name}_count"), SeriesKind::Counter, Number::Whole(total)));
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(key: &str) -> Labels {
        vec![(key.to_owned(), "x".to_owned())]
    }

    #[test]
    fn what_is_no_measurement_is_refused_in_words() {
        let all = Measurements::default();
        all.whole("orders".into(), label("kind"), SeriesKind::Counter, 2).unwrap();
        all.whole("orders".into(), label("kind"), SeriesKind::Counter, 3).unwrap();
        assert_eq!(all.read()[0].value, Number::Whole(5));
        all.histogram("took".into(), vec![0.5]).unwrap();
        all.whole("plain_count".into(), Vec::new(), SeriesKind::Counter, 1).unwrap();
        for (name, labels, kind, words) in [
            ("orders", label("kind"), SeriesKind::Gauge, "both a counter and a gauge"),
            ("orders", label("other"), SeriesKind::Counter, "other labels before"),
            ("9lives", label("kind"), SeriesKind::Counter, "no name"),
            ("__own", label("kind"), SeriesKind::Counter, "no name"),
            ("a", [label("k"), label("k")].concat(), SeriesKind::Counter, "given twice"),
            ("a", label("a-b"), SeriesKind::Counter, "no name"),
            ("took", label("k"), SeriesKind::Counter, "both a counter and a histogram"),
            ("took_sum", label("k"), SeriesKind::Counter, "a part of the histogram took"),
        ] {
            let error = all.whole(name.into(), labels, kind, 1).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        for (name, bounds, words) in [
            ("took", vec![0.25], "other bounds before"),
            ("orders", vec![1.0], "orders is a counter already"),
            ("plain", vec![1.0], "plain_count is a counter already"),
            ("up", vec![1.0, 1.0], "ascend"),
            ("nan", vec![f64::NAN], "ascend"),
            ("many", (0..40).map(f64::from).collect(), "more than 32 bounds"),
        ] {
            let error = all.histogram(name.into(), bounds).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(all.observe("took".into(), label("le"), 1.0).unwrap_err().contains("buckets end"));
        assert!(all.observe("took".into(), Vec::new(), f64::NAN).unwrap_err().contains("nothing"));
        assert!(all.observe("orders".into(), label("kind"), 1.0).unwrap_err().contains("no histogram"));
        assert!(
            all.fraction("cost".into(), Vec::new(), SeriesKind::Counter, -1.0)
                .unwrap_err()
                .contains("nothing")
        );
        let more = (0..MAX_SERIES + 5)
            .filter(|n| all.whole(format!("m{n}"), Vec::new(), SeriesKind::Gauge, 1).is_ok());
        assert_eq!(more.count(), MAX_SERIES - 2);
    }

    #[test]
    fn a_histogram_is_told_in_its_parts() {
        let all = Measurements::default();
        for _ in 0..2 {
            all.histogram("took".into(), vec![0.005, 0.5, 10.0]).unwrap();
        }
        for value in [0.001, 0.5, 0.25, 99.0] {
            all.observe("took".into(), label("path"), value).unwrap();
        }
        let told: Vec<_> =
            all.read().iter().map(|s| (s.name.clone(), s.labels.last().cloned(), s.value)).collect();
        let bucket = |le: &str, count| {
            ("took_bucket".to_owned(), Some(("le".to_owned(), le.to_owned())), Number::Whole(count))
        };
        let of = |name: &str, value| (name.to_owned(), Some(("path".to_owned(), "x".to_owned())), value);
        let expected = [
            bucket("0.005", 1),
            bucket("0.5", 3),
            bucket("10", 3),
            bucket("+Inf", 4),
            of("took_sum", Number::from(99.751)),
            of("took_count", Number::Whole(4)),
        ];
        assert_eq!(told, expected);
        // What has fractions once has them from then on.
        all.whole("cost".into(), Vec::new(), SeriesKind::Counter, 2).unwrap();
        all.fraction("cost".into(), Vec::new(), SeriesKind::Counter, 0.5).unwrap();
        all.whole("cost".into(), Vec::new(), SeriesKind::Counter, 1).unwrap();
        assert_eq!(all.read()[0].value, Number::from(3.5));
        // Each bucket counts as a series.
        let bounds: Vec<f64> = (0..32).map(f64::from).collect();
        all.histogram("wide".into(), bounds).unwrap();
        let more =
            (0..10).filter(|n| all.observe("wide".into(), vec![("n".into(), n.to_string())], 1.0).is_ok());
        assert_eq!(more.count(), (MAX_SERIES - 7) / 35);
    }
}
