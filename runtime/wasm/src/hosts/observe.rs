//! coracle:observe: measurements of guests, which the node's exporter shows, and spans, which leave through OTLP.
//!
//! Everything is bounded: how many series a container has, how long their names are, how many spans are open, what each
//! span says. What is beyond is refused (measurements) or left out (spans).

mod export;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::Granted;
use crate::{
    container::now_ns,
    guest::Guest,
    protocol::{Capabilities, ContainerSpec, SandboxSpec, Series, SeriesKind},
};
pub(crate) use export::start;

/// How it is granted.
pub(super) const GRANTED: Granted = (
    "coracle:observe/",
    "measurements and spans (coracle:observe) need the pod annotation coracle.dev/observe: \"true\"",
    |capabilities| capabilities.observe,
);

/// The most series of a container.
const MAX_SERIES: usize = 200;
/// The longest name of a metric or label, in bytes.
const MAX_NAME: usize = 64;
/// The most labels of a series.
const MAX_LABELS: usize = 8;
/// The longest text otherwise, in bytes; spans' texts are cut.
const MAX_TEXT: usize = 256;
/// The most spans of a container that have not ended.
const MAX_OPEN: usize = 1024;
/// The most attributes of a span, and the most events.
const MAX_ENTRIES: usize = 16;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit/observe",
        world: "imports",
        imports: { default: trappable },
        require_store_data_send: true,
        with: { "coracle:observe/tracing.span": crate::hosts::observe::Span },
    });
}

use generated::coracle::observe::{metrics, tracing};

/// What the instances of a container share; `None` where it was not granted.
pub(crate) type Context = Option<Arc<Observed>>;

/// The measurements of a container, and who it is.
pub(crate) struct Observed {
    series: Mutex<BTreeMap<(String, Labels), (SeriesKind, u64)>>,
    open: AtomicUsize,
    /// Attributes of everything that it says, in OpenTelemetry's words.
    resource: Arc<Vec<(&'static str, String)>>,
}

type Labels = Vec<(String, String)>;

/// What the instances of a container share.
pub(crate) fn prepare(capabilities: &Capabilities, spec: &ContainerSpec, pod: &SandboxSpec) -> Context {
    capabilities.observe.then(|| {
        let resource = [
            ("service.name", &spec.name),
            ("service.instance.id", &spec.id),
            ("k8s.namespace.name", &pod.namespace),
            ("k8s.pod.name", &pod.name),
            ("k8s.pod.uid", &pod.uid),
            ("k8s.container.name", &spec.name),
        ];
        let resource = resource.map(|(key, value)| (key, value.clone())).to_vec();
        Arc::new(Observed {
            series: Mutex::default(),
            open: AtomicUsize::new(0),
            resource: Arc::new(resource),
        })
    })
}

impl Observed {
    /// The measurements as they are now.
    pub fn read(&self) -> Vec<Series> {
        let series = self.series.lock();
        let series = series.iter();
        series
            .map(|((name, labels), (kind, value))| Series {
                name: name.clone(),
                labels: labels.clone(),
                kind: *kind,
                value: *value,
            })
            .collect()
    }

    fn measure(&self, name: String, mut labels: Labels, kind: SeriesKind, value: u64) -> Result<(), String> {
        check_name(&name)?;
        if labels.len() > MAX_LABELS {
            return Err(format!("{name} has more than {MAX_LABELS} labels"));
        }
        labels.sort();
        for (index, (key, value)) in labels.iter().enumerate() {
            check_name(key)?;
            if value.len() > MAX_TEXT {
                return Err(format!("the label {key} of {name} has more than {MAX_TEXT} bytes"));
            }
            if labels.get(index + 1).is_some_and(|(next, _)| next == key) {
                return Err(format!("the label {key} of {name} is given twice"));
            }
        }
        let mut series = self.series.lock();
        let others = || series.iter().filter(|((other, _), _)| *other == name);
        if others().any(|(_, (other, _))| *other != kind) {
            return Err(format!("{name} is both a counter and a gauge"));
        }
        if others().any(|((_, other), _)| !other.iter().map(|l| &l.0).eq(labels.iter().map(|l| &l.0))) {
            return Err(format!("{name} has had other labels before"));
        }
        if series.len() >= MAX_SERIES && !series.contains_key(&(name.clone(), labels.clone())) {
            return Err(format!("there are more than {MAX_SERIES} series"));
        }
        let (_, now) = series.entry((name, labels)).or_insert((kind, 0));
        *now = match kind {
            SeriesKind::Counter => now.saturating_add(value),
            SeriesKind::Gauge => value,
        };
        Ok(())
    }
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

/// A span that a guest holds.
pub struct Span {
    of: Arc<Observed>,
    /// `None`: there were too many; nobody will see this one.
    said: Option<Box<Said>>,
}

/// What a span says.
pub(crate) struct Said {
    pub resource: Arc<Vec<(&'static str, String)>>,
    pub trace: String,
    pub id: String,
    pub parent: Option<String>,
    pub name: String,
    pub started_at_ns: i64,
    pub ended_at_ns: i64,
    pub attributes: Vec<(String, String)>,
    pub events: Vec<(String, i64)>,
    pub failure: Option<String>,
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(mut said) = self.said.take() else { return };
        self.of.open.fetch_sub(1, Ordering::Relaxed);
        said.ended_at_ns = now_ns();
        export::send(*said);
    }
}

/// The trace and the span of a `traceparent` (W3C Trace Context, version 00).
fn parent_of(header: &str) -> Option<(String, String)> {
    let mut parts = header.trim().split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && text.bytes().any(|b| b != b'0')
    };
    let fits = version.len() == 2 && version != "ff" && hex(trace, 32) && hex(span, 16);
    fits.then(|| (trace.to_owned(), span.to_owned()))
}

fn random<const N: usize>() -> String {
    let mut bytes = [0; N];
    // Without random numbers there is nothing to do but to go on: an id of zeros is one that nobody takes.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    hex::encode(bytes)
}

fn cut(mut text: String) -> String {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

struct HasObserved;

impl HasData for HasObserved {
    type Data<'a> = View<'a>;
}

pub(crate) struct View<'a> {
    pub context: &'a Context,
    pub table: &'a mut ResourceTable,
}

pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    metrics::add_to_linker::<Guest, HasObserved>(linker, Guest::observed)?;
    tracing::add_to_linker::<Guest, HasObserved>(linker, Guest::observed)
}

impl View<'_> {
    fn granted(&self) -> wasmtime::Result<Arc<Observed>> {
        // Containers are refused without it before they start.
        self.context.clone().ok_or_else(|| wasmtime::Error::msg("coracle:observe was not granted"))
    }

    /// What a span says, if anybody will see it.
    fn said(&mut self, span: &Resource<Span>) -> wasmtime::Result<Option<&mut Said>> {
        Ok(self.table.get_mut(span)?.said.as_deref_mut())
    }
}

impl metrics::Host for View<'_> {
    fn add(&mut self, name: String, labels: Labels, value: u64) -> wasmtime::Result<Result<(), String>> {
        Ok(self.granted()?.measure(name, labels, SeriesKind::Counter, value))
    }

    fn set(&mut self, name: String, labels: Labels, value: u64) -> wasmtime::Result<Result<(), String>> {
        Ok(self.granted()?.measure(name, labels, SeriesKind::Gauge, value))
    }
}

impl tracing::Host for View<'_> {}

impl tracing::HostSpan for View<'_> {
    fn new(&mut self, name: String, parent: Option<String>) -> wasmtime::Result<Resource<Span>> {
        let of = self.granted()?;
        let before = of.open.fetch_add(1, Ordering::Relaxed);
        if before >= MAX_OPEN {
            of.open.fetch_sub(1, Ordering::Relaxed);
            return Ok(self.table.push(Span { of, said: None })?);
        }
        let (trace, parent) = match parent.as_deref().and_then(parent_of) {
            Some((trace, span)) => (trace, Some(span)),
            None => (random::<16>(), None),
        };
        let said = Said {
            resource: of.resource.clone(),
            trace,
            id: random::<8>(),
            parent,
            name: cut(name),
            started_at_ns: now_ns(),
            ended_at_ns: 0,
            attributes: Vec::new(),
            events: Vec::new(),
            failure: None,
        };
        Ok(self.table.push(Span { of, said: Some(Box::new(said)) })?)
    }

    fn traceparent(&mut self, span: Resource<Span>) -> wasmtime::Result<String> {
        let sampled = |said: &mut Said| format!("00-{}-{}-01", said.trace, said.id);
        let nobody = || format!("00-{}-{}-00", random::<16>(), random::<8>());
        Ok(self.said(&span)?.map_or_else(nobody, sampled))
    }

    fn set(&mut self, span: Resource<Span>, key: String, value: String) -> wasmtime::Result<()> {
        if let Some(said) = self.said(&span)?.filter(|said| said.attributes.len() < MAX_ENTRIES) {
            said.attributes.push((cut(key), cut(value)));
        }
        Ok(())
    }

    fn event(&mut self, span: Resource<Span>, name: String) -> wasmtime::Result<()> {
        if let Some(said) = self.said(&span)?.filter(|said| said.events.len() < MAX_ENTRIES) {
            said.events.push((cut(name), now_ns()));
        }
        Ok(())
    }

    fn fail(&mut self, span: Resource<Span>, message: String) -> wasmtime::Result<()> {
        if let Some(said) = self.said(&span)? {
            said.failure = Some(cut(message));
        }
        Ok(())
    }

    fn drop(&mut self, span: Resource<Span>) -> wasmtime::Result<()> {
        self.table.delete(span)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed() -> Observed {
        Observed { series: Mutex::default(), open: AtomicUsize::new(0), resource: Arc::default() }
    }

    #[test]
    fn what_is_no_measurement_is_refused_in_words() {
        let observed = observed();
        let label = |key: &str| vec![(key.to_owned(), "x".to_owned())];
        observed.measure("orders".into(), label("kind"), SeriesKind::Counter, 2).unwrap();
        observed.measure("orders".into(), label("kind"), SeriesKind::Counter, 3).unwrap();
        assert_eq!(observed.read()[0].value, 5);
        for (name, labels, kind, words) in [
            ("orders", label("kind"), SeriesKind::Gauge, "both a counter and a gauge"),
            ("orders", label("other"), SeriesKind::Counter, "other labels before"),
            ("9lives", label("kind"), SeriesKind::Counter, "no name"),
            ("__own", label("kind"), SeriesKind::Counter, "no name"),
            ("a", [label("k"), label("k")].concat(), SeriesKind::Counter, "given twice"),
            ("a", label("a-b"), SeriesKind::Counter, "no name"),
        ] {
            let error = observed.measure(name.into(), labels, kind, 1).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        let more = (0..MAX_SERIES + 5)
            .filter(|n| observed.measure(format!("m{n}"), Vec::new(), SeriesKind::Gauge, 1).is_ok());
        assert_eq!(more.count(), MAX_SERIES - 1);
    }

    #[test]
    fn parents_are_what_the_standard_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(parent_of(good).is_some_and(|(t, s)| t.starts_with("4bf9") && s.ends_with("02b7")));
        for bad in ["", "00-4bf9-00f0-01", &good.replace('4', "G"), &good.replace("00-", "ff-")] {
            assert_eq!(parent_of(bad), None, "{bad}");
        }
        assert_eq!(cut("ä".repeat(MAX_TEXT)).len(), MAX_TEXT);
    }
}
