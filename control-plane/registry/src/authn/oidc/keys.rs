//! The keys of an issuer, fetched when they are needed and kept.

use std::time::{Duration, Instant};

use coracle_apiserver::authn::https::Https;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use serde_json::Value;
use tokio::sync::Mutex;

/// A key that is not known is asked for again after this time at the earliest.
const RETRY: Duration = Duration::from_secs(5);
/// Keys that are older are fetched again: one may have been revoked.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// Most keys of an issuer.
const KEYS_MAX: usize = 64;

/// The keys of one issuer.
pub struct Keys {
    https: Https,
    issuer: String,
    discovery: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    keys: Vec<Jwk>,
    fetched: Option<Instant>,
    failed: String,
}

impl Keys {
    /// The keys of `issuer`, which are found through the document at `discovery`.
    pub fn new(https: Https, issuer: String, discovery: String) -> Self {
        Self { https, issuer, discovery, known: Mutex::default() }
    }

    /// The key of this id; without one the only key.
    ///
    /// # Errors
    /// In words: there is none, or the issuer does not answer.
    pub async fn find(&self, id: Option<&str>) -> Result<DecodingKey, String> {
        // Held while the issuer is asked, so that it is asked once.
        let mut known = self.known.lock().await;
        let age = known.fetched.map(|at| at.elapsed());
        let mut found = pick(&known.keys, id);
        if age.is_none_or(|age| age > AGE_MAX || (found.is_none() && age > RETRY)) {
            known.fetched = Some(Instant::now());
            match self.fetch().await {
                Ok(keys) => *known = Known { keys, fetched: known.fetched, failed: String::new() },
                // Keys that were good a moment ago are better than none.
                Err(why) => known.failed = why,
            }
            found = pick(&known.keys, id);
        }
        match found {
            Some(key) => DecodingKey::from_jwk(key).map_err(|e| e.to_string()),
            None if known.failed.is_empty() => {
                Err(format!("the issuer has no key {:?}", id.unwrap_or_default()))
            }
            None => Err(known.failed.clone()),
        }
    }

    async fn fetch(&self) -> Result<Vec<Jwk>, String> {
        let document = self.https.get(&self.discovery).await?;
        let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("issuer") != self.issuer {
            return Err(format!("{} is about the issuer {:?}", self.discovery, text("issuer")));
        }
        let set = self.https.get(text("jwks_uri")).await?;
        let mut set: JwkSet =
            serde_json::from_value(set).map_err(|e| format!("{}: {e}", text("jwks_uri")))?;
        set.keys.truncate(KEYS_MAX);
        Ok(set.keys)
    }
}

fn pick<'a>(keys: &'a [Jwk], id: Option<&str>) -> Option<&'a Jwk> {
    match (id, keys) {
        (Some(id), keys) => keys.iter().find(|key| key.common.key_id.as_deref() == Some(id)),
        (None, [only]) => Some(only),
        _ => None,
    }
}
