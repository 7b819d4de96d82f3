//! Which version of an interface serves for which.

/// Whether an export of this name serves an import of that one: the same, or a later version that is compatible.
pub(super) fn serves(export: &str, import: &str) -> bool {
    if export == import {
        return true;
    }
    let (Some((name, has)), Some((wanted, wants))) = (export.split_once('@'), import.split_once('@')) else {
        return false;
    };
    let (Some(has), Some(wants)) = (numbers(has), numbers(wants)) else { return false };
    // As in Cargo: what comes before the first number that is not zero is one line of versions.
    let line = |[major, minor, patch]: [u64; 3]| match (major, minor) {
        (0, 0) => (0, 0, patch),
        (0, minor) => (0, minor, 0),
        (major, _) => (major, 0, 0),
    };
    name == wanted && line(has) == line(wants) && has >= wants
}

/// A version without a pre-release.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_compatible_versions_serve() {
        for (export, import, expected) in [
            ("a:b/c", "a:b/c", true),
            ("a:b/c@1.2.0", "a:b/c@1.0.0", true),
            ("a:b/c@1.0.0", "a:b/c@1.2.0", false),
            ("a:b/c@2.0.0", "a:b/c@1.0.0", false),
            ("a:b/c@0.2.1", "a:b/c@0.2.0", true),
            ("a:b/c@0.3.0", "a:b/c@0.2.0", false),
            ("a:b/c@0.0.2", "a:b/c@0.0.1", false),
            ("a:b/c@1.0.0-rc.1", "a:b/c@1.0.0-rc.1", true),
            ("a:b/c@1.0.0", "a:b/c@1.0.0-rc.1", false),
            ("a:b/d@1.0.0", "a:b/c@1.0.0", false),
            ("a:b/c@1.0.0", "a:b/c", false),
        ] {
            assert_eq!(serves(export, import), expected, "{export} for {import}");
        }
    }
}
