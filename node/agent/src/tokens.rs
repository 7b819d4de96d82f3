//! Tokens of service accounts as pods mount them: asked of the API, kept, and asked for anew at 80 % of their life.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Api, Client};
use parking_lot::Mutex;

/// A token asked for without a time lives so long, in seconds.
pub const DEFAULT_SECONDS: i64 = 3600;
/// No token is kept longer than this, in seconds: the kubelet renews after a day.
const MAX_AGE_SECONDS: i64 = 24 * 3600;
/// Tokens that are kept at a time.
const MAX_KEPT: usize = 65_536;

/// What a volume asks for: audience (empty: the API server's own) and seconds.
pub type Wish = (String, i64);

/// Tokens by what was asked for.
pub type Issued = BTreeMap<Wish, String>;

struct Kept {
    token: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// Asks for tokens and keeps them; cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    kept: Arc<Mutex<HashMap<(String, Wish), Kept>>>,
}

/// What the projected volumes of a pod ask for.
pub fn wishes(pod: &Pod) -> Vec<Wish> {
    let volumes = crate::volumes::volumes(pod).iter();
    let sources = volumes.flat_map(|v| v.projected.iter()).flat_map(|p| p.sources.iter().flatten());
    let mut wishes: Vec<Wish> = sources.filter_map(|s| s.service_account_token.as_ref()).map(wish).collect();
    wishes.sort();
    wishes.dedup();
    wishes
}

/// What one source asks for.
pub fn wish(source: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection) -> Wish {
    (source.audience.clone().unwrap_or_default(), source.expiration_seconds.unwrap_or(DEFAULT_SECONDS))
}

/// When a token is asked for anew: at 80 % of its life, and after a day at the latest.
fn renew_at(now: Timestamp, expires_at: Timestamp) -> Timestamp {
    let life = expires_at.as_second().saturating_sub(now.as_second()).max(0);
    let wait = (life.saturating_mul(4) / 5).min(MAX_AGE_SECONDS);
    now.saturating_add(SignedDuration::from_secs(wait)).unwrap_or(expires_at)
}

impl Tokens {
    /// Asks through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, kept: Arc::default() }
    }

    /// The tokens that the volumes of a pod need, valid now. An old one is used on while no new one can be had.
    ///
    /// # Errors
    /// The words of a `FailedMount` Event.
    pub async fn of(&self, pod: &Pod) -> Result<Issued, String> {
        let mut issued = Issued::new();
        for wish in wishes(pod) {
            let (token, _) = self.get(pod, &wish).await?;
            issued.insert(wish, token);
        }
        Ok(issued)
    }

    /// Forgets the tokens of a pod that is no more.
    pub fn forget(&self, uid: &str) {
        self.kept.lock().retain(|(of, _), _| of != uid);
    }

    /// A token for one wish, valid now, and when it ends.
    ///
    /// # Errors
    /// The words of a `FailedMount` Event.
    pub async fn get(&self, pod: &Pod, wish: &Wish) -> Result<(String, Timestamp), String> {
        let key = (pod.metadata.uid.clone().unwrap_or_default(), wish.clone());
        let now = Timestamp::now();
        let old = {
            let kept = self.kept.lock();
            match kept.get(&key) {
                Some(token) if token.renew_at > now => return Ok((token.token.clone(), token.expires_at)),
                Some(token) if token.expires_at > now => Some((token.token.clone(), token.expires_at)),
                _ => None,
            }
        };
        match (self.ask(pod, wish).await, old) {
            (Ok(fresh), _) => {
                let token = (fresh.token.clone(), fresh.expires_at);
                let mut kept = self.kept.lock();
                if kept.len() >= MAX_KEPT {
                    kept.retain(|_, token| token.renew_at > now);
                }
                kept.insert(key, fresh);
                Ok(token)
            }
            (Err(error), Some(old)) => {
                tracing::warn!(pod = pod.metadata.name, error, "the token of a pod could not be renewed yet");
                Ok(old)
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn ask(&self, pod: &Pod, (audience, seconds): &Wish) -> Result<Kept, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
        let account = account.filter(|a| !a.is_empty()).unwrap_or("default");
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.clone()]),
                bound_object_ref: Some(bound),
                expiration_seconds: Some(*seconds),
            }),
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let now = Timestamp::now();
        let answer = api
            .create_token_request(account, &Default::default(), &request)
            .await
            .map_err(|e| format!("failed to fetch token for service account {namespace}/{account}: {e}"))?;
        let status = answer.status.unwrap_or_default();
        let (Some(token), Some(expires_at)) = (status.token, status.expiration_timestamp) else {
            return Err(format!("the API issued no token for service account {namespace}/{account}"));
        };
        Ok(Kept { token, renew_at: renew_at(now, expires_at.0), expires_at: expires_at.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_at_four_fifths_and_daily() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        assert_eq!(renew_at(at(0), at(3607)), at(2885));
        assert_eq!(renew_at(at(0), at(30 * 86_400)), at(86_400));
        assert_eq!(renew_at(at(100), at(50)), at(100));
    }
}
