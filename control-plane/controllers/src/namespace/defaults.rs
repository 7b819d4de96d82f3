//! Gives each namespace its `default` ServiceAccount and the cluster's CA.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use crate::cache::{Key, key, key_of, split};
use crate::informers::{Informers, ROOT_CA};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{ConfigMap, Meta, ServiceAccount};
use crate::write::{self, Writer};

const CA_FILE: &str = "ca.crt";

/// Creates what every namespace has, and puts it back when it was deleted or changed.
pub struct NamespaceDefaults {
    caches: Arc<Informers>,
    accounts: Writer,
    publisher: Writer,
    root_ca: Option<String>,
    queue: WorkQueue,
}

impl NamespaceDefaults {
    /// Registers its handlers. Each of the two jobs has its own identity; without `root_ca` nothing is published.
    pub fn new(
        caches: Arc<Informers>,
        accounts: Writer,
        publisher: Writer,
        root_ca: Option<String>,
    ) -> Arc<Self> {
        let this =
            Arc::new(Self { caches: caches.clone(), accounts, publisher, root_ca, queue: WorkQueue::new() });
        let own = this.clone();
        caches.namespaces.on_change(move |_, new| {
            if let Some(namespace) = new.filter(|n| !n.is_terminating()) {
                own.queue.add(key_of(namespace.as_ref()));
            }
        });
        let own = this.clone();
        caches.service_accounts.on_change(move |old, new| {
            if let (Some(account), None) = (old, new) {
                own.queue.add(account.namespace());
            }
        });
        let own = this.clone();
        caches.root_cas.on_change(move |old, new| {
            if let Some(map) = old {
                own.queue.add(split(&key_of(new.unwrap_or(map).as_ref())).0);
            }
        });
        this
    }

    async fn account(&self, namespace: &str) -> write::Result<()> {
        if self.caches.service_accounts.get(&key(namespace, "default")).is_some() {
            return Ok(());
        }
        let body = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace } });
        made(self.accounts.create(&write::path::<ServiceAccount>(namespace, ""), &body).await)
    }

    async fn certificate(&self, namespace: &str) -> write::Result<()> {
        let Some(pem) = &self.root_ca else { return Ok(()) };
        let there = self.caches.root_cas.get(&key(namespace, ROOT_CA));
        if there.as_ref().is_some_and(|m| m.data.get(CA_FILE) == Some(pem)) {
            return Ok(());
        }
        let words = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
                     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
        let body = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": ROOT_CA, "namespace": namespace, "annotations": { "kubernetes.io/description": words } },
            "data": { CA_FILE: pem },
        });
        if there.is_some() {
            return self
                .publisher
                .replace(&write::path::<ConfigMap>(namespace, ROOT_CA), &body)
                .await
                .map(drop);
        }
        made(self.publisher.create(&write::path::<ConfigMap>(namespace, ""), &body).await)
    }
}

fn made(answer: write::Result<write::Written>) -> write::Result<()> {
    match answer {
        Err(error) if write::is_already_exists(&error) || write::is_namespace_terminating(&error) => Ok(()),
        Err(error) if write::is_not_found(&error) => Ok(()),
        other => other.map(drop),
    }
}

#[async_trait]
impl Reconciler for NamespaceDefaults {
    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        if self.caches.namespaces.get(key).is_none_or(|n| n.is_terminating()) {
            return Ok(None);
        }
        self.account(key).await?;
        self.certificate(key).await?;
        Ok(None)
    }
}
