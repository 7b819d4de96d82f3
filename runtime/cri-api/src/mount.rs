//! Places in volumes (`subPath`), as this project's agent tells them to its runtime.

/// The host path of a place in a volume for a wasm container: `<volume>/./<place>`.
///
/// The runtime looks the place up beneath the volume each time that it is opened, so that a link which somebody makes of it
/// leads nowhere else. A runtime that knows nothing of this sees the same path. Neither part may have `/./` in it.
pub fn beneath(volume: &str, place: &str) -> String {
    format!("{}/./{place}", volume.trim_end_matches('/'))
}
