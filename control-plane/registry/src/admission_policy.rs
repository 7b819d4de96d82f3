//! ValidatingAdmissionPolicy, MutatingAdmissionPolicy and their bindings, of `admissionregistration.k8s.io`: rules and changes in CEL,
//! which the admission plugins of these names carry out.

mod binding;
mod compiled;
mod policy;

use coracle_apiserver::ResourceDef;

pub use compiled::{Broken, Compiled, Mutation};

/// The group.
pub const GROUP: &str = "admissionregistration.k8s.io";

/// Which of the two kinds of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Policies that refuse.
    Validating,
    /// Policies that change.
    Mutating,
}

impl Family {
    /// The plural of policies.
    pub const fn policies(self) -> &'static str {
        match self {
            Self::Validating => "validatingadmissionpolicies",
            Self::Mutating => "mutatingadmissionpolicies",
        }
    }

    /// The plural of bindings.
    pub const fn bindings(self) -> &'static str {
        match self {
            Self::Validating => "validatingadmissionpolicybindings",
            Self::Mutating => "mutatingadmissionpolicybindings",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Validating => "ValidatingAdmissionPolicy",
            Self::Mutating => "MutatingAdmissionPolicy",
        }
    }
}

/// The resources.
pub fn resources() -> Vec<ResourceDef> {
    let families = [Family::Mutating, Family::Validating];
    families.into_iter().flat_map(|family| [policy::resource(family), binding::resource(family)]).collect()
}
