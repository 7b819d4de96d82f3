//! TokenReview (whose token is this?) and SelfSubjectReview (who am I?).

use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::{ResourceDef, Strategy, StrategyContext, UserInfo};
use serde_json::{Map, Value, json};
use std::sync::Arc;

use crate::authn::Tokens;
use crate::value::{items, set, text};

const GROUP: &str = "authentication.k8s.io";

/// Both resources.
pub fn resources(tokens: &Tokens) -> [ResourceDef; 2] {
    let review = Arc::new(TokenReview { tokens: tokens.clone() });
    [
        ResourceDef::new(GROUP, "v1", "TokenReview", "tokenreviews", review)
            .cluster_scoped()
            .verbs(&["create"]),
        ResourceDef::new(GROUP, "v1", "SelfSubjectReview", "selfsubjectreviews", Arc::new(SelfSubjectReview))
            .cluster_scoped()
            .verbs(&["create"]),
    ]
}

/// A user as the API writes it.
fn user(user: &UserInfo) -> Value {
    let mut out = Map::new();
    out.insert("username".into(), user.name.as_str().into());
    if !user.uid.is_empty() {
        out.insert("uid".into(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        out.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        out.insert("extra".into(), json!(user.extra));
    }
    out.into()
}

struct TokenReview {
    tokens: Tokens,
}

#[async_trait::async_trait]
impl Strategy for TokenReview {
    fn is_review(&self) -> bool {
        true
    }

    async fn answer(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let token = text(obj, "/spec/token");
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences: Vec<&str> = items(obj, "/spec/audiences").iter().filter_map(Value::as_str).collect();
        let status = match self.tokens.review(token, &audiences).await {
            Some((who, audiences)) => {
                json!({"authenticated": true, "user": user(&who), "audiences": audiences})
            }
            None => json!({"user": {}, "error": "invalid bearer token"}),
        };
        set(obj, "status", status);
        Ok(())
    }
}

struct SelfSubjectReview;

#[async_trait::async_trait]
impl Strategy for SelfSubjectReview {
    fn is_review(&self) -> bool {
        true
    }

    async fn answer(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        coracle_api::meta::set_metadata(obj, "creationTimestamp", time::seconds(cx.request.now));
        set(obj, "status", json!({"userInfo": user(&cx.request.user)}));
        Ok(())
    }
}
