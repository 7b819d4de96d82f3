//! The way of a call: authentication, impersonation, mounts, authorization, then the verb.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use coracle_api::{GroupResource, Status};
use futures::FutureExt;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use tower::ServiceExt;

use crate::authn::{self, PeerIdentity};
use crate::authz::{AuthorizationRequest, Decision};
use crate::call::Target;
use crate::dispatch::dispatch;
use crate::filters::impersonation;
use crate::path::{self, ResourcePath};
use crate::query::{Query, WriteOptions};
use crate::request::{Annotations, RequestContext, UserInfo, Warnings};
use crate::state::{Served, Shared};
use crate::{filters, respond};

/// What metrics and logs say of a call.
#[derive(Default)]
struct Label {
    verb: &'static str,
    resource: String,
}

/// Serves one call. `known` is the identity of a call from inside the process.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    request: Request<Body>,
    known: Option<UserInfo>,
) -> Response<Body> {
    let started = Instant::now();
    let mut label = Label::default();
    let metrics = shared.metrics.clone();
    // A defect in one call must not take the connection, and its other calls, with it.
    let answer = AssertUnwindSafe(answer(shared, request, known, &mut label)).catch_unwind().await;
    let response = match answer {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => respond::status(&status),
        Err(_) => {
            tracing::error!(verb = label.verb, resource = label.resource, "panic while serving a call");
            respond::status(&Status::internal("the server failed to handle the request"))
        }
    };
    metrics.observe(label.verb, &label.resource, response.status().as_u16(), started.elapsed());
    tracing::debug!(verb = label.verb, resource = label.resource, code = response.status().as_u16(), took = ?started.elapsed(), "call");
    response
}

async fn answer(
    shared: Arc<Shared>,
    mut request: Request<Body>,
    known: Option<UserInfo>,
    label: &mut Label,
) -> Result<Response<Body>, Status> {
    let inside = known.is_some();
    let caller = match known {
        Some(user) => user,
        None => {
            let peer = request.extensions().get::<PeerIdentity>();
            match authn::authenticate(request.headers(), peer, &shared.tokens).await {
                Ok(user) => user,
                Err(status) => return Ok(challenge(&shared, request.uri().path(), &status)),
            }
        }
    };
    let user = impersonation::apply(&shared, caller, request.headers()).await?;
    let path = request.uri().path().to_owned();
    if let Some(router) = mounted(&shared, &path) {
        (label.verb, label.resource) = ("mount", String::new());
        return mount(&shared, router, request, user, &path).await;
    }
    match path::parse(&path) {
        Some(parsed) => {
            request.headers_mut().remove(header::AUTHORIZATION);
            resource(shared, request, user, parsed, inside, label).await
        }
        None => {
            label.verb = lower_method(request.method());
            authorize_path(&shared, &user, label.verb, &path).await?;
            crate::paths::serve(&shared, &request.into_parts().0).await
        }
    }
}

fn mounted<'a>(shared: &'a Shared, path: &str) -> Option<&'a axum::Router> {
    let below =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    shared.mounts.iter().find(|(prefix, _)| below(prefix)).map(|(_, router)| router)
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
        let anonymous = user.name == UserInfo::anonymous().name;
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
    if mounted(shared, path).is_some() {
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

async fn resource(
    shared: Arc<Shared>,
    request: Request<Body>,
    user: UserInfo,
    path: ResourcePath,
    inside: bool,
    label: &mut Label,
) -> Result<Response<Body>, Status> {
    let query = Query::parse(request.uri().query());
    let verb = verb_of(request.method(), &path, &query);
    label.verb = verb;
    filters::authorize_resource(&shared, &user, verb, &path, request.uri().path()).await?;
    let Some(served) = shared.find(&path.group, &path.version, &path.resource).await else {
        return match shared.catalog.load().has_group_version(&path.group, &path.version) {
            true => Err(Status::resource_not_found()),
            false => Ok(respond::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        };
    };
    label.resource.clone_from(&served.def.plural);
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
    if verb != "watch" && query.get("resourceVersion") != Some("0") {
        // What any other server has answered is to be seen here too.
        let read = shared.objects.store().linearizable().boxed().await;
        read.map_err(|error| crate::errors::store(error, &served.gr))?;
    }
    let cx = context(&served, &request, user, verb, &path, &query);
    let warnings = cx.warnings.clone();
    let mut response = dispatch(Target { shared, served, cx }, request, path, query, inside).await?;
    respond::warn(&mut response, &warnings.take());
    Ok(response)
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
