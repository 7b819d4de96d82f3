//! Namespace: born with the finalizer `kubernetes` in its spec, Terminating until the namespace controller takes it away.

use coracle_api::field::{Error, Path};
use coracle_api::meta::{self, validation};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource, SubresourceAction};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::table;
use crate::value::{at, items, object, present, set, set_default, text};

/// Namespaces that every cluster has and that may not be deleted.
pub const SYSTEM: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

static COLUMNS: [Column; 3] =
    [table::NAME, table::string("Status", "The status of the namespace"), table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    let finalize =
        Subresource::new("finalize", "Namespace", &["update"], SubresourceAction::Object(Arc::new(Finalize)));
    ResourceDef::new("", "v1", "Namespace", "namespaces", Arc::new(Namespace))
        .cluster_scoped()
        .short_names(&["ns"])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .subresource(finalize)
        .subresource(Subresource::status("Namespace"))
}

struct Namespace;

fn defaults(obj: &mut Value) {
    if let Some(name) = meta::name(obj).filter(|n| !n.is_empty()).map(str::to_string) {
        meta::set_label(obj, NAME_LABEL, &name);
    }
    object(obj, "spec");
    if let Some(status) = object(obj, "status") {
        set_default(status, "phase", "Active");
    }
}

fn held(obj: &Value) -> bool {
    !items(obj, "/spec/finalizers").is_empty()
}

#[async_trait::async_trait]
impl Strategy for Namespace {
    fn default(&self, obj: &mut Value) {
        defaults(obj);
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        defaults(obj); // a generated name is known only now
        set(obj, "status", json!({"phase": "Active"}));
        if let Some(spec) = object(obj, "spec") {
            let mut finalizers = items(spec, "/finalizers").to_vec();
            if !finalizers.iter().any(|f| f == FINALIZER) {
                finalizers.push(FINALIZER.into());
            }
            set(spec, "finalizers", finalizers);
        }
        Ok(())
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        coracle_apiserver::strategy::keep_status(new, old);
        if let Some(spec) = object(new, "spec") {
            set(spec, "finalizers", at(old, "/spec/finalizers").clone());
        }
    }

    fn validate_update(&self, _new: &Value, _old: &Value) -> Vec<Error> {
        Vec::new()
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let path = Path::new("status").child("Phase");
        let (phase, deleted) = (text(new, "/status/phase"), present(new, "/metadata/deletionTimestamp"));
        let mut errors = Vec::new();
        if !deleted && phase != "Active" {
            errors.push(Error::invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty"));
        }
        if deleted && phase != "Terminating" {
            errors.push(Error::invalid(
                &path,
                phase,
                "may only be 'Terminating' if `deletionTimestamp` is not empty",
            ));
        }
        errors
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::names::label(name, prefix)
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), text(obj, "/status/phase").into(), table::age(obj, now)]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        match path {
            "name" => Some(text(obj, "/metadata/name").to_string()),
            "status.phase" => Some(text(obj, "/status/phase").to_string()),
            _ => None,
        }
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["name", "status.phase"]
    }

    fn marked_for_deletion(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set(status, "phase", "Terminating");
        }
        // A namespace has no grace period, not even one of 0.
        meta::remove_metadata(obj, "deletionGracePeriodSeconds");
    }

    fn held(&self, obj: &Value) -> bool {
        held(obj)
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }
}

/// `namespaces/finalize`: writes `spec.finalizers` and nothing else.
struct Finalize;

impl Strategy for Finalize {
    fn default(&self, obj: &mut Value) {
        defaults(obj);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        let finalizers = at(new, "/spec/finalizers").clone();
        let version = at(new, "/metadata/resourceVersion").clone();
        *new = old.clone();
        if let Some(spec) = object(new, "spec") {
            if finalizers.as_array().is_some_and(|f| !f.is_empty()) {
                set(spec, "finalizers", finalizers);
            } else {
                crate::value::remove(spec, "finalizers");
            }
        }
        if let Some(metadata) = object(new, "metadata")
            && !version.is_null()
        {
            set(metadata, "resourceVersion", version);
        }
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let path = Path::new("spec").child("finalizers");
        let mut errors = Vec::new();
        for (i, finalizer) in items(new, "/spec/finalizers").iter().enumerate() {
            let finalizer = finalizer.as_str().unwrap_or_default();
            let path = path.index(i);
            crate::check::words(&mut errors, &path, finalizer, validation::qualified_name(finalizer));
            if !finalizer.contains('/')
                && !["kubernetes", "orphan", "foregroundDeletion"].contains(&finalizer)
            {
                let words = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(Error::invalid(&path, finalizer, words));
            }
        }
        errors
    }

    fn held(&self, obj: &Value) -> bool {
        held(obj)
    }
}
