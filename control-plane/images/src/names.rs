//! Names of repositories, tags and digests: the rules of the OCI distribution specification, section "Pulling manifests".

use crate::error::Error;

/// The longest repository name.
const REPOSITORY_MAX: usize = 255;
/// The longest tag.
const TAG_MAX: usize = 128;

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` in each part between slashes.
pub fn repository(name: &str) -> Result<(), Error> {
    if name.len() <= REPOSITORY_MAX && !name.is_empty() && name.split('/').all(is_component) {
        return Ok(());
    }
    Err(Error::name_invalid(format!(
        "{name:?} is not the name of a repository: lower case letters, digits, and . _ - between them"
    )))
}

fn is_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !(bytes.first().is_some_and(|b| alphanumeric(*b)) && bytes.last().is_some_and(|b| alphanumeric(*b))) {
        return false;
    }
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    separators
        .filter(|s| !s.is_empty())
        .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

/// Whether text is a tag.
pub fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= TAG_MAX
        && bytes.next().is_some_and(word)
        && bytes.all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// The 64 hexadecimal digits of a `sha256:` digest, the only kind that is kept here.
pub fn sha256(digest: &str) -> Result<&str, Error> {
    let hex = digest.strip_prefix("sha256:").filter(|h| h.len() == 64);
    let good = |h: &&str| h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    hex.filter(good).ok_or_else(|| Error::digest_invalid(format!("{digest:?} is not a sha256 digest")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        for good in ["a", "hello", "library/hello", "a.b_c__d-e---f/0"] {
            assert!(repository(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "a/", "/a", "a//b", "-a", "a..b", "a___b", "a._b", "../x", "a b"] {
            assert!(repository(bad).is_err(), "{bad}");
        }
        assert!(
            is_tag("v1.0-x_Y") && !is_tag(".x") && !is_tag("") && !is_tag(&"x".repeat(129)) && !is_tag("a/b")
        );
        assert!(sha256(&format!("sha256:{}", "0a".repeat(32))).is_ok());
        for bad in ["sha256:zz", "sha512:00", "", &format!("sha256:{}", "0A".repeat(32))] {
            assert!(sha256(bad).is_err(), "{bad}");
        }
    }
}
