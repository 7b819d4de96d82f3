//! Workloads that roll when a ConfigMap or Secret that their pods use changes.
//!
//! A Deployment, StatefulSet or DaemonSet asks for it with the annotation [`ANNOTATION`]` = "true"`. What its template uses
//! is hashed; a hash that differs from the one before goes into the template's annotations, which is a rollout like any
//! other: it follows the workload's strategy and can be undone. Contents are watched only when somebody asks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::core::{DynamicResourceScope, ObjectMeta};
use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Cached, Key, key, key_of, split, trim_meta};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{DaemonSet, Deployment, Meta, StatefulSet};
use crate::write::{self, Writer};

/// Annotation of a workload that wants to roll.
pub const ANNOTATION: &str = "coracle.dev/roll-on-change";
/// Annotation of the workload and, once it changed, of its template: the hash of what the pods use.
pub const HASH: &str = "coracle.dev/configuration-hash";

/// Makes a view that keeps nothing of an object but a digest of what it holds.
macro_rules! content {
    ($view:ident, $kind:literal, $plural:literal) => {
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct $view {
            #[serde(deserialize_with = "crate::view::slim")]
            metadata: ObjectMeta,
            #[serde(default)]
            data: Value,
            #[serde(default)]
            binary_data: Value,
            #[serde(skip)]
            digest: [u8; 32],
        }

        impl Resource for $view {
            type DynamicType = ();
            type Scope = DynamicResourceScope;
            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                "".into()
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        impl Cached for $view {
            fn trim(&mut self) {
                trim_meta(&mut self.metadata);
                let held = json!([self.data.take(), self.binary_data.take()]);
                self.digest = Sha256::digest(held.to_string()).into();
            }
        }
    };
}

content!(ConfigMapContent, "ConfigMap", "configmaps");
content!(SecretContent, "Secret", "secrets");

/// What a template uses: whether it is a Secret, and its name.
type Used = BTreeSet<(bool, String)>;

/// The ConfigMaps and Secrets of a pod template: variables, files and projected files.
fn used(template: &Value) -> Used {
    let mut all = Used::new();
    let mut add = |secret: bool, name: Option<&Value>| {
        all.extend(name.and_then(Value::as_str).map(|name| (secret, name.to_string())));
    };
    let list = |of: Option<&Value>| of.and_then(Value::as_array).cloned().unwrap_or_default();
    let spec = template.get("spec").unwrap_or(&Value::Null);
    for container in list(spec.get("containers")).iter().chain(&list(spec.get("initContainers"))) {
        for variable in list(container.get("env")) {
            add(false, variable.pointer("/valueFrom/configMapKeyRef/name"));
            add(true, variable.pointer("/valueFrom/secretKeyRef/name"));
        }
        for source in list(container.get("envFrom")) {
            add(false, source.pointer("/configMapRef/name"));
            add(true, source.pointer("/secretRef/name"));
        }
    }
    for volume in list(spec.get("volumes")) {
        add(false, volume.pointer("/configMap/name"));
        add(true, volume.pointer("/secret/secretName"));
        for source in list(volume.pointer("/projected/sources")) {
            add(false, source.pointer("/configMap/name"));
            add(true, source.pointer("/secret/name"));
        }
    }
    all
}

/// What to write for a workload whose contents have this hash. The first hash is only noted: nothing has changed yet.
fn change<K: Resource>(workload: &K, hash: &str) -> Option<(Value, bool)> {
    let before = workload.annotation(HASH);
    if before == Some(hash) {
        return None;
    }
    let meta = workload.meta();
    let mut body = json!({ "metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "annotations": { HASH: hash },
    } });
    if before.is_some() {
        body["spec"]["template"]["metadata"]["annotations"] = json!({ HASH: hash });
    }
    Some((body, before.is_some()))
}

/// Rolls workloads.
pub struct RollOnChange {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
    config_maps: Arc<Cache<ConfigMapContent>>,
    secrets: Arc<Cache<SecretContent>>,
    /// Who watches contents, until the watches are started.
    watches: Mutex<Option<(Client, CancellationToken)>>,
}

const KINDS: [&str; 3] = ["Deployment", "StatefulSet", "DaemonSet"];

fn asks<K: Resource>(workload: &K) -> bool {
    workload.annotation(ANNOTATION) == Some("true") && !workload.is_terminating()
}

impl RollOnChange {
    /// Registers its handlers. Contents are watched as `writer`'s identity until `shutdown`.
    pub fn new(
        caches: Arc<Informers>,
        writer: Writer,
        events: Recorder,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let watches = Mutex::new(Some((writer.client().clone(), shutdown)));
        let this = Arc::new(Self {
            caches: caches.clone(),
            writer,
            events,
            queue: WorkQueue::new(),
            config_maps: Arc::default(),
            secrets: Arc::default(),
            watches,
        });
        macro_rules! workloads {
            ($($cache:ident: $kind:literal),*) => {$({
                let own = this.clone();
                caches.$cache.on_change(move |_, new| {
                    if let Some(one) = new.filter(|one| asks(one.as_ref())) {
                        own.queue.add(format!("{}:{}", $kind, key_of(one.as_ref())));
                    }
                });
            })*};
        }
        workloads!(deployments: "Deployment", stateful_sets: "StatefulSet", daemon_sets: "DaemonSet");
        let own = this.clone();
        this.config_maps.on_change(move |old, new| {
            if old.map(|o| o.digest) != new.map(|n| n.digest) {
                own.changed(new.or(old).map(|one| key_of(one.as_ref())), false);
            }
        });
        let own = this.clone();
        this.secrets.on_change(move |old, new| {
            if old.map(|o| o.digest) != new.map(|n| n.digest) {
                own.changed(new.or(old).map(|one| key_of(one.as_ref())), true);
            }
        });
        this
    }

    // A content changed: who uses it?
    fn changed(&self, content: Option<Key>, secret: bool) {
        let Some(content) = content else { return };
        let (namespace, name) = split(&content);
        let used_by = |template: &Value| used(template).contains(&(secret, name.to_string()));
        macro_rules! wake {
            ($($cache:ident: $kind:literal),*) => {$(
                for one in self.caches.$cache.by(&format!("namespace:{namespace}")) {
                    if asks(one.as_ref()) && used_by(&one.spec.template) {
                        self.queue.add(format!("{}:{}", $kind, key_of(one.as_ref())));
                    }
                }
            )*};
        }
        wake!(deployments: "Deployment", stateful_sets: "StatefulSet", daemon_sets: "DaemonSet");
    }

    async fn watch(&self) {
        if let Some((client, shutdown)) = self.watches.lock().take() {
            let config = kube::runtime::watcher::Config::default;
            tokio::spawn(self.config_maps.clone().follow(client.clone(), config(), shutdown.clone()));
            tokio::spawn(self.secrets.clone().follow(client, config(), shutdown));
        }
        self.config_maps.synced().await;
        self.secrets.synced().await;
    }

    fn hash(&self, namespace: &str, template: &Value) -> String {
        let mut sum = Sha256::new();
        for (secret, name) in used(template) {
            let at = key(namespace, &name);
            let digest = if secret {
                self.secrets.get(&at).map(|one| one.digest)
            } else {
                self.config_maps.get(&at).map(|one| one.digest)
            };
            // One that is missing is as good as empty: its coming is a change.
            sum.update(format!("{secret} {name} "));
            sum.update(digest.unwrap_or_default());
        }
        hex::encode(sum.finalize()).chars().take(16).collect()
    }

    async fn roll<K: Resource<DynamicType = ()>>(&self, workload: &K, template: &Value) -> write::Result<()> {
        let hash = self.hash(workload.namespace(), template);
        let Some((body, rolls)) = change(workload, &hash) else { return Ok(()) };
        let path = write::path::<K>(workload.namespace(), workload.name());
        match self.writer.merge(&path, &body).await {
            Err(error) if write::is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                if rolls {
                    let words = "A ConfigMap or Secret that its pods use has changed";
                    self.events.normal(workload, "ConfigurationChanged", words);
                }
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Reconciler for RollOnChange {
    fn name(&self) -> &'static str {
        "roll-on-change-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        self.watch().await;
        let Some((kind, name)) = key.split_once(':').filter(|(kind, _)| KINDS.contains(kind)) else {
            return Ok(None);
        };
        macro_rules! roll {
            ($cache:ident, $kind:ty) => {{
                let found: Option<Arc<$kind>> = self.caches.$cache.get(name);
                if let Some(one) = found.filter(|one| asks(one.as_ref())) {
                    self.roll(one.as_ref(), &one.spec.template).await?;
                }
            }};
        }
        match kind {
            "Deployment" => roll!(deployments, Deployment),
            "StatefulSet" => roll!(stateful_sets, StatefulSet),
            _ => roll!(daemon_sets, DaemonSet),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_template_uses_is_found_and_the_first_hash_rolls_nothing() {
        let template = json!({ "spec": {
            "containers": [{
                "env": [{ "valueFrom": { "configMapKeyRef": { "name": "a" } } }, { "value": "x" }],
                "envFrom": [{ "secretRef": { "name": "b" } }],
            }],
            "initContainers": [{ "env": [{ "valueFrom": { "secretKeyRef": { "name": "c" } } }] }],
            "volumes": [
                { "configMap": { "name": "d" } }, { "secret": { "secretName": "e" } }, { "emptyDir": {} },
                { "projected": { "sources": [{ "configMap": { "name": "f" } }, { "secret": { "name": "g" } }] } },
            ],
        } });
        let names = |secret: bool| {
            used(&template)
                .into_iter()
                .filter(|(s, _)| *s == secret)
                .map(|(_, name)| name)
                .collect::<String>()
        };
        assert_eq!((names(false), names(true)), ("adf".to_string(), "bceg".to_string()));
        let mut workload = Deployment::default();
        let (body, rolls) = change(&workload, "one").unwrap();
        assert!(!rolls && body.get("spec").is_none());
        workload.metadata.annotations = Some([(HASH.to_string(), "one".to_string())].into());
        assert_eq!(change(&workload, "one"), None);
        let (body, rolls) = change(&workload, "two").unwrap();
        assert!(rolls);
        assert_eq!(body["spec"]["template"]["metadata"]["annotations"][HASH], "two");
    }
}
