//! Rules for names. For a `generateName` (`prefix`) a trailing `-` is fine, because more follows it.

use coracle_api::meta::validation;

fn masked(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(rest) if prefix && !rest.is_empty() => format!("{rest}a"),
        _ => name.to_string(),
    }
}

/// A DNS-1123 label.
pub fn label(name: &str, prefix: bool) -> Vec<String> {
    validation::dns1123_label(&masked(name, prefix))
}
