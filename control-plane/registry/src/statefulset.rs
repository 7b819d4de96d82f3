//! StatefulSet of `apps`.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{
    at, entries, items, items_mut, number, object, present, reset, same, set, set_default, text,
};
use crate::{check, go_struct, persistent_volume_claim, table, workload};

static COLUMNS: [Column; 5] = [
    table::NAME,
    table::string("Ready", "Number of the pod with ready state"),
    table::AGE,
    table::wide("Containers", "Names of each container in the template."),
    table::wide("Images", "Images referenced by each container in the template."),
];

/// Fields of `spec` that may change.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];
const CHANGED: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("apps", "v1", "StatefulSet", "statefulsets", Arc::new(StatefulSet))
        .short_names(&["sts"])
        .categories(&["all"])
        .subresource(Subresource::scale())
        .subresource(Subresource::status("StatefulSet"))
}

struct StatefulSet;

#[async_trait::async_trait]
impl Strategy for StatefulSet {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set_default(status, "replicas", 0);
            set_default(status, "availableReplicas", 0);
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "podManagementPolicy", "OrderedReady");
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        if let Some(strategy) = object(spec, "updateStrategy") {
            set_default(strategy, "type", "RollingUpdate");
            if text(strategy, "/type") == "RollingUpdate"
                && let Some(rolling) = object(strategy, "rollingUpdate")
            {
                set_default(rolling, "partition", 0);
                if present(rolling, "/maxUnavailable") {
                    set_default(rolling, "maxUnavailable", 1);
                }
            }
        }
        if let Some(policy) = object(spec, "persistentVolumeClaimRetentionPolicy") {
            set_default(policy, "whenDeleted", "Retain");
            set_default(policy, "whenScaled", "Retain");
        }
        for claim in items_mut(spec, "volumeClaimTemplates") {
            set(claim, "apiVersion", "v1");
            set(claim, "kind", "PersistentVolumeClaim");
            persistent_volume_claim::defaults(claim);
        }
        workload::default_template(spec);
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({"replicas": 0, "availableReplicas": 0}));
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::names::label(name, prefix)
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        spec(&mut errors, at(obj, "/spec"), &Path::new("spec"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let fixed = |obj: &Value| {
            let kept = entries(obj, "/spec").filter(|(k, _)| !MUTABLE.contains(&k.as_str()));
            Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
        };
        if !same(&fixed(new), &fixed(old)) {
            errors.push(Error::forbidden(&Path::new("spec"), CHANGED));
        }
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let bounded = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
        workload::status(&mut errors, new, &["replicas"], &[]);
        workload::status(&mut errors, new, &bounded, &bounded);
        workload::status(&mut errors, new, &["observedGeneration", "collisionCount"], &[]);
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        crate::pod::warnings::pod_spec(at(obj, "/spec/template/spec"), "spec.template.spec")
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            table::name(obj),
            format!("{}/{}", number(obj, "/status/readyReplicas"), number(obj, "/spec/replicas")).into(),
            table::age(obj, now),
            table::containers(obj, "/name"),
            table::containers(obj, "/image"),
        ]
    }
}

fn spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    match text(spec, "/podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        other => errors.push(Error::invalid(
            &path.child("podManagementPolicy"),
            other,
            "must be 'OrderedReady' or 'Parallel'",
        )),
    }
    strategy(errors, at(spec, "/updateStrategy"), &path.child("updateStrategy"));
    for field in ["whenDeleted", "whenScaled"] {
        let path = path.child("persistentVolumeClaimRetentionPolicy").child(field);
        let value = text(spec, &format!("/persistentVolumeClaimRetentionPolicy/{field}"));
        check::one_of(errors, &path, value, &["Delete", "Retain"], true);
    }
    check::non_negative(errors, &path.child("replicas"), at(spec, "/replicas"));
    check::non_negative(errors, &path.child("minReadySeconds"), at(spec, "/minReadySeconds"));
    let start = path.child("ordinals").child("start");
    check::non_negative(errors, &start, at(spec, "/ordinals/start"));
    check::non_negative(errors, &path.child("revisionHistoryLimit"), at(spec, "/revisionHistoryLimit"));
    let service = text(spec, "/serviceName");
    if !service.is_empty() {
        let wrong = coracle_api::meta::validation::dns1123_label(service);
        check::words(errors, &path.child("serviceName"), service, wrong);
    }
    // Containers may mount what the claim templates make.
    let mut with_claims = spec.clone();
    let names: Vec<&str> =
        items(spec, "/volumeClaimTemplates").iter().map(|claim| text(claim, "/metadata/name")).collect();
    if let Some(pod) = with_claims.pointer_mut("/template/spec").and_then(Value::as_object_mut) {
        let volumes = pod.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.retain(|volume| !names.contains(&text(volume, "/name")));
            volumes.extend(names.iter().map(|name| json!({"name": name, "emptyDir": {}})));
        }
    }
    workload::selected_template(errors, &with_claims, path, "StatefulSet");
}

fn strategy(errors: &mut Vec<Error>, strategy: &Value, path: &Path) {
    let rolling = path.child("rollingUpdate");
    match text(strategy, "/type") {
        "OnDelete" if present(strategy, "/rollingUpdate") => {
            let value = at(strategy, "/rollingUpdate").clone();
            errors.push(Error::invalid(&rolling, value, "only allowed for updateStrategy 'RollingUpdate'"));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            check::non_negative(
                errors,
                &rolling.child("partition"),
                at(strategy, "/rollingUpdate/partition"),
            );
            let most = at(strategy, "/rollingUpdate/maxUnavailable");
            if !most.is_null() {
                let path = rolling.child("maxUnavailable");
                check::int_or_percent(errors, &path, most);
                check::at_most_100_percent(errors, &path, most);
                if check::percent(most) == Some(0) || most.as_i64() == Some(0) {
                    errors.push(Error::invalid(&path, most.clone(), "cannot be 0"));
                }
            }
        }
        _ => {
            let shown = go_struct::shown(strategy, &go_struct::UPDATE_STRATEGY);
            let words = "must be 'RollingUpdate' or 'OnDelete'";
            errors.push(Error::invalid(path, strategy.clone(), words).shown_as(shown));
        }
    }
}
