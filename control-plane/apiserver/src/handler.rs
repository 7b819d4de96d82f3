//! The way of a call: authentication, impersonation, mounts, authorization, then the verb.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use coracle_api::{GroupResource, Status};
use futures::FutureExt;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, header};
use jiff::Timestamp;
use tower::ServiceExt;

use crate::admission::Operation;
use crate::authn::{self, PeerIdentity};
use crate::authz::{AuthorizationRequest, Decision};
use crate::call::{Call, Target};
use crate::connect::SubresourceRequest;
use crate::filters::impersonation;
use crate::negotiate::{self, Refused};
use crate::path::{self, ResourcePath};
use crate::query::{Query, WriteOptions};
use crate::request::{RequestContext, UserInfo};
use crate::resource::SubresourceAction;
use crate::state::{Served, Shared};
use crate::write::Rules;
use crate::{filters, respond, verbs};

/// How long a call may take that is no stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

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
            resource(shared, request, user, parsed, label).await
        }
        None => {
            label.verb = lower_method(request.method());
            authorize_path(&shared, &user, label.verb, &path).await?;
            crate::paths::serve(&shared, &request)
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
    label: &mut Label,
) -> Result<Response<Body>, Status> {
    let query = Query::parse(request.uri().query());
    let verb = verb_of(request.method(), &path, &query);
    label.verb = verb;
    filters::authorize_resource(&shared, &user, verb, &path, request.uri().path()).await?;
    let Some(served) = shared.find(&path.group, &path.version, &path.resource).cloned() else {
        return match shared.has_group_version(&path.group, &path.version) {
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
    let cx = context(&served, &request, user, verb, &path, &query);
    dispatch(Target { shared, served, cx }, request, path, query).await
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
    let agent = agent.split(['/', ' ']).next().unwrap_or("").chars().take(128).collect();
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
    }
}

async fn dispatch(
    target: Target,
    request: Request<Body>,
    path: ResourcePath,
    query: Query,
) -> Result<Response<Body>, Status> {
    let verb = target.cx.verb;
    let served = target.served.clone();
    let mut action = None;
    match &path.subresource {
        Some(name) => {
            let sub = served.subresource(name).ok_or_else(Status::resource_not_found)?;
            if !sub.verbs.iter().any(|v| v == verb) {
                return Err(Status::method_not_allowed());
            }
            action = Some(sub.action.clone());
        }
        None if !served.def.has_verb(verb) || verb.is_empty() => return Err(Status::method_not_allowed()),
        None if verb == "create" && path.name.is_some() => return Err(Status::method_not_allowed()),
        None if matches!(verb, "update" | "patch") && path.name.is_none() => {
            return Err(Status::method_not_allowed());
        }
        None => {}
    }
    if let Some(SubresourceAction::Handler(handler)) = action {
        let operation = if verb == "get" { Operation::Connect } else { Operation::Create };
        target.check_admission(operation, None, None).await?;
        let objects = target.shared.objects.clone();
        let request = filters::readable(request).await?;
        return handler
            .handle(SubresourceRequest { context: target.cx, tail: path.tail, http: request, objects })
            .await;
    }
    if !path.tail.is_empty() {
        return Err(Status::resource_not_found());
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|a| a.to_str().ok());
    let accepted = negotiate::accept(accept).map_err(|refused| match refused {
        Refused::MediaType => crate::errors::not_acceptable_type(),
        Refused::Form => crate::errors::not_acceptable_form(),
    })?;
    let (parts, body) = request.into_parts();
    let mut call = Call { target, query, accepted, headers: parts.headers, body: Bytes::new() };
    if verb == "watch" {
        return verbs::watch::watch(call, path.name).await;
    }
    let reads = matches!(verb, "get" | "list");
    let work = async move {
        if !reads {
            call.body = crate::body::read(body).await?;
            if filters::is_protobuf(&call.headers) {
                call.body = filters::protobuf_as_json(&mut call.headers, &call.body)?;
            }
        }
        run(call, action).await
    };
    match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::timeout("request did not complete within the allotted timeout", 0)),
    }
}

async fn run(call: Call, action: Option<SubresourceAction>) -> Result<Response<Body>, Status> {
    let verb = call.cx.verb;
    let rules = match action {
        None => Rules::Main,
        Some(SubresourceAction::Status) => Rules::Status,
        Some(SubresourceAction::Object(strategy)) => Rules::Other(strategy),
        Some(SubresourceAction::Scale(paths)) => return verbs::scale::scale(call, paths).await,
        Some(SubresourceAction::Handler(_)) => return Err(Status::resource_not_found()),
    };
    match verb {
        "get" => verbs::get::get(call).await,
        "list" => verbs::list::list(call).await,
        "create" => verbs::create::create(call).await,
        "update" => verbs::update::update(call, rules).await,
        "patch" => verbs::patch::patch(call, rules).await,
        "delete" => verbs::delete::delete(call).await,
        "deletecollection" => verbs::deletecollection::delete_collection(call).await,
        _ => Err(Status::method_not_allowed()),
    }
}
