//! Who may call without saying who he is.

/// Whether calls without credentials are served as `system:anonymous`, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// None: who says nothing is answered 401.
    Nobody,
    /// All; what they may do is the authorizer's business.
    Everywhere,
    /// Those to these paths, each as a whole.
    Paths(Vec<String>),
}

impl Anonymous {
    /// Whether a call to this path may go without credentials.
    pub fn may_call(&self, path: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everywhere => true,
            Self::Paths(paths) => paths.iter().any(|p| p == path),
        }
    }
}

impl Default for Anonymous {
    /// As in Kubernetes: all.
    fn default() -> Self {
        Self::Everywhere
    }
}
