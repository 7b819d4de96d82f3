//! Tokens with which nodes join: expired ones are deleted, and `kube-public/cluster-info` is signed with each that may sign
//! it, so that who knows a token can tell that the authority in it is the cluster's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

/// The identity that signs.
pub const SIGNER: &str = "bootstrap-signer";
/// The identity that deletes.
pub const CLEANER: &str = "token-cleaner";

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const CLUSTER_INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
/// How often expiry is looked at, and failures are tried again.
const PERIOD: Duration = Duration::from_secs(10);

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    id: String,
    secret: String,
    signs: bool,
    expired: bool,
}

fn token(secret: &Secret, now: Timestamp) -> Option<Token> {
    let data = secret.data.as_ref()?;
    let text = |key: &str| data.get(key).and_then(|v| String::from_utf8(v.0.clone()).ok());
    let expired = text("expiration")
        .filter(|at| !at.is_empty())
        .is_some_and(|at| at.parse::<Timestamp>().is_ok_and(|at| at <= now));
    Some(Token {
        id: text("token-id")?,
        secret: text("token-secret")?,
        signs: text("usage-bootstrap-signing").as_deref() == Some("true"),
        expired,
    })
}

/// A detached signature (RFC 7515, appendix F) of `content` by a token.
pub fn signature(content: &str, id: &str, secret: &str) -> anyhow::Result<String> {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256)?;
    Ok(format!("{header}..{signature}"))
}

/// What `cluster-info` should hold; `None` where it does already.
fn signed(
    data: &BTreeMap<String, String>,
    tokens: &[Token],
) -> anyhow::Result<Option<BTreeMap<String, String>>> {
    let Some(content) = data.get(KUBECONFIG) else { return Ok(None) };
    let mut new: BTreeMap<String, String> = data
        .iter()
        .filter(|(k, _)| !k.starts_with(SIGNATURE_PREFIX))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for token in tokens.iter().filter(|t| t.signs && !t.expired) {
        new.insert(format!("{SIGNATURE_PREFIX}{}", token.id), signature(content, &token.id, &token.secret)?);
    }
    Ok((new != *data).then_some(new))
}

/// Signs and deletes until `shutdown`.
pub async fn run(signer: Client, cleaner: Client, shutdown: CancellationToken) {
    let secrets: Api<Secret> = Api::namespaced(signer.clone(), "kube-system");
    let config = watcher::Config::default().fields(&format!("type={SECRET_TYPE}"));
    let (store, writer) = reflector::store();
    let changes = watcher(secrets, config).default_backoff().reflect(writer);
    tokio::pin!(changes);
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            change = changes.next() => match change {
                Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => continue,
                Some(Ok(_)) => {}
                Some(Err(error)) => { tracing::debug!(%error, "watching bootstrap tokens"); continue }
                None => return,
            },
            _ = tick.tick() => {}
        }
        if let Err(error) = sync(&signer, &cleaner, &store.state()).await {
            tracing::warn!(error = format!("{error:#}"), "bootstrap tokens");
        }
    }
}

async fn sync(signer: &Client, cleaner: &Client, secrets: &[std::sync::Arc<Secret>]) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let mut tokens = Vec::new();
    for secret in secrets {
        let Some(token) = token(secret, now) else { continue };
        if token.expired {
            let api: Api<Secret> = Api::namespaced(cleaner.clone(), "kube-system");
            match api.delete(&secret.name_any(), &DeleteParams::default()).await {
                Ok(_) => tracing::info!(id = token.id, "an expired bootstrap token is gone"),
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error).context("delete an expired bootstrap token"),
            }
        }
        tokens.push(token);
    }
    tokens.sort_by(|a, b| a.id.cmp(&b.id));
    let maps: Api<ConfigMap> = Api::namespaced(signer.clone(), "kube-public");
    let Some(mut info) = maps.get_opt(CLUSTER_INFO).await.context("read cluster-info")? else {
        return Ok(());
    };
    let Some(data) = signed(&info.data.clone().unwrap_or_default(), &tokens)? else { return Ok(()) };
    info.data = Some(data);
    match maps.replace(CLUSTER_INFO, &PostParams::default(), &info).await {
        // The next round sees what the other wrote.
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
        other => other.map(drop).context("sign cluster-info"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_follow_tokens() {
        let token = |id: &str, signs, expired| Token { id: id.into(), secret: "s".into(), signs, expired };
        let data: BTreeMap<String, String> =
            [("kubeconfig".to_owned(), "k".to_owned()), ("jws-kubeconfig-gone".to_owned(), "x".to_owned())]
                .into();
        let tokens = [token("a", true, false), token("b", false, false), token("c", true, true)];
        let new = signed(&data, &tokens).unwrap().unwrap();
        assert_eq!(new.keys().collect::<Vec<_>>(), ["jws-kubeconfig-a", "kubeconfig"]);
        assert_eq!(signed(&new, &tokens).unwrap(), None);
        let parts: Vec<&str> = new["jws-kubeconfig-a"].split('.').collect();
        assert_eq!((parts.len(), parts[1]), (3, ""));
    }
}
