//! watch: changes as they happen, from any revision that is still kept.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coracle_api::Status;
use coracle_api::field::{Error, Path};
use coracle_store::{Event, EventKind, KeyValue, Range, Watch};
use futures::stream;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use super::get::{not_older_than, revision};
use crate::call::{Call, Target};
use crate::metrics::WatchGuard;
use crate::negotiate::{Encoding, Form};
use crate::select::Selection;
use crate::tables::Include;
use crate::{codec, tables, validate};

/// How long a watch lasts that names no timeout: this and up to as much again.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often an idle watch that asked for bookmarks gets one.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(30);
/// A watch with a timeout gets a last bookmark this long before it ends.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// Answers with a stream of events.
pub(crate) async fn watch(call: Call, name: Option<String>) -> Result<Response<Body>, Status> {
    let selection = Selection::of(&call.served, &call.query, name.as_deref())?;
    let options = Options::of(&call)?;
    let form = match (&call.accepted.form, call.accepted.encoding) {
        (_, Encoding::Yaml) | (Form::Discovery(_), _) => return Err(crate::errors::not_acceptable_form()),
        (Form::Object, _) if call.served.def.strategy.converts() => Shape::Decoded,
        (Form::Object, _) => Shape::Bytes,
        (Form::Table(version), _) => Shape::Table(version.clone(), Include::of(&call.query)?),
        (Form::Partial(version) | Form::PartialList(version), _) => Shape::Partial(version.clone()),
    };
    let prefix = call.served.list_prefix(call.cx.namespace.as_deref());
    let mut queue = VecDeque::new();
    let encoder = Encoder { target: call.target.clone(), form, columns_sent: false };
    let (initial, after) = match options.start {
        Start::Now => present(&call, &prefix).await?,
        Start::After(revision) => (VecDeque::new(), revision),
    };
    let store = call.shared.objects.store();
    let current = store.revision();
    // A revision that lies ahead: events up to it are not for this caller.
    let watch = match store.watch(prefix.into(), after.min(current)) {
        Ok(watch) => Some(watch),
        Err(error) => {
            queue.push_back(error_line(&watch_error(error, after, &call)));
            None
        }
    };
    let now = Instant::now();
    let state = State {
        watch,
        encoder,
        selection,
        queue,
        initial,
        initial_end: options.initial_bookmark.then_some(after),
        skip_to: after,
        bookmarks: options.bookmarks,
        bookmarked: after,
        next_bookmark: Box::pin(tokio::time::sleep_until(now + bookmark_delay(options.timeout))),
        deadline: Box::pin(tokio::time::sleep_until(now + options.timeout)),
        _guard: call.shared.metrics.watch(),
    };
    let body = Body::from_stream(stream::unfold(state, |mut state| async move {
        let line = state.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), state))
    }));
    let mut response = Response::new(body);
    let content_type =
        if call.accepted.stream { "application/json;stream=watch" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

fn bookmark_delay(timeout: Duration) -> Duration {
    match timeout.checked_sub(LAST_BOOKMARK) {
        Some(before_end) if !before_end.is_zero() => BOOKMARK_PERIOD.min(before_end),
        _ => BOOKMARK_PERIOD,
    }
}

enum Start {
    /// The present state as ADDED events, then what follows.
    Now,
    /// What follows a revision.
    After(u64),
}

struct Options {
    start: Start,
    bookmarks: bool,
    /// Whether the end of the present state is marked.
    initial_bookmark: bool,
    timeout: Duration,
}

impl Options {
    fn of(call: &Call) -> Result<Self, Status> {
        let query = &call.query;
        let version = query.get("resourceVersion").unwrap_or("");
        let matching = query.get("resourceVersionMatch").unwrap_or("");
        let send_initial = query.tristate("sendInitialEvents");
        let bookmarks = query.flag("allowWatchBookmarks");
        check(send_initial, matching, bookmarks)?;
        let revision = match version {
            "" => 0,
            text => revision(text).map_err(Status::plain)?,
        };
        let start = match (send_initial, revision) {
            (Some(true), _) | (None, 0) => Start::Now,
            (Some(false), 0) => Start::After(call.shared.objects.store().revision()),
            (_, revision) => Start::After(revision),
        };
        let timeout = match query.text("timeoutSeconds").map(str::parse::<u64>) {
            Some(Ok(seconds)) if seconds > 0 => Duration::from_secs(seconds.min(24 * 3600)),
            Some(Err(_)) => return Err(Status::bad_request("timeoutSeconds must be an integer")),
            _ => DEFAULT_TIMEOUT + DEFAULT_TIMEOUT.mul_f64(rand::rng().random_range(0.0..1.0)),
        };
        Ok(Self { start, bookmarks, initial_bookmark: send_initial == Some(true) && bookmarks, timeout })
    }
}

/// 422 for combinations of options that mean nothing.
fn check(send_initial: Option<bool>, matching: &str, bookmarks: bool) -> Result<(), Status> {
    let at = Path::new("resourceVersionMatch");
    let mut errors = Vec::new();
    match send_initial {
        None if !matching.is_empty() => {
            errors.push(Error::forbidden(
                &at,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        None => {}
        Some(_) => {
            if matching != "NotOlderThan" {
                errors.push(Error::forbidden(
                    &at,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if send_initial == Some(true) && !bookmarks {
                errors.push(Error::forbidden(
                    &Path::new("sendInitialEvents"),
                    "sendInitialEvents is forbidden without allowWatchBookmarks",
                ));
            }
        }
    }
    validate::options_status("ListOptions", errors)
}

/// The present state and its revision.
async fn present(call: &Call, prefix: &str) -> Result<(VecDeque<Arc<KeyValue>>, u64), Status> {
    if let Some(text) = call.query.text("resourceVersion") {
        not_older_than(call, revision(text).map_err(Status::plain)?).await?;
    }
    let found = call.shared.objects.range(&Range::prefix(prefix.to_owned()), &call.served.gr).await?;
    Ok((found.kvs.into(), found.revision))
}

/// How events are written.
enum Shape {
    /// Stored bytes.
    Bytes,
    /// The whole object, decoded first because its stored form differs.
    Decoded,
    Table(String, Include),
    Partial(String),
}

struct Encoder {
    target: Target,
    form: Shape,
    columns_sent: bool,
}

impl Encoder {
    /// One line of the stream.
    fn line(&mut self, kind: &str, kv: &KeyValue, revision: u64) -> Result<Bytes, Status> {
        if matches!(self.form, Shape::Bytes) {
            return Ok(raw_line(kind, kv, revision));
        }
        let served = &self.target.served;
        let obj = codec::decode_at(&served.def, kv, revision).map_err(crate::errors::corrupt)?;
        let object = match &self.form {
            Shape::Table(version, include) => {
                let now = jiff::Timestamp::now();
                if std::mem::replace(&mut self.columns_sent, true) {
                    tables::rows_only(served, version, &obj, *include, now)
                } else {
                    tables::table(served, version, &[&obj], tables::list_meta(&obj), *include, now)
                }
            }
            Shape::Partial(version) => tables::partial(&obj, version),
            Shape::Bytes | Shape::Decoded => obj,
        };
        Ok(value_line(kind, &object))
    }

    /// The line of an event in its natural kind: shared by all watchers where it is stored bytes.
    fn event(&mut self, kind: &str, event: &Event) -> Result<Bytes, Status> {
        if matches!(self.form, Shape::Bytes) {
            return Ok(event.encoded.get_or_init(|| raw_line(kind, &event.kv, event.revision)).clone());
        }
        self.line(kind, &event.kv, event.revision)
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let served = &self.target.served;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end && let Some(map) = metadata.as_object_mut() {
            map.insert("annotations".into(), json!({"k8s.io/initial-events-end": "true"}));
        }
        let object = match &self.form {
            Shape::Partial(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
            }
            Shape::Table(version, _) => {
                let partial = json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata});
                json!({
                    "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "columnDefinitions": null,
                    "metadata": {"resourceVersion": revision.to_string()}, "rows": [{"cells": [], "object": partial}],
                })
            }
            Shape::Bytes | Shape::Decoded => {
                json!({"kind": served.def.kind, "apiVersion": served.api_version, "metadata": metadata})
            }
        };
        value_line("BOOKMARK", &object)
    }
}

fn raw_line(kind: &str, kv: &KeyValue, revision: u64) -> Bytes {
    let mut out = Vec::with_capacity(kv.value.json.len() + 80);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    kv.value.write_with_revision(revision, &mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

fn value_line(kind: &str, object: &Value) -> Bytes {
    let mut out = codec::to_bytes(&json!({"type": kind, "object": object})).to_vec();
    out.push(b'\n');
    out.into()
}

fn error_line(status: &Status) -> Bytes {
    value_line("ERROR", &status.to_value())
}

fn watch_error(error: coracle_store::Error, requested: u64, call: &Target) -> Status {
    match error {
        coracle_store::Error::Compacted { compact_revision } => {
            crate::errors::watch_expired(requested, compact_revision)
        }
        other => crate::errors::store(other, &call.served.gr),
    }
}

/// A running watch.
struct State {
    watch: Option<Watch>,
    encoder: Encoder,
    selection: Selection,
    queue: VecDeque<Bytes>,
    /// The present state, as far as it was not sent.
    initial: VecDeque<Arc<KeyValue>>,
    /// The revision to tell at the end of it.
    initial_end: Option<u64>,
    /// Events up to this revision are not for this caller.
    skip_to: u64,
    bookmarks: bool,
    bookmarked: u64,
    next_bookmark: Pin<Box<Sleep>>,
    deadline: Pin<Box<Sleep>>,
    _guard: WatchGuard,
}

impl State {
    /// The next line, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.queue.pop_front() {
                return Some(line);
            }
            if let Some(kv) = self.initial.pop_front() {
                self.take_initial(&kv);
                continue;
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.encoder.bookmark(revision, true));
            }
            let shutdown = self.encoder.target.shared.shutdown.clone();
            let watch = self.watch.as_mut()?;
            tokio::select! {
                event = watch.next() => match event {
                    Ok(event) => self.take(&event),
                    Err(error) => {
                        let position = self.bookmarked;
                        self.end(watch_error(error, position, &self.encoder.target));
                    }
                },
                () = self.next_bookmark.as_mut(), if self.bookmarks => self.bookmark(),
                () = self.deadline.as_mut() => return None,
                () = shutdown.cancelled() => return None,
            }
        }
    }

    fn take_initial(&mut self, kv: &KeyValue) {
        let served = self.encoder.target.served.clone();
        let line = match self.selection.matches(&served, kv) {
            Ok(true) => self.encoder.line("ADDED", kv, kv.mod_revision),
            Ok(false) => return,
            Err(status) => Err(status),
        };
        match line {
            Ok(line) => self.queue.push_back(line),
            Err(status) => {
                self.initial.clear();
                self.initial_end = None;
                self.end(status);
            }
        }
    }

    fn end(&mut self, status: Status) {
        self.queue.push_back(error_line(&status));
        self.watch = None;
    }

    fn bookmark(&mut self) {
        self.next_bookmark.as_mut().reset(Instant::now() + BOOKMARK_PERIOD);
        let Some(watch) = self.watch.as_mut() else { return };
        let revision = watch.progress_revision().max(self.skip_to);
        if revision > self.bookmarked {
            self.bookmarked = revision;
            let line = self.encoder.bookmark(revision, false);
            self.queue.push_back(line);
        }
    }

    /// Queues what an event means to this caller.
    fn take(&mut self, event: &Arc<Event>) {
        if event.revision <= self.skip_to {
            return;
        }
        match self.line(event) {
            Ok(Some(line)) => {
                self.bookmarked = event.revision;
                self.queue.push_back(line);
            }
            Ok(None) => {}
            Err(status) => self.end(status),
        }
    }

    fn line(&mut self, event: &Event) -> Result<Option<Bytes>, Status> {
        let natural = match (event.kind, &event.prev) {
            (EventKind::Delete, _) => "DELETED",
            (EventKind::Put, None) => "ADDED",
            (EventKind::Put, Some(_)) => "MODIFIED",
        };
        if self.selection.is_everything() {
            return self.encoder.event(natural, event).map(Some);
        }
        let served = self.encoder.target.served.clone();
        let is = self.selection.matches(&served, &event.kv)?;
        if event.kind == EventKind::Delete {
            return if is { self.encoder.event(natural, event).map(Some) } else { Ok(None) };
        }
        let was = match &event.prev {
            Some(prev) => self.selection.matches(&served, prev)?,
            None => false,
        };
        match (was, is, &event.prev) {
            (true, true, _) => self.encoder.event(natural, event).map(Some),
            (false, true, None) => self.encoder.event("ADDED", event).map(Some),
            (false, true, Some(_)) => self.encoder.line("ADDED", &event.kv, event.revision).map(Some),
            // The object as it was last seen, at the revision that took it away.
            (true, false, Some(prev)) => self.encoder.line("DELETED", prev, event.revision).map(Some),
            _ => Ok(None),
        }
    }
}
