//! Image names, with the defaults that users know from Docker.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// The registry of names without one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_LENGTH: usize = 512;

/// A parsed image name: `[registry/]repository[:tag][@digest]`.
///
/// Its text is the whole name (`docker.io/library/hello:v1`), under which an image is listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// `host[:port]`; [`DEFAULT_REGISTRY`] when the name had none.
    pub registry: String,
    /// As it was written, without the implied `library/`.
    pub repository: String,
    /// `latest` when the name had neither tag nor digest.
    pub tag: Option<String>,
    /// `sha256:<64 hex digits>`.
    pub digest: Option<String>,
}

impl Reference {
    /// True for names that say no registry, and those of docker.io: mirrors are asked first.
    pub fn is_default_registry(&self) -> bool {
        self.registry == DEFAULT_REGISTRY
    }

    /// The repository as its own registry calls it: docker.io keeps `hello` as `library/hello`.
    pub fn upstream_repository(&self) -> String {
        if self.is_default_registry() && !self.repository.contains('/') {
            format!("library/{}", self.repository)
        } else {
            self.repository.clone()
        }
    }

    /// The repository as a mirror calls it: without `library/`.
    pub fn mirror_repository(&self) -> &str {
        match self.repository.strip_prefix("library/") {
            Some(rest) if self.is_default_registry() && !rest.contains('/') => rest,
            _ => &self.repository,
        }
    }

    /// `registry/repository`, without tag and digest.
    pub fn repository_name(&self) -> String {
        format!("{}/{}", self.registry, self.upstream_repository())
    }

    /// What to ask a registry for: the digest if there is one, else the tag.
    pub fn manifest_key(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository_name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |reason: &str| Error::InvalidReference {
            reference: text.chars().take(MAX_LENGTH).collect(),
            reason: reason.to_owned(),
        };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if text.len() > MAX_LENGTH {
            return Err(fail("it is longer than 512 characters"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if let Some(digest) = digest
            && !is_digest(digest)
        {
            return Err(fail("the digest is not sha256:<64 lower-case hex digits>"));
        }
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fail("the tag is not 1 to 128 of A-Z a-z 0-9 _ . - (not beginning with . or -)"));
        }
        let (registry, repository) = split_registry(name);
        if !registry.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b)) {
            return Err(fail("the registry is not a host and port"));
        }
        if !repository.split('/').all(is_component) {
            return Err(fail(
                "the repository is not made of lower-case letters, digits and separators (. _ __ -), parts divided by /",
            ));
        }
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag,
            digest: digest.map(str::to_owned),
        })
    }
}

/// The first part is a registry if it looks like a host: it has a dot or a port, or is `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => match first {
            "index.docker.io" | "registry-1.docker.io" => (DEFAULT_REGISTRY, rest),
            _ => (first, rest),
        },
        _ => (DEFAULT_REGISTRY, name),
    }
}

/// `sha256:` and 64 lower-case hex digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// The distribution specification: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(part: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = part.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(b))
        && !part.contains("..")
        && !part.contains("___")
        && !part.contains("._")
        && !part.contains("_.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_the_defaults_of_docker() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("hello", "docker.io/library/hello:latest".to_owned(), "hello"),
            ("hello:v1", "docker.io/library/hello:v1".to_owned(), "hello"),
            ("library/hello:v1", "docker.io/library/hello:v1".to_owned(), "hello"),
            ("team/hello", "docker.io/team/hello:latest".to_owned(), "team/hello"),
            ("index.docker.io/team/hello", "docker.io/team/hello:latest".to_owned(), "team/hello"),
            ("localhost/hello", "localhost/hello:latest".to_owned(), "hello"),
            ("127.0.0.1:6443/a/b/c:x", "127.0.0.1:6443/a/b/c:x".to_owned(), "a/b/c"),
            (&format!("ghcr.io/a/b@{digest}"), format!("ghcr.io/a/b@{digest}"), "a/b"),
            (&format!("a:v1@{digest}"), format!("docker.io/library/a:v1@{digest}"), "a"),
        ];
        for (given, whole, mirror) in table {
            let parsed: Reference = given.parse().unwrap();
            assert_eq!(parsed.to_string(), whole, "{given}");
            assert_eq!(parsed.mirror_repository(), mirror, "{given}");
            let again: Reference = whole.parse().unwrap();
            assert_eq!(again.to_string(), whole, "{given}");
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        let long = "a".repeat(600);
        for (given, word) in [
            ("", "empty"),
            (long.as_str(), "longer"),
            ("Hello", "repository"),
            ("a//b", "repository"),
            ("a/../b", "repository"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a@sha256:12", "digest"),
            ("a@md5:12", "digest"),
            ("ex ample.com/a", "registry"),
            ("a b", "repository"),
        ] {
            let error = given.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(word), "{given:?}: {error}");
        }
    }
}
