//! Who may do what: administrators everything, a node what its pods need, everyone else what roles grant.

pub mod component;
pub mod defaults;
pub mod escalation;
pub mod index;
pub mod node;
pub mod rbac;
pub mod rules;

use std::sync::Arc;

use coracle_apiserver::{AuthorizationRequest, Authorizer, Decision};
use coracle_store::Store;

pub use node::NodeAuthorizer;
pub use rbac::Rbac;

/// The group whose members are asked nothing.
pub const MASTERS: &str = "system:masters";

/// The chain of authorizers.
pub struct Authorizers {
    /// What nodes may do.
    pub nodes: NodeAuthorizer,
    /// What roles grant.
    pub rbac: Rbac,
}

/// An answer with its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, or what went wrong while looking; often empty.
    pub reason: String,
}

impl Authorizers {
    /// The authorizers of a cluster whose objects are in `store`.
    pub fn new(store: &Store) -> Arc<Self> {
        Arc::new(Self { nodes: NodeAuthorizer::new(store.clone()), rbac: Rbac::new(store.clone()) })
    }

    fn allowed(&self, request: &AuthorizationRequest<'_>) -> bool {
        request.user.in_group(MASTERS) || self.nodes.allows(request) || self.rbac.allows(request)
    }

    /// The answer with its reason, as reviews give it.
    pub fn explain(&self, request: &AuthorizationRequest<'_>) -> Verdict {
        if request.user.in_group(MASTERS) || self.nodes.allows(request) {
            return Verdict { allowed: true, reason: String::new() };
        }
        self.rbac.explain(request)
    }
}

#[async_trait::async_trait]
impl Authorizer for Authorizers {
    async fn authorize(&self, request: &AuthorizationRequest<'_>) -> Decision {
        if self.allowed(request) {
            return Decision::Allow;
        }
        tracing::debug!(
            user = request.user.name,
            verb = request.verb,
            resource = request.resource,
            subresource = request.subresource,
            path = request.path,
            "refused"
        );
        Decision::Deny { reason: self.rbac.missing(request).unwrap_or_default() }
    }
}
