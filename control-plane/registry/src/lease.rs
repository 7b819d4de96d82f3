//! Lease of `coordination.k8s.io`.

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

use crate::check::NEGATIVE;
use crate::table;
use crate::value::{maybe_number, object, present, text};

static COLUMNS: [Column; 3] = [
    table::NAME,
    table::string(
        "Holder",
        "holderIdentity contains the identity of the holder of a current lease. If Coordinated Leader Election is used, the holder identity must be equal to the elected LeaseCandidate.metadata.name field.",
    ),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("coordination.k8s.io", "v1", "Lease", "leases", Arc::new(Lease))
}

struct Lease;

impl Strategy for Lease {
    fn default(&self, obj: &mut Value) {
        object(obj, "spec");
    }

    fn has_status(&self) -> bool {
        false
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let spec = Path::new("spec");
        if let Some(seconds) = maybe_number(obj, "/spec/leaseDurationSeconds")
            && seconds <= 0
        {
            errors.push(Error::invalid(
                &spec.child("leaseDurationSeconds"),
                seconds,
                "must be greater than 0",
            ));
        }
        if let Some(transitions) = maybe_number(obj, "/spec/leaseTransitions")
            && transitions < 0
        {
            errors.push(Error::invalid(&spec.child("leaseTransitions"), transitions, NEGATIVE));
        }
        if present(obj, "/spec/preferredHolder") && !present(obj, "/spec/strategy") {
            errors.push(Error::forbidden(
                &spec.child("preferredHolder"),
                "may only be specified if `strategy` is defined",
            ));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), text(obj, "/spec/holderIdentity").into(), table::age(obj, now)]
    }
}
