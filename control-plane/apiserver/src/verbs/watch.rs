//! watch: changes as they happen, from any revision that is still kept.

mod encoder;
mod stream;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use coracle_api::Status;
use coracle_api::field::{Error, Path};
use coracle_store::{KeyValue, Range};
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use rand::Rng;
use tokio::time::Instant;

use encoder::{Encoder, Shape, error_line};

use super::get::{not_older_than, revision};
use crate::call::{Call, Target};
use crate::metrics::Labels;
use crate::negotiate::{Encoding, Form};
use crate::query::Query;
use crate::select::Selection;
use crate::stall::Turns;
use crate::tables::Include;
use crate::validate;

/// How long a watch lasts that names no timeout: this and up to as much again.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often an idle watch that asked for bookmarks gets one.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(30);
/// A watch with a timeout gets a last bookmark this long before it ends.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
const NOT_OLDER: &str = "NotOlderThan";

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
    let encoder = Encoder::new(call.target.clone(), form);
    let (initial, after) = match options.start {
        Start::Now => present(&call, &prefix).await?,
        Start::After(revision) => (VecDeque::new(), revision),
    };
    let store = call.shared.objects.store();
    let adrift = store.adrift();
    if *adrift.borrow() {
        let why = "this server has lost touch with the others; watch at another one";
        return Err(Status::service_unavailable(why));
    }
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
    let state = stream::State {
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
        adrift,
        sent: 0,
        guard: call.shared.metrics.watch(labels(&call)),
    };
    let turns = Turns::of(call.connection.as_ref());
    let body = Body::from_stream(futures::stream::unfold((state, turns), |(mut state, turns)| async move {
        turns.asked();
        let line = state.next().await?;
        turns.given();
        Some((Ok::<_, std::convert::Infallible>(line), (state, turns)))
    }));
    let mut response = Response::new(body);
    let content_type =
        if call.accepted.stream { "application/json;stream=watch" } else { "application/json" };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

fn labels(call: &Call) -> Labels {
    let def = &call.served.def;
    Labels {
        verb: "WATCH",
        group: def.group.clone(),
        version: def.version.clone(),
        resource: def.plural.clone(),
        scope: if call.cx.namespace.is_some() { "namespace" } else { "cluster" },
        ..Labels::default()
    }
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
        check(query, send_initial.is_some(), matching)?;
        let revision = match version {
            "" => 0,
            text => revision(text).map_err(Status::plain)?,
        };
        let start = match (send_initial, revision) {
            (Some(true), _) | (None, 0) => Start::Now,
            (Some(false), 0) => Start::After(call.shared.objects.store().revision()),
            (_, revision) => Start::After(revision),
        };
        let timeout = match query.text("timeoutSeconds").map(|text| (text, text.parse::<i64>())) {
            Some((_, Ok(seconds))) if seconds > 0 => {
                Duration::from_secs(seconds.min(24 * 3600).unsigned_abs())
            }
            Some((text, Err(_))) => {
                let quoted = coracle_api::field::go_quote(text);
                let words = format!("strconv.ParseInt: parsing {quoted}: invalid syntax");
                return Err(Status::bad_request(words));
            }
            _ => DEFAULT_TIMEOUT + DEFAULT_TIMEOUT.mul_f64(rand::rng().random_range(0.0..1.0)),
        };
        Ok(Self { start, bookmarks, initial_bookmark: send_initial == Some(true) && bookmarks, timeout })
    }
}

/// 422 for combinations of options that mean nothing.
fn check(query: &Query, send_initial: bool, matching: &str) -> Result<(), Status> {
    let at = Path::new("resourceVersionMatch");
    let mut errors = Vec::new();
    if send_initial && matching != NOT_OLDER {
        errors.push(Error::forbidden(
            &at,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !matching.is_empty() {
        if !send_initial {
            errors.push(Error::forbidden(
                &at,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if matching != NOT_OLDER {
            errors.push(Error::not_supported(&at, matching, &[NOT_OLDER]));
        }
        if query.text("continue").is_some() {
            errors.push(Error::forbidden(&at, "resourceVersionMatch is forbidden when continue is provided"));
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

fn watch_error(error: coracle_store::Error, requested: u64, call: &Target) -> Status {
    match error {
        coracle_store::Error::Compacted { compact_revision } => {
            crate::errors::watch_expired(requested, compact_revision)
        }
        other => crate::errors::store(other, &call.served.gr),
    }
}
