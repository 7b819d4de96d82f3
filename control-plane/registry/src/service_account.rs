//! ServiceAccount.

use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, Subresource, SubresourceHandler, SubresourceRequest};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

use crate::table;

static COLUMNS: [Column; 2] = [table::NAME, table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    let token = Subresource::handler("token", "TokenRequest", &["create"], Arc::new(Tokens))
        .group_version("authentication.k8s.io", "v1");
    ResourceDef::new("", "v1", "ServiceAccount", "serviceaccounts", Arc::new(ServiceAccount))
        .short_names(&["sa"])
        .subresource(token)
}

struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn has_status(&self) -> bool {
        false
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), table::age(obj, now)]
    }
}

struct Tokens;

#[async_trait::async_trait]
impl SubresourceHandler for Tokens {
    async fn handle(&self, request: SubresourceRequest) -> Result<http::Response<axum::body::Body>, Status> {
        let name = request.context.name.as_deref().unwrap_or_default();
        let namespace = request.context.namespace.as_deref();
        crate::subresource::existing(&request.objects, "", "serviceaccounts", namespace, name).await?;
        Err(Status::new(
            501,
            "NotImplemented",
            "serviceaccounts/token: this server issues no service account tokens yet",
        ))
    }
}
