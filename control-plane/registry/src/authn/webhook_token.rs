//! Tokens that somebody else's server knows: it is sent a TokenReview, as kube-apiserver's
//! `--authentication-token-webhook-config-file` says.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_apiserver::UserInfo;
use coracle_apiserver::authn::TokenAuthenticator;
use coracle_apiserver::authn::https::Https;
use coracle_apiserver::ca::Identity;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ISSUER;
use crate::value::{at, entries, flag, items, text};

/// Most answers that are remembered.
const KEPT_MAX: usize = 4096;
/// The longest token that is sent on, in bytes.
const MAX_TOKEN: usize = 32 << 10;

type Kept = HashMap<[u8; 32], (Instant, Option<UserInfo>)>;

/// A server that knows tokens.
pub struct WebhookTokens {
    https: Https,
    url: String,
    ttl: Duration,
    kept: Mutex<Kept>,
}

impl WebhookTokens {
    /// The server of a kubeconfig's current context; `ttl` is how long its answers are believed.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn new(kubeconfig: &str, ttl: Duration) -> Result<Self, String> {
        let documents = coracle_api::yaml::to_json_documents(kubeconfig).map_err(|e| e.to_string())?;
        let config = documents.first().ok_or("the kubeconfig is empty")?;
        let named = |list: &str, name: &str| {
            items(config, list).iter().find(|o| text(o, "/name") == name).cloned().unwrap_or_default()
        };
        let context = named("/contexts", text(config, "/current-context"));
        let cluster = named("/clusters", text(&context, "/context/cluster"));
        let user = named("/users", text(&context, "/context/user"));
        let url = text(&cluster, "/cluster/server");
        if !url.starts_with("https://") {
            return Err(format!("the server {url:?} of the current context is no HTTPS URL"));
        }
        let ca = material(at(&cluster, "/cluster"), "certificate-authority")?.unwrap_or_default();
        let user = at(&user, "/user");
        let (cert, key) = (material(user, "client-certificate")?, material(user, "client-key")?);
        let identity = cert.zip(key).map(|(cert, key)| Identity {
            cert_pem: String::from_utf8_lossy(&cert).into_owned(),
            key_pem: String::from_utf8_lossy(&key).into_owned(),
        });
        let bearer = Some(text(user, "/token").to_owned()).filter(|t| !t.is_empty());
        let https = Https::new(&ca, identity.as_ref(), bearer)?;
        Ok(Self { https, url: url.to_owned(), ttl, kept: Mutex::default() })
    }

    async fn ask(&self, token: &str) -> Result<Option<UserInfo>, String> {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": [ISSUER]},
        });
        let answer = self.https.post(&self.url, &review).await?;
        let audiences = items(&answer, "/status/audiences");
        if !flag(&answer, "/status/authenticated")
            || (!audiences.is_empty() && !audiences.iter().any(|a| a == ISSUER))
        {
            return Ok(None);
        }
        let groups: Vec<&str> =
            items(&answer, "/status/user/groups").iter().filter_map(Value::as_str).collect();
        let name = text(&answer, "/status/user/username");
        if name.is_empty() {
            return Err("the answer names no user".into());
        }
        let extra: BTreeMap<String, Vec<String>> = entries(&answer, "/status/user/extra")
            .map(|(key, values)| {
                let values = values.as_array().into_iter().flatten().filter_map(Value::as_str);
                (key.clone(), values.map(str::to_owned).collect())
            })
            .collect();
        let uid = text(&answer, "/status/user/uid").to_owned();
        Ok(Some(UserInfo { uid, extra, ..UserInfo::new(name, &groups) }))
    }
}

/// A file, or the same in the kubeconfig itself.
fn material(holder: &Value, field: &str) -> Result<Option<Vec<u8>>, String> {
    let get = |name: &str| holder.get(name).and_then(Value::as_str).unwrap_or_default();
    let data = get(&format!("{field}-data"));
    if !data.is_empty() {
        return STANDARD.decode(data).map(Some).map_err(|e| format!("{field}-data: {e}"));
    }
    match get(field) {
        "" => Ok(None),
        path => std::fs::read(path).map(Some).map_err(|e| format!("read {path}: {e}")),
    }
}

#[async_trait::async_trait]
impl TokenAuthenticator for WebhookTokens {
    async fn authenticate(&self, token: &str) -> Option<UserInfo> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some((at, user)) = self.kept.lock().get(&digest)
            && at.elapsed() < self.ttl
        {
            return user.clone();
        }
        match self.ask(token).await {
            Ok(user) => {
                let mut kept = self.kept.lock();
                if kept.len() >= KEPT_MAX {
                    kept.clear();
                }
                kept.insert(digest, (Instant::now(), user.clone()));
                user
            }
            Err(why) => {
                tracing::warn!(url = self.url, why, "the webhook for tokens does not answer");
                None
            }
        }
    }
}
