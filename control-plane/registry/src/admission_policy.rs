//! ValidatingAdmissionPolicy and its binding, of `admissionregistration.k8s.io`: rules in CEL that the admission plugin of this name
//! enforces. What it could not enforce (parameters, audit annotations) is refused.

mod binding;
mod expressions;
mod matching;
mod policy;

use coracle_apiserver::ResourceDef;

pub use expressions::Compiled;
pub use matching::{Call, covers};

/// The group.
pub const GROUP: &str = "admissionregistration.k8s.io";
/// The plural of policies.
pub const POLICIES: &str = "validatingadmissionpolicies";
/// The plural of bindings.
pub const BINDINGS: &str = "validatingadmissionpolicybindings";

/// The resources.
pub fn resources() -> Vec<ResourceDef> {
    vec![policy::resource(), binding::resource()]
}
