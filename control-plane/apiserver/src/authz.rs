//! May they: one hook on every call.

use async_trait::async_trait;

use crate::request::UserInfo;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct AuthorizationRequest<'a> {
    /// Who calls.
    pub user: &'a UserInfo,
    /// The verb; for paths that are no resource, the HTTP method in lower case.
    pub verb: &'a str,
    /// Whether group and resource say something; else only the path does.
    pub is_resource: bool,
    /// API group; empty is the core group.
    pub group: &'a str,
    /// Version in the path.
    pub version: &'a str,
    /// Plural of the resource.
    pub resource: &'a str,
    /// Subresource, if any.
    pub subresource: Option<&'a str>,
    /// Namespace, if any.
    pub namespace: Option<&'a str>,
    /// Name, if any.
    pub name: Option<&'a str>,
    /// The path.
    pub path: &'a str,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go ahead.
    Allow,
    /// Refused. The reason is appended to the error if it is not empty.
    Deny {
        /// Why.
        reason: String,
    },
}

/// Decides on every call.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Allows or denies one call.
    async fn authorize(&self, request: &AuthorizationRequest<'_>) -> Decision;
}

/// Administrators and the cluster's own components may do everything, everyone may ask whether the server is well.
pub struct AdminsOnly;

/// The cluster's own components, by user name.
const COMPONENTS: [&str; 5] = [
    "system:apiserver",
    "system:kube-controller-manager",
    "system:kube-scheduler",
    "system:kube-proxy",
    "kube-apiserver-kubelet-client",
];
/// The cluster's own controllers, each under a name of its own.
const CONTROLLERS: &str = "system:controller:";
/// What callers without rights may read.
const PUBLIC_PATHS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// What every authenticated caller may read besides.
const DISCOVERY_PREFIXES: [&str; 3] = ["/api", "/apis", "/openapi"];

#[async_trait]
impl Authorizer for AdminsOnly {
    async fn authorize(&self, request: &AuthorizationRequest<'_>) -> Decision {
        let user = request.user;
        let name = user.name.as_str();
        let trusted = user.in_group("system:masters")
            || COMPONENTS.contains(&name)
            || name.starts_with(CONTROLLERS)
            || (name.starts_with("system:node:") && user.in_group("system:nodes"));
        let public = !request.is_resource && request.verb == "get" && readable(request.path, user);
        if trusted || public { Decision::Allow } else { Decision::Deny { reason: String::new() } }
    }
}

fn readable(path: &str, user: &UserInfo) -> bool {
    let below =
        |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    PUBLIC_PATHS.contains(&path)
        || ["/healthz", "/livez", "/readyz"].iter().any(|p| below(p))
        || (user.in_group("system:authenticated") && DISCOVERY_PREFIXES.iter().any(|p| below(p)))
}
