//! Who a token stands for: tokens of service accounts, and the tokens with which a node joins.

pub mod bootstrap_token;
pub mod discovery;
pub mod image_token;
pub mod oidc;
pub mod service_account;
pub mod token_file;
pub mod webhook_token;

use std::net::IpAddr;
use std::sync::Arc;

use coracle_apiserver::authn::{TokenAuthenticator, TokenKey, TokenList};
use coracle_apiserver::{Objects, PlainStrategy, ResourceDef, UserInfo};
use coracle_store::Store;

use crate::options::{OptionsError, RegistryOptions};

pub use service_account::ServiceAccountTokens;

/// The issuer of tokens of service accounts, and their audience where nobody asks for another.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Everything that can tell whose a token is; TokenReview asks it.
#[derive(Clone)]
pub struct Tokens {
    /// Tokens that this cluster signed.
    pub service_accounts: Arc<ServiceAccountTokens>,
    /// Signs.
    pub key: Arc<TokenKey>,
    /// Tokens that are looked up, or that this cluster signed for other ends.
    pub others: Vec<Arc<dyn TokenAuthenticator>>,
    /// Who else knows tokens. They are asked last, so that they see none of this cluster's own that are good.
    pub outside: Vec<Arc<dyn TokenAuthenticator>>,
}

impl Tokens {
    /// The tokens of a cluster whose objects are in `store`.
    ///
    /// # Errors
    /// No key, and none can be made.
    pub fn new(options: &RegistryOptions, store: &Store) -> Result<Self, OptionsError> {
        let key = match &options.token_key {
            Some(key) => key.clone(),
            None => Arc::new(TokenKey::generate().map_err(OptionsError::TokenKey)?),
        };
        let objects = objects(store);
        Ok(Self {
            service_accounts: Arc::new(ServiceAccountTokens::new(key.clone(), objects.clone())),
            key: key.clone(),
            others: vec![
                Arc::new(TokenList::new(options.fixed_tokens.iter().cloned())),
                Arc::new(bootstrap_token::BootstrapTokens::new(objects.clone())),
                Arc::new(image_token::ImageTokens::new(key, objects)),
            ],
            outside: options.authenticators.clone(),
        })
    }

    /// Everyone who may know a token, in the order in which they are asked.
    pub fn authenticators(&self) -> Vec<Arc<dyn TokenAuthenticator>> {
        let mut all = self.others.clone();
        all.push(self.service_accounts.clone());
        all.extend(self.outside.iter().cloned());
        all
    }

    /// The pages that go with tokens. `server` is where the API server listens.
    pub fn mounts(&self, server: (IpAddr, u16)) -> Vec<(&'static str, axum::Router)> {
        let mut mounts = Vec::from(discovery::mounts(&self.key.key_set(), server));
        mounts.push(image_token::mount(self.key.clone()));
        mounts
    }

    /// The user of a token and those of the audiences that it is meant for; no audiences means the API server.
    pub async fn review(&self, token: &str, audiences: &[&str]) -> Option<(UserInfo, Vec<String>)> {
        if let Some(found) = self.service_accounts.verify(token, audiences).await {
            return Some(found);
        }
        // The others are meant for the API server alone.
        if !audiences.is_empty() && !audiences.contains(&ISSUER) {
            return None;
        }
        for other in self.others.iter().chain(&self.outside) {
            if let Some(user) = other.authenticate(token).await {
                return Some((user, vec![ISSUER.to_owned()]));
            }
        }
        None
    }
}

/// Reads of what tokens are made from. Whole strategies are not needed for that.
fn objects(store: &Store) -> Objects {
    let def = |kind: &str, plural: &str| {
        Arc::new(ResourceDef::new("", "v1", kind, plural, Arc::new(PlainStrategy)))
    };
    let node = ResourceDef::new("", "v1", "Node", "nodes", Arc::new(PlainStrategy)).cluster_scoped();
    let resources = vec![
        def("Pod", "pods"),
        def("Secret", "secrets"),
        def("ServiceAccount", "serviceaccounts"),
        Arc::new(node),
    ];
    Objects::new(Arc::new(store.clone()), resources)
}
