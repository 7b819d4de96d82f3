//! ServiceAccount.

pub mod token;

use coracle_apiserver::{Column, ResourceDef, Strategy, Subresource};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

use crate::authn::ServiceAccountTokens;
use crate::table;

use token::TokenRequests;

static COLUMNS: [Column; 2] = [table::NAME, table::AGE];

/// The resource.
pub fn resource(tokens: Arc<ServiceAccountTokens>) -> ResourceDef {
    let token =
        Subresource::handler("token", "TokenRequest", &["create"], Arc::new(TokenRequests { tokens }))
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
