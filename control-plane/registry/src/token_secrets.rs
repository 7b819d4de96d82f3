//! Secrets of type `kubernetes.io/service-account-token`: they get the token of the account that they name, and go with it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::Status;
use coracle_api::meta;
use coracle_apiserver::{ApiServer, Follower};
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::authn::service_account::{self, Claims, Named, Private};
use crate::authn::{ISSUER, ServiceAccountTokens};
use crate::bootstrap::call;
use crate::value::{at, object, present, set, text};

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// Such tokens end with their Secret, not by themselves; this is as long as a token can be asked for.
const SECONDS: i64 = (1 << 32) - 1;
/// How long after a failure the objects are looked at again, and after a look at the earliest.
const RETRY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);
/// How long a Secret without an account is kept: the account may be made a moment later.
const PATIENCE: i64 = 30;

/// Fills such Secrets.
pub struct TokenSecrets {
    tokens: Arc<ServiceAccountTokens>,
    ca_pem: Option<String>,
}

impl TokenSecrets {
    /// Tokens of these; `ca_pem` is what lies beside them.
    pub fn new(tokens: Arc<ServiceAccountTokens>, ca_pem: Option<String>) -> Self {
        Self { tokens, ca_pem }
    }

    /// Looks at all such Secrets once; whether one waits for its account.
    async fn look(&self, server: &ApiServer) -> Result<bool, Status> {
        let objects = server.objects();
        let mut waits = false;
        for secret in objects.list("", "secrets", None).await? {
            if text(&secret, "/type") != TYPE || present(&secret, "/metadata/deletionTimestamp") {
                continue;
            }
            let namespace = meta::namespace(&secret).unwrap_or_default();
            let name = meta::name(&secret).unwrap_or_default();
            let account = meta::annotation(&secret, NAME).unwrap_or_default();
            let account = objects.get("", "serviceaccounts", Some(namespace), account).await?;
            let owned = meta::annotation(&secret, UID).unwrap_or_default();
            match account {
                Some(account) if owned.is_empty() || meta::uid(&account) == Some(owned) => {
                    if self.lacks(&secret) {
                        let fill = |secret: &mut Value| self.fill(secret, &account);
                        objects.update("", "secrets", Some(namespace), name, fill).await?;
                    }
                }
                None if owned.is_empty() && is_new(&secret) => waits = true,
                // Its account is gone, or another of the same name.
                _ => {
                    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
                    match call(server, Method::DELETE, &path, None).await {
                        Err(status) if !status.is_not_found() => return Err(status),
                        _ => {}
                    }
                }
            }
        }
        Ok(waits)
    }

    fn lacks(&self, secret: &Value) -> bool {
        let has = |key: &str| !at(secret, "/data").get(key).is_none_or(Value::is_null);
        !has("token") || !has("namespace") || (self.ca_pem.is_some() && !has("ca.crt"))
    }

    fn fill(&self, secret: &mut Value, account: &Value) -> Result<(), Status> {
        let named = |obj: &Value| Named {
            name: meta::name(obj).unwrap_or_default().to_owned(),
            uid: service_account::uid(obj),
        };
        let namespace = meta::namespace(secret).unwrap_or_default().to_owned();
        let now = Timestamp::now().as_second();
        let claims = Claims {
            aud: vec![ISSUER.to_owned()],
            exp: now + SECONDS,
            iat: now,
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: service_account::account(&namespace, &named(account).name).name,
            nbf: now,
            kubernetes: Private {
                namespace: namespace.clone(),
                secret: Some(named(secret)),
                serviceaccount: named(account),
                ..Private::default()
            },
        };
        let token = self.tokens.key().sign(&claims).map_err(Status::internal)?;
        meta::set_annotation(secret, UID, &service_account::uid(account));
        let Some(data) = object(secret, "data") else { return Ok(()) };
        for (key, value) in
            [("token", Some(&token)), ("namespace", Some(&namespace)), ("ca.crt", self.ca_pem.as_ref())]
        {
            if let (Some(value), None | Some(Value::Null)) = (value, data.get(key)) {
                set(data, key, json!(STANDARD.encode(value)));
            }
        }
        Ok(())
    }

    async fn watch(&self, server: &ApiServer) -> Result<(), Status> {
        let store = server.objects().store().clone();
        let open = |plural: &str| store.watch(format!("/registry/core/{plural}/").into(), store.revision());
        let mut secrets = open("secrets").map_err(Status::internal)?;
        let mut accounts = open("serviceaccounts").map_err(Status::internal)?;
        loop {
            let waits = self.look(server).await?;
            let wake = async {
                tokio::select! {
                    event = secrets.next() => event.map(drop),
                    event = accounts.next() => event.map(drop),
                }
            };
            if waits {
                if let Ok(event) = tokio::time::timeout(RETRY, wake).await {
                    event.map_err(Status::internal)?;
                }
            } else {
                wake.await.map_err(Status::internal)?;
            }
            // What comes meanwhile is seen by the same look.
            tokio::time::sleep(PAUSE).await;
            while let Ok(Some(_)) = secrets.try_next() {}
            while let Ok(Some(_)) = accounts.try_next() {}
        }
    }
}

fn is_new(secret: &Value) -> bool {
    let made = meta::creation_timestamp(secret).and_then(coracle_api::time::parse);
    made.is_some_and(|at| Timestamp::now().as_second() - at.as_second() < PATIENCE)
}

#[async_trait::async_trait]
impl Follower for TokenSecrets {
    async fn follow(&self, server: ApiServer) {
        loop {
            if let Err(error) = self.watch(&server).await {
                tracing::debug!(%error, "Secrets with tokens are looked at again in a moment");
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
