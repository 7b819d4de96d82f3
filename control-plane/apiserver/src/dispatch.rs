//! From an authorized call to its verb.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coracle_api::Status;
use http::{Request, Response, header};
use tokio::sync::SemaphorePermit;

use crate::admission::Operation;
use crate::call::{Call, Target};
use crate::connect::SubresourceRequest;
use crate::negotiate::{self, Refused};
use crate::path::ResourcePath;
use crate::query::Query;
use crate::resource::SubresourceAction;
use crate::state::Shared;
use crate::write::Rules;
use crate::{filters, verbs};

/// How long a call may take that is no stream.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a call waits for a slot.
const SLOT_TIMEOUT: Duration = Duration::from_secs(5);

/// A slot to work in, for calls from outside; 429 when none comes free in time. Bodies are bounded, so memory is too.
async fn slot(shared: &Shared) -> Result<SemaphorePermit<'_>, Status> {
    match tokio::time::timeout(SLOT_TIMEOUT, shared.slots.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Status::too_many_requests("too many requests, please try again later", 1)),
    }
}

/// Finds the verb of an authorized call and runs it. Calls from `inside` the process wait for no slot.
pub(crate) async fn dispatch(
    target: Target,
    request: Request<Body>,
    path: ResourcePath,
    query: Query,
    inside: bool,
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
    let shared = call.shared.clone();
    let work = async move {
        let _slot = if inside { None } else { Some(slot(&shared).await?) };
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
