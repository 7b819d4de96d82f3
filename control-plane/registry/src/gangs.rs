//! The kinds of `scheduling.k8s.io/v1alpha2`: groups of pods that are placed together, and the templates of such groups.
//!
//! Kubernetes serves them when it is asked to; here they are always served. Fields of further alpha features (priorities, claims
//! and topology of a group) are unknown fields.

mod pod_group;
mod workload;

use coracle_api::field::{Error, Path};
use coracle_apiserver::ResourceDef;
use serde_json::Value;

use crate::value::{at, number, present};

const GROUP: &str = "scheduling.k8s.io";
const VERSION: &str = "v1alpha2";

/// The resources.
pub fn resources() -> Vec<ResourceDef> {
    vec![pod_group::resource(), workload::resource()]
}

/// Errors of a `schedulingPolicy`: it is either `basic` or `gang`, and a gang has at least one pod.
fn policy(errors: &mut Vec<Error>, policy: &Value, path: &Path) {
    let ways = ["basic", "gang"].into_iter().filter(|way| present(policy, &format!("/{way}")));
    match ways.count() {
        0 => errors.push(Error::invalid(path, policy.clone(), "must specify one of: `basic`, `gang`")),
        1 => {}
        _ => {
            errors.push(Error::invalid(path, policy.clone(), "must specify exactly one of: `basic`, `gang`"))
        }
    }
    let gang = at(policy, "/gang");
    if !gang.is_null() && number(gang, "/minCount") < 1 {
        let path = path.child("gang").child("minCount");
        errors.push(Error::invalid(&path, number(gang, "/minCount"), "must be greater than or equal to 1"));
    }
}

/// How a policy is shown in a table.
fn shown(policy: &Value) -> String {
    match at(policy, "/gang") {
        Value::Null => "Basic".to_owned(),
        gang => format!("Gang ({})", number(gang, "/minCount")),
    }
}
