//! `pods/resize`: other requests and limits for the containers of a pod that is there.

use coracle_api::field::{Error, Path};
use coracle_api::qos;
use coracle_apiserver::Strategy;
use coracle_apiserver::strategy::bump_generation;
use serde_json::Value;

use super::validation;
use crate::value::{at, entries, items, items_mut, present, set, text};

/// The strategy of the subresource.
pub struct Resize;

impl Strategy for Resize {
    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        let wanted = new.clone();
        *new = super::kept(new, old);
        let Some(spec) = new.get_mut("spec") else { return };
        for list in ["containers", "initContainers"] {
            for c in items_mut(spec, list) {
                let named = |w: &&Value| text(w, "/name") == text(c, "/name");
                let Some(found) = items(&wanted, &format!("/spec/{list}")).iter().find(named) else {
                    continue;
                };
                for field in ["resources", "resizePolicy"] {
                    if present(found, &format!("/{field}")) {
                        set(c, field, at(found, &format!("/{field}")).clone());
                    }
                }
            }
        }
        bump_generation(new, old);
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let path = Path::new("spec");
        let mut errors = validation::pod_spec(at(new, "/spec"), &path);
        let class = |pod: &Value| qos::class(at(pod, "/spec"));
        if class(new) != class(old) {
            let words = "Pod QOS Class may not change as a result of resizing";
            return vec![Error::invalid(&path, text(old, "/status/qosClass"), words)];
        }
        for list in ["containers", "initContainers"] {
            let before = items(old, &format!("/spec/{list}"));
            for (i, (c, was)) in items(new, &format!("/spec/{list}")).iter().zip(before).enumerate() {
                resized(&mut errors, c, was, &path.child(list).index(i).child("resources"));
            }
        }
        errors
    }
}

/// Only CPU and memory change, and neither goes away.
fn resized(errors: &mut Vec<Error>, c: &Value, was: &Value, path: &Path) {
    for kind in ["limits", "requests"] {
        let pointer = format!("/resources/{kind}");
        for (name, amount) in entries(was, &pointer) {
            let now = at(c, &pointer).get(name);
            let fixed = !matches!(name.as_str(), "cpu" | "memory");
            if fixed && now != Some(amount) {
                errors.push(Error::forbidden(path, "only cpu and memory resources are mutable"));
            } else if now.is_none() {
                errors
                    .push(Error::forbidden(&path.child(kind), format!("resource {kind} cannot be removed")));
            }
        }
    }
}
