//! Measurements and spans of the pod, for the node's exporter and a collector (`coracle:observe`). A pod needs the annotation
//! `coracle.dev/observe: "true"` to be granted them; without it its container is refused.
//!
//! ```ignore
//! let took = Histogram::new("request_seconds", &[0.01, 0.1, 1.0])?;
//! took.observe(&[("path", "/")], 0.25)?;
//! ```

mod generated {
    wit_bindgen::generate!({ path: "../runtime/wasm/wit/observe", world: "imports" });
}

/// The interface itself, which counts in whole numbers too.
pub use generated::coracle::observe::metrics;
pub use generated::coracle::observe::tracing::Span;

/// Why a measurement was refused, in words: a name that is none, other labels than before, too many series.
pub type Refused = String;

fn owned(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Adds to a counter; `value` is not negative.
pub fn add(name: &str, labels: &[(&str, &str)], value: f64) -> Result<(), Refused> {
    metrics::add_number(name, &owned(labels), value)
}

/// Sets a gauge.
pub fn set(name: &str, labels: &[(&str, &str)], value: f64) -> Result<(), Refused> {
    metrics::set_number(name, &owned(labels), value)
}

/// A histogram of the pod.
#[derive(Clone, Debug)]
pub struct Histogram(String);

impl Histogram {
    /// The histogram of this name, whose buckets end at these bounds: at most 32 numbers that ascend, to which infinity is
    /// added. Again with the same bounds is fine.
    ///
    /// # Errors
    /// Other bounds than before, or ones that are no bounds.
    pub fn new(name: &str, bounds: &[f64]) -> Result<Histogram, Refused> {
        metrics::histogram(name, bounds)?;
        Ok(Histogram(name.to_owned()))
    }

    /// Counts a value.
    pub fn observe(&self, labels: &[(&str, &str)], value: f64) -> Result<(), Refused> {
        metrics::observe(&self.0, &owned(labels), value)
    }
}
