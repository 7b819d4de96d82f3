//! Tokens with which a node that joined pulls images: the password of the built-in registry, and good for nothing else.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use coracle_apiserver::authn::{TokenAuthenticator, TokenKey};
use coracle_apiserver::{Objects, UserInfo};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ISSUER;
use crate::authz::node::node_of;

/// Where a node asks for one.
pub const PATH: &str = "/image-token";
/// The group of those who show such a token.
pub const GROUP: &str = "coracle:image-pullers";
const AUDIENCE: &str = "images.coracle.dev";
/// As long as the certificate with which it is asked for, in seconds.
const LIFE: i64 = 365 * 24 * 3600;

#[derive(Clone, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    node: String,
}

/// Knows these tokens; they end with the Node.
pub struct ImageTokens {
    key: Arc<TokenKey>,
    objects: Objects,
}

impl ImageTokens {
    /// Tokens under `key`, for the nodes among `objects`.
    pub fn new(key: Arc<TokenKey>, objects: Objects) -> Self {
        Self { key, objects }
    }
}

#[async_trait::async_trait]
impl TokenAuthenticator for ImageTokens {
    async fn authenticate(&self, token: &str) -> Option<UserInfo> {
        if token.split('.').count() != 3 {
            return None;
        }
        let claims: Claims = self.key.verify(token, ISSUER, &[AUDIENCE])?;
        self.objects.get("", "nodes", None, &claims.node).await.ok()??;
        Some(UserInfo::new(&claims.sub, &[GROUP]))
    }
}

/// The page that gives a node its token.
pub fn mount(key: Arc<TokenKey>) -> (&'static str, Router) {
    let give = move |Extension(user): Extension<UserInfo>| async move { answer(&key, &user) };
    (PATH, Router::new().route(PATH, get(give)))
}

fn answer(key: &TokenKey, user: &UserInfo) -> Response {
    let Some(node) = node_of(user) else {
        return (StatusCode::FORBIDDEN, "only nodes get a token to pull images\n").into_response();
    };
    let now = Timestamp::now().as_second();
    let claims = Claims {
        iss: ISSUER.into(),
        sub: format!("coracle:image-puller:{node}"),
        aud: AUDIENCE.into(),
        iat: now,
        nbf: now,
        exp: now + LIFE,
        node: node.to_owned(),
    };
    match key.sign(&claims) {
        Ok(token) => Json(json!({ "token": token })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_apiserver::{PlainStrategy, ResourceDef};
    use coracle_store::{Options, Store, Txn, Value};

    #[tokio::test]
    async fn a_token_is_good_while_its_node_is_there() {
        let store = Store::in_memory(&Options::new("unused"));
        let nodes = ResourceDef::new("", "v1", "Node", "nodes", Arc::new(PlainStrategy)).cluster_scoped();
        let key = Arc::new(TokenKey::generate().unwrap());
        let tokens = ImageTokens::new(key.clone(), Objects::new(Arc::new(store.clone()), vec![nodes.into()]));
        let given = answer(&key, &UserInfo::new("system:node:n", &["system:nodes"]));
        let body = axum::body::to_bytes(given.into_body(), 1 << 16).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let token = body["token"].as_str().unwrap();
        assert_eq!(tokens.authenticate(token).await, None);
        let node =
            Value::raw(json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}}).to_string());
        store.txn(Txn::put("/registry/core/nodes/n".into(), node)).await.unwrap();
        assert!(tokens.authenticate(token).await.is_some_and(|user| user.in_group(GROUP)));
        assert_eq!(answer(&key, &UserInfo::new("jane", &[])).status(), StatusCode::FORBIDDEN);
    }
}
