//! OpenID Connect: tokens that somebody else's provider issued.

mod configuration;
mod keys;
mod mapping;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_apiserver::UserInfo;
use coracle_apiserver::authn::TokenAuthenticator;
use coracle_apiserver::authn::https::Https;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::Value;

pub use configuration::{Configuration, Flags, from_file};
pub use mapping::{Claim, Mapping};

use keys::Keys;

/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 32 << 10;
/// How far clocks may be apart, in seconds.
const LEEWAY: u64 = 10;
/// Algorithms of keys that are public.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::EdDSA,
];

/// Who issues tokens, and what of them counts.
pub struct Issuer {
    /// The claim `iss`; an HTTPS URL.
    pub url: String,
    /// Where its configuration is, if not below `url`.
    pub discovery_url: Option<String>,
    /// Certificates (PEM) that its server's is checked against; empty for those of the system.
    pub ca: Vec<u8>,
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// Accepted signatures; empty for [`ALGORITHMS`].
    pub algorithms: Vec<Algorithm>,
    /// Who a token's bearer is.
    pub mapping: Mapping,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("authentication: {0}")]
pub struct Error(pub String);

/// Tokens of one issuer.
pub struct Oidc {
    issuer: Issuer,
    keys: Keys,
}

impl Oidc {
    /// Tokens of an issuer. It is first asked when the first token comes.
    ///
    /// # Errors
    /// A URL that is not HTTPS, no audience, certificates that cannot be read.
    pub fn new(issuer: Issuer) -> Result<Self, Error> {
        if !issuer.url.starts_with("https://") {
            return Err(Error(format!("the issuer {:?} is no HTTPS URL", issuer.url)));
        }
        if issuer.audiences.is_empty() {
            return Err(Error(format!("the issuer {} has no audience (client id)", issuer.url)));
        }
        let https = Https::new(&issuer.ca, None, None).map_err(|e| Error(format!("{}: {e}", issuer.url)))?;
        let well_known = format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'));
        let discovery = issuer.discovery_url.clone().unwrap_or(well_known);
        Ok(Self { keys: Keys::new(https, issuer.url.clone(), discovery), issuer })
    }

    /// The claims of a token that the issuer signed, that is valid now and meant for this cluster; else why not.
    async fn claims(&self, token: &str) -> Result<Value, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| e.to_string())?;
        let allowed: &[Algorithm] =
            if self.issuer.algorithms.is_empty() { &ALGORITHMS } else { &self.issuer.algorithms };
        if !allowed.contains(&header.alg) {
            return Err(format!("{:?} is no algorithm that is accepted", header.alg));
        }
        let key = self.keys.find(header.kid.as_deref()).await?;
        let mut rules = Validation::new(header.alg);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        rules.set_issuer(&[&self.issuer.url]);
        rules.set_audience(&self.issuer.audiences);
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
        let read = jsonwebtoken::decode::<Value>(token, &key, &rules);
        read.map(|data| data.claims).map_err(|e| e.to_string())
    }
}

/// The issuer that a token names, unchecked.
fn issuer_of(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

#[async_trait::async_trait]
impl TokenAuthenticator for Oidc {
    async fn authenticate(&self, token: &str) -> Option<UserInfo> {
        if token.len() > MAX_TOKEN || token.split('.').count() != 3 {
            return None;
        }
        if issuer_of(token)? != self.issuer.url {
            return None;
        }
        let user = match self.claims(token).await {
            Ok(claims) => self.issuer.mapping.user(&claims),
            Err(why) => Err(why),
        };
        user.inspect_err(|why| tracing::debug!(issuer = self.issuer.url, why, "a token is refused")).ok()
    }
}
