//! From an authorized call to its verb.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use coracle_api::Status;
use http::{Method, Request, Response, header};
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::call::{Call, Target};
use crate::connect::SubresourceRequest;
use crate::negotiate::{self, Refused};
use crate::path::ResourcePath;
use crate::query::Query;
use crate::resource::SubresourceAction;
use crate::stall::Connection;
use crate::write::Rules;
use crate::{filters, pretty, verbs};

/// Finds the verb of an authorized call and runs it; `time` is how long it may take if it is no stream.
pub(crate) async fn dispatch(
    target: Target,
    request: Request<Body>,
    path: ResourcePath,
    query: Query,
    time: Duration,
) -> Result<Response<Body>, Status> {
    let verb = target.cx.verb;
    let served = target.served.clone();
    let (mut action, mut connects) = (None, false);
    match &path.subresource {
        Some(name) => {
            let sub = served.subresource(name).ok_or_else(Status::resource_not_found)?;
            if !sub.verbs.iter().any(|v| v == verb) {
                return Err(Status::method_not_allowed());
            }
            action = Some(sub.action.clone());
            connects = sub.kind.ends_with("Options");
        }
        None if !served.def.has_verb(verb) || verb.is_empty() => return Err(Status::method_not_allowed()),
        None if verb == "create" && path.name.is_some() => return Err(Status::method_not_allowed()),
        None if matches!(verb, "update" | "patch") && path.name.is_none() => {
            return Err(Status::method_not_allowed());
        }
        None => {}
    }
    if let Some(SubresourceAction::Handler(handler)) = action {
        let request = match (connects, verb) {
            (true, _) => admit_connect(&target, &query, request).await?,
            (false, "create") => admit_create(&target, request).await?,
            (false, _) => request,
        };
        let objects = target.shared.objects.clone();
        return handler
            .handle(SubresourceRequest { context: target.cx, tail: path.tail, http: request, objects })
            .await;
    }
    if !path.tail.is_empty() {
        return Err(Status::resource_not_found());
    }
    // Headers alone are for what is passed on, and for paths that are no resources.
    if request.method() == Method::HEAD {
        return Err(Status::method_not_allowed());
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|a| a.to_str().ok());
    let accepted = negotiate::accept(accept).map_err(|refused| match refused {
        Refused::MediaType => crate::errors::not_acceptable_type(),
        Refused::Form => crate::errors::not_acceptable_form(),
    })?;
    let readable = pretty::wanted(&request);
    let (parts, body) = request.into_parts();
    let connection = parts.extensions.get::<Connection>().cloned();
    let mut call = Call { target, query, accepted, headers: parts.headers, body: Bytes::new(), connection };
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
        call.cx.annotations.keep_body(&call.body);
        let headers = reads.then(|| call.headers.clone());
        let mut response = run(call, action).await?;
        if readable {
            response = pretty::answer(response);
        }
        Ok(match headers {
            Some(headers) => crate::compress::answer(&headers, response),
            None => response,
        })
    };
    match tokio::time::timeout(time, work).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::timeout("request did not complete within the allotted timeout", 0)),
    }
}

/// Admission of a connection: its options are the object.
async fn admit_connect(
    target: &Target,
    query: &Query,
    request: Request<Body>,
) -> Result<Request<Body>, Status> {
    let mut options = connect_options(target, query);
    target.admit(Operation::Connect, Some(&mut options), None).await?;
    target.check_admission(Operation::Connect, Some(&options), None).await?;
    Ok(request)
}

/// The options of a connection, such as PodExecOptions, from its query.
fn connect_options(target: &Target, query: &Query) -> Value {
    let sub = target.cx.subresource.as_deref().and_then(|name| target.served.subresource(name));
    let mut options = json!({"apiVersion": "v1", "kind": sub.map_or("", |s| s.kind.as_str())});
    let mut set = |name: &str, value: Value| options.as_object_mut().map(|o| o.insert(name.into(), value));
    for name in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|name| query.flag(name)) {
        set(name, true.into());
    }
    for name in ["container", "path"] {
        if let Some(value) = query.text(name) {
            set(name, value.into());
        }
    }
    let command: Vec<&str> = query.all("command").collect();
    if !command.is_empty() {
        set("command", command.into());
    }
    let ports: Vec<i64> = query.all("ports").filter_map(|port| port.parse().ok()).collect();
    if !ports.is_empty() {
        set("ports", ports.into());
    }
    options
}

/// Admission of what is created through a subresource (Binding, Eviction, TokenRequest): plugins may change it. What is no
/// object is left to the subresource, which refuses it.
async fn admit_create(target: &Target, request: Request<Body>) -> Result<Request<Body>, Status> {
    let mut request = filters::readable(request).await?;
    let body = crate::body::read(std::mem::take(request.body_mut())).await?;
    let yaml = request.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().ends_with(b"yaml"));
    let object: Option<Value> = match yaml {
        true => coracle_api::yaml::one_document(&body).ok().map(|document| document.value),
        false => serde_json::from_slice(&body).ok(),
    };
    let Some(sent) = object.filter(Value::is_object) else {
        target.check_admission(Operation::Create, None, None).await?;
        *request.body_mut() = Body::from(body);
        return Ok(request);
    };
    let mut object = sent.clone();
    target.admit(Operation::Create, Some(&mut object), None).await?;
    target.check_admission(Operation::Create, Some(&object), None).await?;
    if object == sent {
        *request.body_mut() = Body::from(body);
        return Ok(request);
    }
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.remove(header::CONTENT_LENGTH);
    *request.body_mut() = Body::from(crate::codec::to_bytes(&object));
    Ok(request)
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
