//! ResourceClaim: that somebody wants devices, and which it got.

use std::sync::Arc;

use coracle_api::GroupResource;
use coracle_api::field::{Error, Path};
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::claim;
use crate::value::{at, items, present, reset, text};
use crate::{check, table};

/// Most users of a claim.
const RESERVED_MAX: usize = 256;
/// Most devices of a claim.
const RESULTS_MAX: usize = 32;
const ADMIN_LABEL: &str = "resource.kubernetes.io/admin-access";

static COLUMNS: [Column; 3] = [
    table::NAME,
    table::string("State", "A summary of the current state (allocated, pending, reserved, etc.)."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "ResourceClaim", "resourceclaims", Arc::new(ResourceClaim))
        .subresource(Subresource::status("ResourceClaim"))
}

struct ResourceClaim;

#[async_trait::async_trait]
impl Strategy for ResourceClaim {
    fn default(&self, obj: &mut Value) {
        if let Some(spec) = obj.get_mut("spec") {
            claim::defaults(spec);
        }
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        if claim::asks_for_admin_access(at(obj, "/spec")) {
            let namespace = meta::namespace(obj).unwrap_or_default();
            let found = cx.objects.get("", "namespaces", None, namespace).await?.unwrap_or_default();
            let label = found.pointer("/metadata/labels").and_then(|l| l.get(ADMIN_LABEL));
            if label != Some(&"true".into()) {
                let words = format!(
                    "admin access to devices requires the `{ADMIN_LABEL}: true` label on the containing namespace"
                );
                let resource = GroupResource::new(super::GROUP, "resourceclaims");
                return Err(Status::forbidden(&resource, meta::name(obj).unwrap_or_default(), words));
            }
        }
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        claim::check(&mut errors, at(obj, "/spec"), &Path::new("spec"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        check::immutable(&mut errors, &Path::new("spec"), at(new, "/spec"), at(old, "/spec"));
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("status");
        let (allocation, before) = (at(new, "/status/allocation"), at(old, "/status/allocation"));
        if !before.is_null() && !allocation.is_null() {
            check::immutable(&mut errors, &path.child("allocation"), allocation, before);
        }
        let results = items(allocation, "/devices/results");
        let at_results = path.child("allocation").child("devices").child("results");
        if results.len() > RESULTS_MAX {
            errors.push(Error::too_many(&at_results, results.len(), RESULTS_MAX));
        }
        let requests: Vec<&str> =
            items(new, "/spec/devices/requests").iter().map(|r| text(r, "/name")).collect();
        for (i, result) in results.iter().enumerate() {
            let path = at_results.index(i);
            let request = text(result, "/request");
            let (main, _) = request.split_once('/').unwrap_or((request, ""));
            if !requests.contains(&main) {
                let words = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
                errors.push(Error::invalid(&path.child("request"), request, words));
            }
            super::request::driver_name(&mut errors, text(result, "/driver"), &path.child("driver"));
            for field in ["pool", "device"] {
                if text(result, &format!("/{field}")).is_empty() {
                    errors.push(Error::required(&path.child(field), ""));
                }
            }
        }
        reserved(&mut errors, new, &path.child("reservedFor"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let allocated = present(obj, "/status/allocation");
        let deleted = present(obj, "/metadata/deletionTimestamp");
        let states = [
            (deleted, "deleted"),
            (!allocated && !deleted, "pending"),
            (allocated, "allocated"),
            (allocated && !items(obj, "/status/reservedFor").is_empty(), "reserved"),
        ];
        let states: Vec<&str> = states.iter().filter(|(holds, _)| *holds).map(|(_, state)| *state).collect();
        vec![table::name(obj), states.join(",").into(), table::age(obj, now)]
    }
}

fn reserved(errors: &mut Vec<Error>, claim: &Value, path: &Path) {
    let users = items(claim, "/status/reservedFor");
    if users.len() > RESERVED_MAX {
        errors.push(Error::too_many(path, users.len(), RESERVED_MAX));
    }
    if !users.is_empty() && !present(claim, "/status/allocation") {
        errors.push(Error::forbidden(path, "may not be specified when `allocated` is not set"));
    }
    let mut seen = Vec::new();
    for (i, user) in users.iter().enumerate() {
        let path = path.index(i);
        for field in ["resource", "name", "uid"] {
            if text(user, &format!("/{field}")).is_empty() {
                errors.push(Error::required(&path.child(field), ""));
            }
        }
        let uid = text(user, "/uid");
        if seen.contains(&uid) {
            errors.push(Error::duplicate(&path.child("uid"), uid));
        }
        seen.push(uid);
    }
}
