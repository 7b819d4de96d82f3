//! ConfigMaps and Secrets as pods refer to them: read from the API, kept for a moment so that a burst of pods costs one read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::env::Keys;

const KEEP: Duration = Duration::from_millis(500);
const MAX_KEPT: usize = 1024;

/// Which kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl Kind {
    /// As Kubernetes writes it in errors.
    pub fn word(self) -> &'static str {
        match self {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        }
    }
}

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not exist.
    #[error("{} \"{name}\" not found", .kind.word())]
    NotFound {
        /// Which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The API did not answer, or refused.
    #[error("failed to get {} {namespace}/{name}: {source}", .kind.word())]
    Api {
        /// Which kind.
        kind: Kind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
}

type Kept = HashMap<(Kind, String, String), (Instant, Arc<Keys>)>;

/// Reads objects; cheap to clone.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    kept: Arc<Mutex<Kept>>,
}

impl Objects {
    /// Reads through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, kept: Arc::default() }
    }

    /// All keys of an object.
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Arc<Keys>, Error> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        if let Some((at, keys)) = self.kept.lock().get(&key)
            && at.elapsed() < KEEP
        {
            return Ok(keys.clone());
        }
        let keys = Arc::new(self.read(kind, namespace, name).await?);
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (at, _)| at.elapsed() < KEEP);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(key, (Instant::now(), keys.clone()));
        }
        Ok(keys)
    }

    async fn read(&self, kind: Kind, namespace: &str, name: &str) -> Result<Keys, Error> {
        let mut keys = Keys::default();
        let found = match kind {
            Kind::ConfigMap => {
                Api::<ConfigMap>::namespaced(self.client.clone(), namespace).get_opt(name).await.map(|o| {
                    o.map(|object| {
                        keys.extend(
                            object.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes())),
                        );
                        keys.extend(
                            object.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)),
                        );
                    })
                })
            }
            Kind::Secret => {
                Api::<Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await.map(|o| {
                    o.map(|object| {
                        keys.extend(object.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)))
                    })
                })
            }
        };
        match found {
            Ok(Some(())) => Ok(keys),
            Ok(None) => Err(Error::NotFound { kind, name: name.to_owned() }),
            Err(source) => {
                Err(Error::Api { kind, namespace: namespace.to_owned(), name: name.to_owned(), source })
            }
        }
    }
}
