//! Signed tokens of this cluster (JSON web tokens, RFC 7519): one ES256 key, kept in a file that all members share.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ca::Error;

/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 10;

/// The key that signs tokens, and that tokens are checked against.
pub struct TokenKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
    id: String,
    /// The point of the public key, base64url.
    x: String,
    y: String,
}

impl TokenKey {
    /// The key in a file (PKCS #8, PEM), made there if it is missing.
    ///
    /// # Errors
    /// A file that cannot be read or written, or that holds something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        match std::fs::read_to_string(path) {
            Ok(pem) => Self::from_pair(&KeyPair::from_pem(&pem).map_err(wrong)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let pair = KeyPair::generate().map_err(wrong)?;
                crate::ca::write_file(path, &pair.serialize_pem(), 0o600)?;
                Self::from_pair(&pair)
            }
            Err(source) => Err(Error::File { path: path.into(), source }),
        }
    }

    /// A key that is kept nowhere.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> Result<Self, Error> {
        Self::from_pair(&KeyPair::generate().map_err(wrong)?)
    }

    fn from_pair(pair: &KeyPair) -> Result<Self, Error> {
        // An uncompressed point: 4, x, y.
        let point = pair.der_bytes();
        let (Some(x), Some(y), 65) = (point.get(1..33), point.get(33..65), point.len()) else {
            return Err(wrong("the key is not of curve P-256"));
        };
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        Ok(Self {
            encoding: EncodingKey::from_ec_der(pair.serialized_der()),
            decoding: DecodingKey::from_ec_components(&x, &y).map_err(wrong)?,
            id: URL_SAFE_NO_PAD.encode(Sha256::digest(pair.subject_public_key_info())),
            x,
            y,
        })
    }

    /// A token that makes these claims.
    ///
    /// # Errors
    /// Claims that are no JSON object.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, Error> {
        let header = Header { kid: Some(self.id.clone()), typ: None, ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(wrong)
    }

    /// The claims of a token that this key signed, by this issuer, for one of these audiences (any, if none is given),
    /// and that is valid now.
    pub fn verify<T: DeserializeOwned + Clone>(
        &self,
        token: &str,
        issuer: &str,
        audiences: &[&str],
    ) -> Option<T> {
        let mut rules = Validation::new(Algorithm::ES256);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        rules.set_issuer(&[issuer]);
        rules.set_required_spec_claims(&["exp", "iss", "sub"]);
        match audiences {
            [] => rules.validate_aud = false,
            some => rules.set_audience(some),
        }
        jsonwebtoken::decode(token, &self.decoding, &rules).ok().map(|data| data.claims)
    }

    /// The public key as a JSON web key set (RFC 7517).
    pub fn key_set(&self) -> Value {
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": self.x, "y": self.y,
        }]})
    }
}

fn wrong(reason: impl std::fmt::Display) -> Error {
    Error::Certificate { subject: "service account tokens".into(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sa.key");
        let key = TokenKey::open(&path).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let claims = |exp: i64| json!({"iss": "me", "sub": "s", "aud": ["a", "b"], "exp": exp, "nbf": now});
        let token = key.sign(&claims(now + 100)).unwrap();
        let again = TokenKey::open(&path).unwrap();
        assert_eq!(again.verify::<Value>(&token, "me", &["b"]), Some(claims(now + 100)));
        assert!(again.verify::<Value>(&token, "me", &[]).is_some());
        assert!(again.verify::<Value>(&token, "me", &["c"]).is_none());
        assert!(again.verify::<Value>(&token, "you", &["b"]).is_none());
        assert!(TokenKey::generate().unwrap().verify::<Value>(&token, "me", &["b"]).is_none());
        let old = key.sign(&claims(now - 100)).unwrap();
        assert!(key.verify::<Value>(&old, "me", &["b"]).is_none());
        assert_eq!(key.key_set(), again.key_set());
    }
}
