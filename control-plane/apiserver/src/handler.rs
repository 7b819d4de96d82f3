//! The way of a call: authentication, impersonation, mounts, authorization, then the verb.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use coracle_api::{GroupResource, Status};
use coracle_store::Freshness;
use futures::FutureExt;
use http::header::{HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use tower::ServiceExt;

use crate::audit::{self, Arrived, Asked, Trail};
use crate::authn::{self, PeerIdentity};
use crate::authz::{AuthorizationRequest, Decision};
use crate::call::Target;
use crate::dispatch::dispatch;
use crate::filters::impersonation;
use crate::flow::{self, Ask, Flow, Ticket, What};
use crate::metrics::Labels;
use crate::path::{self, ResourcePath};
use crate::query::{Query, WriteOptions};
use crate::request::{Annotations, RequestContext, UserInfo, Warnings};
use crate::state::{Served, Shared};
use crate::{deadline, filters, pretty, respond};

/// What metrics, logs and the audit log say of a call.
#[derive(Default)]
struct Track {
    labels: Labels,
    trail: Option<Trail>,
    flow: Option<Arc<Flow>>,
    /// The answer is a stream that lasts.
    streams: bool,
}

/// Subresources whose answers last, so that they neither take seats nor have a deadline.
const STREAMS: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

/// Serves one call. `known` is the identity of a call from inside the process.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    request: Request<Body>,
    known: Option<UserInfo>,
) -> Response<Body> {
    let started = Instant::now();
    let mut track = Track::default();
    let outside = known.is_none();
    let id = (outside || shared.audit.is_some()).then(|| audit::id_of(request.headers()));
    let metrics = shared.metrics.clone();
    let head = request.method() == Method::HEAD;
    let readable = pretty::wanted(&request) && !request.uri().path().starts_with("/openapi");
    // A defect in one call must not take the connection, and its other calls, with it.
    let answer = answer(shared, request, known, id.as_deref().unwrap_or(""), &mut track);
    let answer = AssertUnwindSafe(answer).catch_unwind().await;
    let Labels { verb, resource, .. } = &track.labels;
    let mut response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => respond::status(&status),
        Err(_) => {
            tracing::error!(verb, resource, "panic while serving a call");
            let response = respond::status(&Status::internal("the server failed to handle the request"));
            if let Some(trail) = &track.trail {
                trail.panicked(&response);
            }
            response
        }
    };
    if readable && !track.streams && track.labels.verb != "mount" {
        response = pretty::answer(response);
    }
    let code = response.status().as_u16();
    metrics.observe(&track.labels, code, started.elapsed());
    tracing::debug!(verb, resource, code, took = ?started.elapsed(), "call");
    if let Some(trail) = track.trail {
        response = trail.answered(response, track.streams).await;
    }
    if head {
        response = respond::headers_only(response);
    }
    if outside {
        let headers = response.headers_mut();
        if let Some(Ok(id)) = id.map(HeaderValue::try_from) {
            headers.insert(AUDIT_ID, id);
        }
        if let Some(flow) = track.flow.filter(|flow| !flow.schema_uid.is_empty()) {
            headers.insert(FLOW_SCHEMA, flow.schema_uid.clone());
            headers.insert(PRIORITY_LEVEL, flow.level_uid.clone());
        }
    }
    response
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

async fn answer(
    shared: Arc<Shared>,
    mut request: Request<Body>,
    known: Option<UserInfo>,
    id: &str,
    track: &mut Track,
) -> Result<Response<Body>, Status> {
    let inside = known.is_some();
    let path = request.uri().path().to_owned();
    let (parsed, query) = (path::parse(&path), Query::parse(request.uri().query()));
    let verb = match &parsed {
        Some(parsed) => verb_of(request.method(), parsed, &query),
        None => lower_method(request.method()),
    };
    let begin = |user: &UserInfo, request: &Request<Body>| {
        let from = request.extensions().get::<PeerIdentity>().and_then(|peer| peer.address);
        let asked = Asked { user, verb, resource: parsed.as_ref(), path: &path };
        Trail::begin(shared.audit.as_ref()?, &asked, &Arrived { request, id, from, at: Timestamp::now() })
    };
    let caller = match known {
        Some(user) => user,
        None => {
            let peer = request.extensions().get::<PeerIdentity>();
            let anonymous = shared.anonymous.may_call(&path);
            match authn::authenticate(request.headers(), peer, &shared.tokens, anonymous).await {
                Ok(user) => user,
                Err(status) => {
                    track.trail = begin(&UserInfo::default(), &request);
                    return Ok(challenge(&shared, request.uri().path(), &status));
                }
            }
        }
    };
    track.trail = begin(&caller, &request);
    let name = caller.name.clone();
    let user = impersonation::apply(&shared, caller, request.headers()).await?;
    if let Some(trail) = &mut track.trail
        && user.name != name
    {
        trail.impersonates(&user);
    }
    if let Some(router) = mounted(&shared, &path) {
        track.labels.verb = "mount";
        return mount(&shared, router, request, user, &path).await;
    }
    match parsed {
        Some(parsed) => {
            request.headers_mut().remove(header::AUTHORIZATION);
            resource(shared, request, user, parsed, query, verb, inside, track).await
        }
        None => {
            track.labels.verb = upper(verb);
            let ask = Ask { user: &user, verb, what: What::Path(&path) };
            let _ticket = match seat(&shared, &ask, 1, deadline::LONGEST, inside, track).await {
                Ok(ticket) => ticket,
                Err(refused) => return Ok(refused),
            };
            let allowed = authorize_path(&shared, &user, verb, &path).await;
            decided(track, &allowed);
            allowed?;
            let delegate = path::group_version(&path).and_then(|(g, v)| Some((shared.delegate(g, v)?, g, v)));
            if let Some((delegate, group, version)) = delegate {
                return delegate.forward(&shared.objects, (group, version), &user, request).await;
            }
            crate::paths::serve(&shared, &request.into_parts().0).await
        }
    }
}

fn decided(track: &Track, allowed: &Result<(), Status>) {
    if let Some(trail) = &track.trail {
        trail.decided(allowed.is_ok(), "");
    }
}

/// Seats for a call, or the answer that sends it away. Calls from inside the process need none: their number is known.
async fn seat(
    shared: &Shared,
    ask: &Ask<'_>,
    seats: u32,
    time: Duration,
    inside: bool,
    track: &mut Track,
) -> Result<Option<Ticket>, Response<Body>> {
    if inside {
        return Ok(None);
    }
    let Some(flow) = shared.flows.classify(ask) else { return Ok(None) };
    let namespace = match &ask.what {
        What::Resource(path) => path.namespace.as_deref(),
        What::Path(_) => None,
    };
    // Who waits longer than this would have too little time left.
    let admitted = shared.flows.admit(&flow, ask.user, namespace, seats, time / 4).await;
    track.flow = Some(flow);
    admitted.map_err(|why| {
        tracing::debug!(user = ask.user.name, why = why.reason(), "a call was sent away");
        let words = "Too many requests, please try again later.\n";
        let mut response = respond::text(StatusCode::TOO_MANY_REQUESTS, words);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    })
}

fn mounted<'a>(shared: &'a Shared, path: &str) -> Option<&'a axum::Router> {
    shared.mounts.iter().find(|(prefix, _)| is_below(prefix, path)).map(|(_, router)| router)
}

fn is_below(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn asks_for_password(shared: &Shared, path: &str) -> bool {
    shared.passwords.iter().any(|prefix| is_below(prefix, path))
}

/// Hands a call to a mounted router, with its caller as a request extension.
async fn mount(
    shared: &Shared,
    router: &axum::Router,
    mut request: Request<Body>,
    user: UserInfo,
    path: &str,
) -> Result<Response<Body>, Status> {
    if let Err(status) = authorize_path(shared, &user, lower_method(request.method()), path).await {
        let anonymous = user.name == UserInfo::anonymous().name && asks_for_password(shared, path);
        return Ok(if anonymous {
            challenge(shared, path, &Status::unauthorized())
        } else {
            respond::status(&status)
        });
    }
    request.headers_mut().remove(header::AUTHORIZATION);
    request.extensions_mut().insert(user);
    match router.clone().oneshot(request).await {
        Ok(response) => Ok(response),
        Err(never) => match never {},
    }
}

/// 401; clients of a mount are told which scheme would do.
fn challenge(shared: &Shared, path: &str, status: &Status) -> Response<Body> {
    let mut response = respond::status(status);
    if asks_for_password(shared, path) {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"coracle\""));
    }
    response
}

fn lower_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

/// A verb in the words of metrics.
fn upper(verb: &str) -> &'static str {
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "head" => "HEAD",
        "options" => "OPTIONS",
        _ => "other",
    }
}

async fn authorize_path(shared: &Shared, user: &UserInfo, verb: &str, path: &str) -> Result<(), Status> {
    let ask = AuthorizationRequest {
        user,
        verb,
        is_resource: false,
        group: "",
        version: "",
        resource: "",
        subresource: None,
        namespace: None,
        name: None,
        path,
    };
    match shared.authorizer.authorize(&ask).await {
        Decision::Allow => Ok(()),
        Decision::Deny { reason } => {
            let mut why = format!("User {:?} cannot {verb} path {path:?}", user.name);
            filters::append_reason(&mut why, &reason);
            Err(Status::forbidden(&GroupResource::default(), "", why))
        }
    }
}

/// The verb of a call in the words of authorization.
fn verb_of(method: &Method, path: &ResourcePath, query: &Query) -> &'static str {
    let collection = path.name.is_none();
    match *method {
        Method::GET | Method::HEAD if path.watch || (collection && query.flag("watch")) => "watch",
        Method::GET | Method::HEAD if collection => "list",
        // A watch of one object, as old clients ask for it.
        Method::GET | Method::HEAD if path.subresource.is_none() && query.flag("watch") => "watch",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[allow(clippy::too_many_arguments)] // What was read of the call is passed on, not read again.
async fn resource(
    shared: Arc<Shared>,
    request: Request<Body>,
    user: UserInfo,
    path: ResourcePath,
    query: Query,
    verb: &'static str,
    inside: bool,
    track: &mut Track,
) -> Result<Response<Body>, Status> {
    track.labels.verb = upper(verb);
    let lasts = path.subresource.as_deref().is_some_and(|sub| STREAMS.contains(&sub));
    track.streams = lasts || verb == "watch";
    let time = if track.streams { deadline::LONGEST } else { deadline::of(&query)? };
    let seats = match verb {
        "list" => list_seats(&shared, &path, &query),
        _ => 1,
    };
    let ask = Ask { user: &user, verb, what: What::Resource(&path) };
    let ticket = match seat(&shared, &ask, seats, time, inside || lasts, track).await {
        Ok(ticket) => ticket,
        Err(refused) => return Ok(refused),
    };
    let allowed = filters::authorize_resource(&shared, &user, verb, &path, request.uri().path()).await;
    decided(track, &allowed);
    allowed?;
    if let Some(delegate) = shared.delegate(&path.group, &path.version) {
        track.labels.resource.clone_from(&path.resource);
        return delegate.forward(&shared.objects, (&path.group, &path.version), &user, request).await;
    }
    let Some(served) = shared.find(&path.group, &path.version, &path.resource).await else {
        return match shared.catalog.load().has_group_version(&path.group, &path.version) {
            true => Err(Status::resource_not_found()),
            false => Ok(respond::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        };
    };
    label(track, &served, &path, &query, &request);
    if path.namespace.is_some() && !served.def.namespaced {
        return Err(Status::resource_not_found());
    }
    if path.namespace.is_none()
        && served.def.namespaced
        && (path.name.is_some() || verb == "create" || verb == "deletecollection")
    {
        return Err(if path.name.is_some() {
            Status::resource_not_found()
        } else {
            Status::method_not_allowed()
        });
    }
    if verb != "watch" {
        let read = shared.objects.store().fresh(freshness(verb, &query)).boxed().await;
        read.map_err(|error| crate::errors::store(error, &served.gr))?;
    }
    let mut cx = context(&served, &request, user, verb, &path, &query);
    if let Some(trail) = &track.trail {
        cx.annotations = trail.annotations();
    }
    let warnings = cx.warnings.clone();
    if let Some(words) = served.def.strategy.deprecation() {
        warnings.add(words.to_owned());
    }
    let metrics = shared.metrics.clone();
    let mutating = !matches!(verb, "get" | "list" | "watch");
    let _in_flight = (!track.streams).then(|| metrics.in_flight(mutating));
    let mut response = dispatch(Target { shared, served, cx }, request, path, query, time).await?;
    drop(ticket);
    respond::warn(&mut response, &warnings.take());
    Ok(response)
}

/// What a call has to see: what any other server has answered, unless it names a revision, which any server then serves
/// by itself.
fn freshness(verb: &str, query: &Query) -> Freshness {
    let named = query.get("resourceVersion").and_then(|version| version.parse().ok());
    match named {
        // Also of calls that write: those are decided where the leader is.
        Some(0) => Freshness::AtLeast(0),
        Some(revision) if matches!(verb, "get" | "list") => Freshness::AtLeast(revision),
        _ => Freshness::Linearizable,
    }
}

/// Seats of a list: by the objects that the last one went over.
fn list_seats(shared: &Shared, path: &ResourcePath, query: &Query) -> u32 {
    let catalog = shared.catalog.load();
    let Some(served) = catalog.find(&path.group, &path.version, &path.resource) else { return 1 };
    let limit = query.text("limit").and_then(|l| l.parse().ok());
    flow::seats_of_list(served.listed.load(Ordering::Relaxed), limit)
}

/// What metrics say of a call to a resource that is served.
fn label(track: &mut Track, served: &Served, path: &ResourcePath, query: &Query, request: &Request<Body>) {
    let labels = &mut track.labels;
    labels.group.clone_from(&served.def.group);
    labels.version.clone_from(&served.def.version);
    labels.resource.clone_from(&served.def.plural);
    if let Some(sub) = path.subresource.as_deref().filter(|sub| served.subresource(sub).is_some()) {
        labels.subresource = sub.to_owned();
        if STREAMS.contains(&sub) {
            labels.verb = "CONNECT";
        }
    }
    labels.scope = match () {
        () if path.name.is_some() || labels.verb == "POST" => "resource",
        () if path.namespace.is_some() => "namespace",
        () => "cluster",
    };
    if query.all("dryRun").any(|v| v == "All") {
        labels.dry_run = "All";
    }
    let apply = |v: &HeaderValue| v.as_bytes().starts_with(b"application/apply-patch");
    if labels.verb == "PATCH" && request.headers().get(header::CONTENT_TYPE).is_some_and(apply) {
        labels.verb = "APPLY";
    }
}

fn context(
    served: &Served,
    request: &Request<Body>,
    user: UserInfo,
    verb: &'static str,
    path: &ResourcePath,
    query: &Query,
) -> RequestContext {
    let options = WriteOptions::of(query);
    let agent = request.headers().get(header::USER_AGENT).and_then(|a| a.to_str().ok()).unwrap_or("");
    let agent = agent.split('/').next().unwrap_or("");
    // Clients in this process that give no name are known by their identity.
    let agent = if agent.is_empty() { user.name.rsplit(':').next().unwrap_or("") } else { agent };
    let agent = agent.chars().take(128).collect();
    RequestContext {
        verb,
        user,
        group: path.group.clone(),
        version: path.version.clone(),
        resource: path.resource.clone(),
        kind: served.def.kind.clone(),
        namespace: path.namespace.clone(),
        name: path.name.clone(),
        subresource: path.subresource.clone(),
        path: request.uri().path().to_owned(),
        dry_run: options.dry_run.iter().any(|v| v == "All"),
        field_validation: options.validation(),
        field_manager: options.field_manager.unwrap_or(agent),
        now: Timestamp::now(),
        warnings: Warnings::default(),
        annotations: Annotations::default(),
    }
}
