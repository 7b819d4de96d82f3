//! Tokens of service accounts: what they claim, and whether the objects that they are bound to are still there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coracle_api::meta;
use coracle_api::time;
use coracle_apiserver::authn::{TokenAuthenticator, TokenKey};
use coracle_apiserver::{Objects, UserInfo};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::ISSUER;

/// A pod's token is good for so long after the pod's own end, in seconds.
const AFTER_DELETION: i64 = 60;
/// Most tokens whose check is remembered.
const MAX_KEPT: usize = 4096;
/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// An object that a token names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its uid; the token ends with the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// What Kubernetes claims beyond the registered names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// Namespace of everything below.
    pub namespace: String,
    /// The pod's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Named>,
    /// The pod that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Named>,
    /// The Secret that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Named>,
    /// The account.
    pub serviceaccount: Named,
}

/// The claims of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// End, in Unix seconds.
    pub exp: i64,
    /// When it was issued.
    pub iat: i64,
    /// The issuer.
    pub iss: String,
    /// The token's own id.
    pub jti: String,
    /// The rest.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    /// Not valid before.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
}

/// A token that was checked, and the versions of the objects that it was checked against.
struct Kept {
    claims: Claims,
    versions: Vec<(String, u64)>,
}

/// Issues and checks tokens of service accounts.
pub struct ServiceAccountTokens {
    key: Arc<TokenKey>,
    objects: Objects,
    kept: Mutex<HashMap<[u8; 32], Kept>>,
}

impl ServiceAccountTokens {
    /// Tokens under `key` for the accounts among `objects`.
    pub fn new(key: Arc<TokenKey>, objects: Objects) -> Self {
        Self { key, objects, kept: Mutex::default() }
    }

    /// The key.
    pub fn key(&self) -> &TokenKey {
        &self.key
    }

    /// The user that a valid token stands for, and those of `audiences` that it is meant for; none means the API server.
    pub async fn verify(&self, token: &str, audiences: &[&str]) -> Option<(UserInfo, Vec<String>)> {
        if token.len() > MAX_TOKEN || token.split('.').count() != 3 {
            return None;
        }
        let wanted = if audiences.is_empty() { &[ISSUER][..] } else { audiences };
        let claims = self.current(token).await?;
        let meant: Vec<String> = wanted
            .iter()
            .filter(|wanted| claims.aud.iter().any(|a| a == **wanted))
            .map(|a| (*a).to_owned())
            .collect();
        (!meant.is_empty()).then(|| (user_of(&claims), meant))
    }

    /// The claims of a token that is valid now.
    async fn current(&self, token: &str) -> Option<Claims> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let now = Timestamp::now().as_second();
        if let Some(kept) = self.kept.lock().get(&digest)
            && kept.claims.exp > now
            && kept.versions.iter().all(|(key, version)| self.version(key) == Some(*version))
        {
            return Some(kept.claims.clone());
        }
        let claims: Claims = self.key.verify(token, ISSUER, &[])?;
        let versions = self.bound(&claims, now).await?;
        let mut all = self.kept.lock();
        if all.len() >= MAX_KEPT {
            all.clear();
        }
        // A pod that is going takes its token along a moment later: that must be looked at again.
        if versions.iter().all(|(_, version)| *version > 0) {
            all.insert(digest, Kept { claims: claims.clone(), versions });
        } else {
            all.remove(&digest);
        }
        Some(claims)
    }

    fn version(&self, key: &str) -> Option<u64> {
        self.objects.store().get(key.as_bytes()).map(|kv| kv.mod_revision)
    }

    /// The objects that a token depends on with their versions (0 for one that is going); `None` if one is gone.
    async fn bound(&self, claims: &Claims, now: i64) -> Option<Vec<(String, u64)>> {
        let private = &claims.kubernetes;
        let account = Some(("serviceaccounts", &private.serviceaccount));
        let pod = private.pod.as_ref().map(|p| ("pods", p));
        let secret = private.secret.as_ref().map(|s| ("secrets", s));
        let mut versions = Vec::new();
        for (plural, named) in [account, pod, secret].into_iter().flatten() {
            let def = self.objects.resource("", plural)?;
            let key = def.key(Some(&private.namespace), &named.name);
            let version = self.version(&key)?;
            let found = self.objects.get("", plural, Some(&private.namespace), &named.name).await.ok()??;
            if meta::uid(&found) != Some(named.uid.as_str()) {
                return None;
            }
            let going = meta::deletion_timestamp(&found).and_then(time::parse);
            if going.is_some_and(|at| at.as_second() + AFTER_DELETION < now) {
                return None;
            }
            versions.push((key, if going.is_some() { 0 } else { version }));
        }
        Some(versions)
    }
}

/// The user of a token.
fn user_of(claims: &Claims) -> UserInfo {
    let private = &claims.kubernetes;
    let mut user = account(&private.namespace, &private.serviceaccount.name);
    user.uid.clone_from(&private.serviceaccount.uid);
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    add("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &private.pod {
        add("pod-name", &pod.name);
        add("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        add("node-name", &node.name);
        add("node-uid", &node.uid);
    }
    user.extra = extra;
    user
}

/// The user that a service account is.
pub fn account(namespace: &str, name: &str) -> UserInfo {
    UserInfo::new(
        &format!("system:serviceaccount:{namespace}:{name}"),
        &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
    )
}

/// Namespace and name of the account that a user name means.
pub fn parse_user(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?
        .split_once(':')
        .filter(|(n, a)| !n.is_empty() && !a.is_empty())
}

#[async_trait::async_trait]
impl TokenAuthenticator for ServiceAccountTokens {
    async fn authenticate(&self, token: &str) -> Option<UserInfo> {
        self.verify(token, &[]).await.map(|(user, _)| user)
    }
}

/// A uid, or empty.
pub(crate) fn uid(obj: &Value) -> String {
    meta::uid(obj).unwrap_or_default().to_owned()
}
