//! Nobody grants what he does not hold himself, but by the verbs `escalate` (roles) and `bind` (bindings).

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{AuthorizationRequest, RequestContext};

use super::rules::{Rule, missing, quoted};
use super::{Authorizers, MASTERS};

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// 403 unless the caller may grant `wanted` by writing the object that the call names.
pub fn check_role(authorizers: &Authorizers, cx: &RequestContext, wanted: &[Rule]) -> Result<(), Status> {
    if cx.user.in_group(MASTERS) || may(authorizers, cx, "escalate", &cx.resource, cx.name.as_deref()) {
        return Ok(());
    }
    refuse(authorizers, cx, wanted)
}

/// 403 unless the caller may bind somebody to a role. Without a namespace the role is a ClusterRole.
pub fn check_binding(
    authorizers: &Authorizers,
    cx: &RequestContext,
    role_namespace: Option<&str>,
    role: &str,
) -> Result<(), Status> {
    let plural = if role_namespace.is_some() { "roles" } else { "clusterroles" };
    if cx.user.in_group(MASTERS) || may(authorizers, cx, "bind", plural, Some(role)) {
        return Ok(());
    }
    let Some(rules) = authorizers.rbac.role(role_namespace, role) else {
        return Err(Status::not_found(&GroupResource::new(GROUP, plural), role));
    };
    refuse(authorizers, cx, &rules)
}

fn may(
    authorizers: &Authorizers,
    cx: &RequestContext,
    verb: &str,
    resource: &str,
    name: Option<&str>,
) -> bool {
    authorizers.rbac.allows(&AuthorizationRequest {
        user: &cx.user,
        verb,
        is_resource: true,
        group: GROUP,
        version: "v1",
        resource,
        subresource: None,
        namespace: cx.namespace.as_deref(),
        name,
        path: "",
    })
}

fn refuse(authorizers: &Authorizers, cx: &RequestContext, wanted: &[Rule]) -> Result<(), Status> {
    let held = authorizers.rbac.rules(&cx.user, cx.namespace.as_deref());
    let lacking = missing(&held, wanted);
    if lacking.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{lacking}",
        cx.user.name,
        quoted(&cx.user.groups)
    );
    let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
    Err(Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), why))
}
