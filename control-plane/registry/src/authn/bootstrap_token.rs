//! Bootstrap tokens: Secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, whose text `<id>.<secret>` lets a new
//! node ask for its certificate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::meta;
use coracle_api::time;
use coracle_apiserver::authn::TokenAuthenticator;
use coracle_apiserver::{Objects, UserInfo};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::value::text;

/// The type of these Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The group of every such user.
pub const GROUP: &str = "system:bootstrappers";
/// What further groups must begin with.
const GROUP_PREFIX: &str = "system:bootstrappers:";

/// Knows bootstrap tokens.
pub struct BootstrapTokens {
    objects: Objects,
}

impl BootstrapTokens {
    /// The tokens among these objects.
    pub fn new(objects: Objects) -> Self {
        Self { objects }
    }
}

/// Id and secret of a token: 6 and 16 lower-case letters and digits.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let good =
        |part: &str, len| part.len() == len && part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    (good(id, 6) && good(secret, 16)).then_some((id, secret))
}

/// One entry of a Secret's data.
pub fn data(secret: &Value, key: &str) -> Option<String> {
    let encoded = secret.get("data")?.get(key)?.as_str()?;
    String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
}

/// The user of a Secret, if it is one that may authenticate with this id and secret at this time.
fn user_of(stored: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let same = |a: &str, b: &str| Sha256::digest(a) == Sha256::digest(b);
    let usable = text(stored, "/type") == SECRET_TYPE
        && meta::deletion_timestamp(stored).is_none()
        && data(stored, "token-id").as_deref() == Some(id)
        && data(stored, "token-secret").is_some_and(|s| same(&s, secret))
        && data(stored, "usage-bootstrap-authentication").as_deref() == Some("true");
    let expired = match data(stored, "expiration").filter(|e| !e.is_empty()) {
        Some(at) => time::parse(&at).is_none_or(|at| at <= now),
        None => false,
    };
    if !usable || expired {
        return None;
    }
    let extra = data(stored, "auth-extra-groups").unwrap_or_default();
    let extra: Vec<&str> = extra.split(',').filter(|g| !g.is_empty()).collect();
    if !extra.iter().all(|group| group.starts_with(GROUP_PREFIX)) {
        return None;
    }
    let groups: Vec<&str> = [GROUP].into_iter().chain(extra).collect();
    Some(UserInfo::new(&format!("system:bootstrap:{id}"), &groups))
}

#[async_trait::async_trait]
impl TokenAuthenticator for BootstrapTokens {
    async fn authenticate(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = parse(token)?;
        let name = format!("bootstrap-token-{id}");
        let stored = self.objects.get("", "secrets", Some("kube-system"), &name).await.ok()??;
        user_of(&stored, id, secret, Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(changes: &[(&str, &str)]) -> Value {
        let mut data: std::collections::BTreeMap<&str, &str> = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
        ]
        .into();
        data.extend(changes.iter().copied());
        let data: Value =
            data.into_iter().map(|(k, v)| (k.to_owned(), Value::from(STANDARD.encode(v)))).collect();
        json!({"type": SECRET_TYPE, "metadata": {}, "data": data})
    }

    #[test]
    fn who_may() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let ask = |changes: &[(&str, &str)], secret: &str| {
            user_of(&stored(changes), "abcdef", secret, now).map(|u| u.groups)
        };
        let good = "0123456789abcdef";
        assert_eq!(ask(&[], good), Some(vec![GROUP.into(), "system:authenticated".into()]));
        assert_eq!(ask(&[], "0123456789abcdee"), None);
        assert_eq!(ask(&[("expiration", "2025-12-31T00:00:00Z")], good), None);
        assert_eq!(ask(&[("expiration", "soon")], good), None);
        assert!(ask(&[("expiration", "2026-01-02T00:00:00Z")], good).is_some());
        assert_eq!(ask(&[("usage-bootstrap-authentication", "false")], good), None);
        assert_eq!(ask(&[("auth-extra-groups", "system:masters")], good), None);
        let more = ask(&[("auth-extra-groups", "system:bootstrappers:coracle")], good);
        assert!(more.is_some_and(|g| g.contains(&"system:bootstrappers:coracle".to_owned())));
        assert_eq!(parse("abcdef.0123456789abcdeF"), None);
    }
}
