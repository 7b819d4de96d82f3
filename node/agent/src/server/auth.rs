//! Who calls the node API and what they may, as with the kubelet: a certificate of the cluster or a token, which the API
//! server reviews (TokenReview), and rights on subresources of the node (SubjectAccessReview). What it said is remembered for
//! a while, within bounds.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::time::{Duration, Instant};

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// How long it holds whose a token is.
const KNOWN: Duration = Duration::from_secs(120);
/// How long it holds that something is allowed.
const ALLOWED: Duration = Duration::from_secs(300);
/// How long it holds that something is denied, or that a token is nobody's.
const DENIED: Duration = Duration::from_secs(30);
/// Answers of each kind that are remembered.
const MAX_REMEMBERED: usize = 1024;
/// How long the API server may take.
const REVIEW: Duration = Duration::from_secs(10);

/// A client that showed a certificate.
#[derive(Clone, Debug)]
pub struct Certified {
    /// Who it is.
    pub user: UserInfo,
    /// The API server, or an administrator: they may all, also where nobody can be asked.
    pub trusted: bool,
}

/// Answers, each for its time.
struct Remembered<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    fn get(&self, key: &K, now: Instant) -> Option<V> {
        self.0.lock().get(key).filter(|(_, until)| now < *until).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, until: Instant, now: Instant) {
        let mut all = self.0.lock();
        if all.len() >= MAX_REMEMBERED {
            all.retain(|_, (_, until)| now < *until);
        }
        if all.len() >= MAX_REMEMBERED {
            all.clear();
        }
        all.insert(key, (value, until));
    }
}

/// A user, a verb and a subresource.
type Question = (String, &'static str, &'static str);

/// Asks the API server.
pub struct Auth {
    client: kube::Client,
    node: String,
    /// By the token's hash; `None`: nobody's.
    tokens: Remembered<[u8; 32], Option<UserInfo>>,
    rights: Remembered<Question, bool>,
}

/// The verb that a method stands for.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The subresources of the node of which one has to be allowed (KEP-2862).
fn subresources(path: &str) -> Vec<&'static str> {
    let below =
        |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let find = |table: &[(&str, &'static str)]| {
        table.iter().find(|(folder, _)| below(folder)).map(|(_, name)| *name)
    };
    let fine = find(&[
        ("/pods", "pods"),
        ("/runningpods", "pods"),
        ("/healthz", "healthz"),
        ("/configz", "configz"),
    ]);
    let coarse = find(&[
        ("/stats", "stats"),
        ("/metrics", "metrics"),
        ("/logs", "log"),
        ("/checkpoint", "checkpoint"),
    ]);
    fine.into_iter().chain([coarse.unwrap_or("proxy")]).collect()
}

impl Auth {
    /// For the node of that name.
    pub fn new(client: kube::Client, node: String) -> Self {
        let (tokens, rights) = (Remembered(Mutex::default()), Remembered(Mutex::default()));
        Self { client, node, tokens, rights }
    }

    /// Whether a request may go on; otherwise the answer.
    ///
    /// # Errors
    /// 401 for who is not known, 403 for what is not allowed, 500 where the API server cannot be asked.
    pub async fn check(
        &self,
        certified: Option<&Certified>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Response> {
        let user = match certified {
            Some(known) if known.trusted => return Ok(()),
            Some(known) => known.user.clone(),
            None => self
                .whose(headers)
                .await
                .ok_or_else(|| (StatusCode::UNAUTHORIZED, "Unauthorized\n").into_response())?,
        };
        let name = user.username.clone().unwrap_or_default();
        let (verb, subresources) = (verb(method), subresources(path));
        for subresource in &subresources {
            match self.may(&user, verb, subresource).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(user = name, verb, subresource, %error, "a caller of the node API could not be judged");
                    let words = format!(
                        "Authorization error (user={name}, verb={verb}, resource=nodes, subresource={subresource})\n"
                    );
                    return Err((StatusCode::INTERNAL_SERVER_ERROR, words).into_response());
                }
            }
        }
        let words = format!(
            "Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            subresources.join(" ")
        );
        Err((StatusCode::FORBIDDEN, words).into_response())
    }

    async fn whose(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return None;
        }
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key, Instant::now()) {
            return known;
        }
        let spec = TokenReviewSpec { token: token.to_owned(), ..Default::default() };
        let review = TokenReview { spec, ..Default::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = match timely(api.create(&PostParams::default(), &review)).await {
            Ok(reviewed) => reviewed.status.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error, "a token shown to the node API could not be reviewed");
                return None;
            }
        };
        let user = reviewed.user.filter(|_| reviewed.authenticated == Some(true));
        let now = Instant::now();
        let holds = if user.is_some() { KNOWN } else { DENIED };
        self.tokens.put(key, user.clone(), now + holds, now);
        user
    }

    async fn may(
        &self,
        user: &UserInfo,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, String> {
        // All that is known of a user decides, not the name alone.
        let who = serde_json::to_string(user).map_err(|e| e.to_string())?;
        let key = (who, verb, subresource);
        if let Some(known) = self.rights.get(&key, Instant::now()) {
            return Ok(known);
        }
        let text = |text: &str| Some(text.to_owned());
        let spec = SubjectAccessReviewSpec {
            user: user.username.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                verb: text(verb),
                version: text("v1"),
                resource: text("nodes"),
                subresource: text(subresource),
                name: Some(self.node.clone()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let review = SubjectAccessReview { spec, ..Default::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let reviewed = timely(api.create(&PostParams::default(), &review)).await?;
        let allowed = reviewed.status.is_some_and(|status| status.allowed);
        let now = Instant::now();
        self.rights.put(key, allowed, now + if allowed { ALLOWED } else { DENIED }, now);
        Ok(allowed)
    }
}

async fn timely<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(REVIEW, asked).await {
        Ok(answer) => answer.map_err(|e| e.to_string()),
        Err(_) => Err(format!("the API server did not answer within {REVIEW:?}")),
    }
}

#[cfg(test)]
mod tests;
