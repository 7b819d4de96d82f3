//! What every call passes before its verb runs.

pub(crate) mod impersonation;

use coracle_api::{GroupResource, Status};

use crate::authz::{AuthorizationRequest, Decision};
use crate::path::ResourcePath;
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
