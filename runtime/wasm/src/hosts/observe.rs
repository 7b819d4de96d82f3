//! coracle:observe: measurements of guests, which the node's exporter shows, and spans, which leave through OTLP.
//!
//! Everything is bounded: how many series a container has, how long their names are, how many spans are open, what each
//! span says. What is beyond is refused (measurements) or left out (spans).

mod export;
mod measured;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::Granted;
use crate::{
    container::now_ns,
    guest::Guest,
    protocol::{Capabilities, ContainerSpec, SandboxSpec, Series, SeriesKind},
};
pub(crate) use export::start;
use measured::{Labels, Measurements};

/// How it is granted.
pub(super) const GRANTED: Granted = (
    "coracle:observe/",
    "measurements and spans (coracle:observe) need the pod annotation coracle.dev/observe: \"true\"",
    |capabilities| capabilities.observe,
);

/// The longest text, in bytes; spans' texts are cut.
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
    series: Measurements,
    open: AtomicUsize,
    /// Attributes of everything that it says, in OpenTelemetry's words.
    resource: Arc<Vec<(&'static str, String)>>,
}

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
            series: Measurements::default(),
            open: AtomicUsize::new(0),
            resource: Arc::new(resource),
        })
    })
}

impl Observed {
    /// The measurements as they are now.
    pub fn read(&self) -> Vec<Series> {
        self.series.read()
    }
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
        Ok(self.granted()?.series.whole(name, labels, SeriesKind::Counter, value))
    }

    fn set(&mut self, name: String, labels: Labels, value: u64) -> wasmtime::Result<Result<(), String>> {
        Ok(self.granted()?.series.whole(name, labels, SeriesKind::Gauge, value))
    }

    fn add_number(
        &mut self,
        name: String,
        labels: Labels,
        value: f64,
    ) -> wasmtime::Result<Result<(), String>> {
        Ok(self.granted()?.series.fraction(name, labels, SeriesKind::Counter, value))
    }

    fn set_number(
        &mut self,
        name: String,
        labels: Labels,
        value: f64,
    ) -> wasmtime::Result<Result<(), String>> {
        Ok(self.granted()?.series.fraction(name, labels, SeriesKind::Gauge, value))
    }

    fn histogram(&mut self, name: String, bounds: Vec<f64>) -> wasmtime::Result<Result<(), String>> {
        Ok(self.granted()?.series.histogram(name, bounds))
    }

    fn observe(&mut self, name: String, labels: Labels, value: f64) -> wasmtime::Result<Result<(), String>> {
        Ok(self.granted()?.series.observe(name, labels, value))
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
