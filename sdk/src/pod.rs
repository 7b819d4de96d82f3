//! What a pod knows of itself. Everything comes from its manifest; nothing of the host is visible.

/// The pod's name: `HOSTNAME`, which every container of the pod has.
pub fn name() -> String {
    setting("HOSTNAME").unwrap_or_default()
}

/// A value from the container's `env` or `envFrom`.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
