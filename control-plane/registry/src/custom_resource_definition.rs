//! CustomResourceDefinition of `apiextensions.k8s.io`: kinds that users make.
//!
//! A definition is accepted when it is written; every member serves what is stored ([`Source`]). Custom objects take the same
//! path as built-in kinds, under the strategy in `custom_resource`.

mod conversion;
mod custom_resource;
mod json_path;
mod names;
pub(crate) mod rules;
mod source;
mod validation;

use std::sync::Arc;

use coracle_api::field::Error;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::admission_webhook::client_config;
use crate::table;
use crate::value::{at, flag, items, object, set, set_default, text};

pub use source::Source;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// Holds a deleted definition until its objects are gone.
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

static COLUMNS: [Column; 2] = [table::NAME, table::CREATED_AT];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(GROUP, "v1", "CustomResourceDefinition", PLURAL, Arc::new(CustomResourceDefinition))
        .cluster_scoped()
        .short_names(&["crd", "crds"])
        .categories(&["api-extensions"])
        .subresource(Subresource::status("CustomResourceDefinition"))
}

struct CustomResourceDefinition;

/// The version in which objects are stored.
fn storage_version(definition: &Value) -> Option<&str> {
    items(definition, "/spec/versions").iter().find(|v| flag(v, "/storage")).map(|v| text(v, "/name"))
}

#[async_trait::async_trait]
impl Strategy for CustomResourceDefinition {
    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        if let Some(conversion) = object(spec, "conversion") {
            set_default(conversion, "strategy", "None");
            let config = conversion.pointer_mut("/webhook/clientConfig").filter(|c| c.is_object());
            config.into_iter().for_each(client_config::default);
        }
        if let Some(names) = object(spec, "names") {
            let kind = text(names, "/kind").to_owned();
            if !kind.is_empty() {
                set_default(names, "listKind", format!("{kind}List"));
                set_default(names, "singular", kind.to_lowercase());
            }
        }
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let stored: Vec<&str> = storage_version(obj).into_iter().collect();
        let status =
            json!({"storedVersions": stored, "conditions": [], "acceptedNames": {"plural": "", "kind": ""}});
        set(obj, "status", status);
        names::accept(cx, obj).await
    }

    async fn prepare_update(
        &self,
        cx: &StrategyContext<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        coracle_apiserver::strategy::keep_status(new, old);
        if let (Some(version), Some(status)) =
            (storage_version(new).map(str::to_owned), object(new, "status"))
        {
            let mut stored = items(status, "/storedVersions").to_vec();
            if !stored.iter().any(|v| *v == *version) {
                stored.push(version.into());
                set(status, "storedVersions", stored);
            }
        }
        names::accept(cx, new).await
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        coracle_apiserver::strategy::bump_generation(new, old);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        validation::create(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        validation::update(new, old)
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), text(obj, "/metadata/creationTimestamp").into()]
    }

    fn deletion_finalizer(&self) -> Option<&'static str> {
        Some(FINALIZER)
    }

    fn marked_for_deletion(&self, obj: &mut Value) {
        let words = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        names::set_condition(obj, "Terminating", true, "InstanceDeletionPending", words);
    }

    fn returns_deleted_object(&self) -> bool {
        false
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        let unknown = |version: &Value| at(version, "/schema/openAPIV3Schema/properties").is_null();
        let versions = items(obj, "/spec/versions").iter().enumerate();
        // A schema of nothing prunes everything, which is seldom meant.
        versions
            .filter(|(_, v)| unknown(v) && !flag(v, "/schema/openAPIV3Schema/x-kubernetes-preserve-unknown-fields"))
            .map(|(i, _)| {
                format!("spec.versions[{i}].schema.openAPIV3Schema: no properties: every field of the objects will be dropped")
            })
            .collect()
    }
}
