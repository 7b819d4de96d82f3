//! Encryption at rest: objects of chosen resources are sealed before they reach the log, a disk or another member.
//!
//! Which resources, and with which keys, a file in the form of Kubernetes' `EncryptionConfiguration` says: the first
//! provider of a resource writes, all of them read, so that a key is changed by putting a new one first. What is sealed
//! has the form that Kubernetes writes to etcd: `k8s:enc:aesgcm:v1:<key>:<nonce><sealed>`.

mod configuration;
mod key;

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use coracle_store::{Range, Seal, Store, Txn};

use configuration::Pattern;
use key::Key;

/// What is wrong with a configuration or its file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It says something that cannot be done.
    #[error("encryption configuration: {0}")]
    Configuration(String),
}

/// Seals values of the store. Made of an `EncryptionConfiguration`.
pub struct Encryption {
    rules: Vec<Rule>,
}

/// Keys are never shown.
impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption").field("rules", &self.rules.len()).finish()
    }
}

/// How some resources are stored.
struct Rule {
    resources: Vec<Pattern>,
    /// `None`: open. The first one writes.
    providers: Vec<Option<Key>>,
}

impl Encryption {
    /// Reads a configuration, YAML or JSON.
    ///
    /// # Errors
    /// [`Error::Configuration`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        configuration::read(text).map(|rules| Self { rules }).map_err(Error::Configuration)
    }

    /// Reads the configuration in a file.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Configuration`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path);
        Self::parse(&text.map_err(|source| Error::File { path: path.to_owned(), source })?)
    }

    /// A new configuration with a key of its own: Secrets are sealed, and what lies open is still read.
    pub fn generate() -> String {
        configuration::generate()
    }

    /// The keys for a key of the store; empty: it is stored as it is.
    fn providers(&self, key: &[u8]) -> &[Option<Key>] {
        let Some((group, plural)) = configuration::resource_of(key) else { return &[] };
        let rule = self.rules.iter().find(|r| r.resources.iter().any(|p| p.matches(group, plural)));
        rule.map_or(&[], |rule| &rule.providers)
    }

    fn writer(&self, key: &[u8]) -> Option<&Key> {
        self.providers(key).first()?.as_ref()
    }
}

/// Writes again what lies otherwise than it would be written now, and forgets how it lay. Returns how many objects it was.
/// With several servers, all must know the new key before one of them writes with it.
///
/// # Errors
/// Those of the store; what was written stays so, and the rest can be tried again.
pub async fn renew(store: &Store) -> Result<usize, coracle_store::Error> {
    let found = store.range(&Range::prefix("/registry/"))?;
    let mut renewed = 0;
    for (i, kv) in found.kvs.iter().enumerate() {
        if i % 1024 == 1023 {
            tokio::task::yield_now().await;
        }
        if !store.is_stale(kv) {
            continue;
        }
        let left = kv.expires_at.map(|at| {
            let now = jiff::Timestamp::now().as_millisecond();
            u64::try_from(at.saturating_sub(now)).unwrap_or(0).max(1)
        });
        let again = Txn::update(kv.key.clone(), kv.mod_revision, kv.value.clone(), left);
        // Who came between has written it as it should be.
        renewed += usize::from(store.txn(again).await?.succeeded);
    }
    if renewed > 0 {
        store.compact(store.revision()).await?;
    }
    Ok(renewed)
}

impl Seal for Encryption {
    fn seal(&self, key: &[u8], plain: &[u8]) -> Result<Option<Bytes>, String> {
        self.writer(key).map(|writer| writer.seal(key, plain)).transpose()
    }

    fn open(&self, key: &[u8], sealed: &[u8]) -> Result<Bytes, String> {
        // A resource that left the configuration is still read with the keys of the others.
        let all = self.rules.iter().flat_map(|rule| &rule.providers).flatten();
        let mut candidates = all.filter(|key| key.sealed(sealed)).peekable();
        if candidates.peek().is_none() {
            return Err("it was encrypted with a key that is not in the encryption configuration".into());
        }
        candidates
            .find_map(|candidate| candidate.open(key, sealed))
            .ok_or_else(|| "it cannot be decrypted with the key of that name".into())
    }

    fn is_stale(&self, key: &[u8], sealed: Option<&[u8]>) -> bool {
        match (self.writer(key), sealed) {
            (Some(writer), Some(sealed)) => !writer.sealed(sealed),
            (writer, sealed) => writer.is_some() != sealed.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"/registry/core/secrets/default/s";
    const MAP: &[u8] = b"/registry/core/configmaps/default/c";

    fn configuration(keys: &str) -> Encryption {
        Encryption::parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets, '*.example.com']\n  providers:\n{keys}"
        ))
        .unwrap()
    }

    fn gcm(name: &str, byte: u8) -> String {
        use base64::Engine;
        let secret = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
        format!("  - aesgcm:\n      keys: [{{name: {name}, secret: {secret}}}]\n")
    }

    const IDENTITY: &str = "  - identity: {}\n";

    #[test]
    fn secrets_are_sealed_and_bound_to_their_key() {
        let e = configuration(&gcm("one", 1));
        let sealed = e.seal(SECRET, b"hunter2").unwrap().unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:one:"));
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(e.open(SECRET, &sealed).unwrap(), "hunter2");
        assert!(e.open(b"/registry/core/secrets/default/other", &sealed).is_err(), "moved to another object");
        let mut damaged = sealed.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(e.open(SECRET, &damaged).is_err());
        assert_eq!(e.seal(MAP, b"open").unwrap(), None);
        assert!(e.seal(b"/registry/example.com/widgets/n/w", b"x").unwrap().is_some());
        assert_eq!(e.seal(b"/coracle/servers/1", b"x").unwrap(), None);
        assert_ne!(e.seal(SECRET, b"hunter2").unwrap().unwrap(), sealed, "nonces differ");
    }

    #[test]
    fn keys_rotate_by_their_order() {
        let old = configuration(&format!("{}{IDENTITY}", gcm("old", 1)));
        let both = configuration(&format!("{}{}{IDENTITY}", gcm("new", 2), gcm("old", 1)));
        let new = configuration(&gcm("new", 2));
        let sealed = old.seal(SECRET, b"hunter2").unwrap().unwrap();
        assert!(!old.is_stale(SECRET, Some(&sealed)));
        assert!(both.is_stale(SECRET, Some(&sealed)) && both.is_stale(SECRET, None));
        assert_eq!(both.open(SECRET, &sealed).unwrap(), "hunter2");
        assert!(new.open(SECRET, &sealed).unwrap_err().contains("not in the encryption configuration"));
        let again = both.seal(SECRET, b"hunter2").unwrap().unwrap();
        assert_eq!(new.open(SECRET, &again).unwrap(), "hunter2");
        let off = configuration(&format!("{IDENTITY}{}", gcm("new", 2)));
        assert!(off.is_stale(SECRET, Some(&again)) && !off.is_stale(SECRET, None));
        assert_eq!(off.open(SECRET, &again).unwrap(), "hunter2");
    }

    #[test]
    fn what_is_generated_is_read_and_bad_ones_are_refused() {
        let text = Encryption::generate();
        let e = Encryption::parse(&text).unwrap();
        assert!(e.seal(SECRET, b"x").unwrap().is_some());
        assert_ne!(text, Encryption::generate());
        for (text, words) in [
            ("", "kind"),
            ("kind: Secret", "kind"),
            (
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: []",
                "resources",
            ),
            (
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: []",
                "providers",
            ),
            (
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - secretbox: {keys: []}",
                "secretbox",
            ),
            (
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - aesgcm: {keys: [{name: a, secret: dG9vc2hvcnQ=}]}",
                "16, 24 or 32",
            ),
            (
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - aesgcm: {keys: [{name: 'a:b', secret: dG9vc2hvcnQ=}]}",
                "name",
            ),
        ] {
            let error = Encryption::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
