//! What every call passes before its verb runs.

pub(crate) mod impersonation;

use axum::body::Body;
use bytes::Bytes;
use coracle_api::{GroupResource, Status};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Request};

use crate::authz::{AuthorizationRequest, Decision};
use crate::path::ResourcePath;
use crate::protobuf;
use crate::request::UserInfo;
use crate::state::Shared;

/// 403 unless the authorizer allows the call.
pub(crate) async fn authorize_resource(
    shared: &Shared,
    user: &UserInfo,
    verb: &str,
    path: &ResourcePath,
    raw_path: &str,
) -> Result<(), Status> {
    // A namespace's own calls are calls inside it.
    let namespace =
        path.namespace.as_deref().or_else(|| path.name.as_deref().filter(|_| path.resource == "namespaces"));
    let ask = AuthorizationRequest {
        user,
        verb,
        is_resource: true,
        group: &path.group,
        version: &path.version,
        resource: &path.resource,
        subresource: path.subresource.as_deref(),
        namespace,
        name: path.name.as_deref(),
        path: raw_path,
    };
    match shared.authorizer.authorize(&ask).await {
        Decision::Allow => Ok(()),
        Decision::Deny { reason } => Err(forbidden(&ask, &reason)),
    }
}

/// 403 in Kubernetes' words.
pub(crate) fn forbidden(ask: &AuthorizationRequest<'_>, reason: &str) -> Status {
    let resource = match ask.subresource {
        Some(sub) => format!("{}/{sub}", ask.resource),
        None => ask.resource.to_owned(),
    };
    let scope = match ask.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let mut why = format!(
        "User {:?} cannot {} resource {resource:?} in API group {:?} {scope}",
        ask.user.name, ask.verb, ask.group
    );
    append_reason(&mut why, reason);
    Status::forbidden(&GroupResource::new(ask.group, ask.resource), ask.name.unwrap_or(""), why)
}

pub(crate) fn append_reason(why: &mut String, reason: &str) {
    if !reason.is_empty() {
        why.push_str(": ");
        why.push_str(reason);
    }
}

/// Whether a body is in Kubernetes' protobuf encoding.
pub(crate) fn is_protobuf(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(protobuf::MEDIA_TYPE.as_bytes()))
}

/// Such a body as JSON; the headers then say so.
pub(crate) fn protobuf_as_json(headers: &mut HeaderMap, body: &[u8]) -> Result<Bytes, Status> {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.remove(CONTENT_LENGTH);
    if body.is_empty() {
        return Ok(Bytes::new());
    }
    Ok(crate::codec::to_bytes(&protobuf::to_json(body)?))
}

/// A call whose body, if it is protobuf, has become JSON.
pub(crate) async fn readable(mut request: Request<Body>) -> Result<Request<Body>, Status> {
    if !is_protobuf(request.headers()) {
        return Ok(request);
    }
    let body = crate::body::read(std::mem::take(request.body_mut())).await?;
    let json = protobuf_as_json(request.headers_mut(), &body)?;
    *request.body_mut() = Body::from(json);
    Ok(request)
}
