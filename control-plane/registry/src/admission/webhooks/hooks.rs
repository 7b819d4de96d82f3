//! The webhooks of all configurations, made ready once for each version of a configuration.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::status::Status;
use coracle_apiserver::Objects;
use coracle_apiserver::webhook::Place;
use coracle_store::{KeyValue, Range};
use parking_lot::Mutex;
use serde_json::Value;

use crate::admission_cel::{Conditions, Speaks};
use crate::admission_webhook::GROUP;
use crate::value::{at, items, number, text};

/// Most webhooks that one call may pass.
const HOOKS_MAX: usize = 512;

/// One webhook.
pub(super) struct Hook {
    /// Which one it is, among all.
    pub id: String,
    pub configuration: String,
    pub name: String,
    pub spec: Value,
    pub place: Result<Place, String>,
    pub conditions: Conditions,
    /// `apiVersion` of the review that it is sent.
    pub review: String,
    /// Seconds.
    pub timeout: u64,
    /// Whether the call goes on where it cannot be asked.
    pub ignores: bool,
    /// Whether it is asked about dry runs.
    pub dry_run: bool,
    /// Whether only the very resource of a rule is meant.
    pub exact: bool,
    /// Whether it is asked again when another changed the object after it.
    pub reinvokes: bool,
}

impl Hook {
    fn of(configuration: &str, index: usize, spec: &Value) -> Self {
        let name = text(spec, "/name").to_owned();
        let versions = items(spec, "/admissionReviewVersions").iter().filter_map(Value::as_str);
        let version = versions.into_iter().find(|v| matches!(*v, "v1" | "v1beta1")).unwrap_or("v1");
        Self {
            id: format!("{configuration}/{name}/{index}"),
            configuration: configuration.to_owned(),
            place: Place::of(at(spec, "/clientConfig")),
            conditions: Conditions::of(items(spec, "/matchConditions"), Speaks::WEBHOOK),
            review: format!("admission.k8s.io/{version}"),
            timeout: u64::try_from(number(spec, "/timeoutSeconds")).unwrap_or(10).clamp(1, 30),
            ignores: text(spec, "/failurePolicy") == "Ignore",
            dry_run: matches!(text(spec, "/sideEffects"), "None" | "NoneOnDryRun"),
            exact: text(spec, "/matchPolicy") == "Exact",
            reinvokes: text(spec, "/reinvocationPolicy") == "IfNeeded",
            spec: spec.clone(),
            name,
        }
    }

    pub fn rules(&self) -> &[Value] {
        items(&self.spec, "/rules")
    }
}

type Ready = (u64, Vec<Arc<Hook>>);

/// The webhooks of one kind of configuration.
#[derive(Default)]
pub(super) struct Hooks {
    ready: Mutex<HashMap<Bytes, Ready>>,
}

impl Hooks {
    /// All of them, in the order in which they are asked: by the name of their configuration.
    pub fn all(&self, objects: &Objects, plural: &str) -> Result<Vec<Arc<Hook>>, Status> {
        let prefix = format!("/registry/{GROUP}/{plural}/");
        let found = objects.store().range(&Range::prefix(prefix)).map_err(Status::internal)?.kvs;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let mut ready = self.ready.lock();
        ready.retain(|key, _| found.iter().any(|kv| kv.key == *key));
        let mut all = Vec::new();
        for kv in &found {
            let known = ready.get(&kv.key).filter(|(revision, _)| *revision == kv.mod_revision);
            match known {
                Some((_, hooks)) => all.extend(hooks.iter().cloned()),
                None => {
                    let hooks = read(kv)?;
                    all.extend(hooks.iter().cloned());
                    ready.insert(kv.key.clone(), (kv.mod_revision, hooks));
                }
            }
        }
        match all.len() {
            0..=HOOKS_MAX => Ok(all),
            many => Err(Status::internal(format!(
                "{many} webhooks are configured; at most {HOOKS_MAX} are asked"
            ))),
        }
    }
}

fn read(kv: &KeyValue) -> Result<Vec<Arc<Hook>>, Status> {
    let configuration: Value = serde_json::from_slice(&kv.to_json()).map_err(Status::internal)?;
    let name = text(&configuration, "/metadata/name");
    let hooks = items(&configuration, "/webhooks").iter().enumerate();
    Ok(hooks.map(|(i, spec)| Arc::new(Hook::of(name, i, spec))).collect())
}
