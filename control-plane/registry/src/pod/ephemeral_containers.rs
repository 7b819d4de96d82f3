//! `pods/ephemeralcontainers`: containers that are added to a running pod, to look into it. They are never taken away.

use coracle_api::field::{Error, Path};
use coracle_apiserver::Strategy;
use coracle_apiserver::strategy::bump_generation;
use serde_json::Value;

use super::validation;
use crate::value::{at, items, object, present, same, set, text};

/// What a container has that is added so late.
const FORBIDDEN: [&str; 6] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy"];

/// The strategy of the subresource.
pub struct EphemeralContainers;

impl Strategy for EphemeralContainers {
    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        let added = at(new, "/spec/ephemeralContainers").clone();
        *new = super::kept(new, old);
        if let Some(spec) = object(new, "spec").filter(|_| !added.is_null()) {
            set(spec, "ephemeralContainers", added);
        }
        bump_generation(new, old);
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("spec").child("ephemeralContainers");
        let (containers, before) =
            (items(new, "/spec/ephemeralContainers"), items(old, "/spec/ephemeralContainers"));
        for (i, c) in containers.iter().enumerate() {
            let was = before.iter().any(|b| text(b, "/name") == text(c, "/name"));
            if !was {
                added(&mut errors, new, c, containers.get(..i).unwrap_or_default(), &path.index(i));
            }
        }
        for was in before {
            let name = text(was, "/name");
            match containers.iter().position(|c| text(c, "/name") == name) {
                None => {
                    let words = format!("existing ephemeral containers {name:?} may not be removed\n");
                    errors.push(Error::forbidden(&path, words));
                }
                Some(i) if containers.get(i).is_none_or(|c| !same(c, was)) => {
                    let words = format!("existing ephemeral containers {name:?} may not be changed\n");
                    errors.push(Error::forbidden(&path.index(i), words));
                }
                Some(_) => {}
            }
        }
        errors
    }
}

fn added(errors: &mut Vec<Error>, pod: &Value, c: &Value, earlier: &[Value], path: &Path) {
    let others =
        ["containers", "initContainers"].iter().flat_map(|list| items(pod, &format!("/spec/{list}")));
    let mut names: Vec<String> = others.chain(earlier).map(|c| text(c, "/name").to_owned()).collect();
    let spec = at(pod, "/spec");
    validation::added_container(errors, spec, c, path, &mut names);
    for field in FORBIDDEN {
        if present(c, &format!("/{field}")) {
            errors.push(Error::forbidden(&path.child(field), "cannot be set for an Ephemeral Container"));
        }
    }
    if ["requests", "limits"].iter().any(|kind| present(c, &format!("/resources/{kind}"))) {
        errors.push(Error::forbidden(&path.child("resources"), "cannot be set for an Ephemeral Container"));
    }
    let target = text(c, "/targetContainerName");
    let known = ["containers", "initContainers"].iter().flat_map(|list| items(spec, &format!("/{list}")));
    if !target.is_empty() && !known.into_iter().any(|c| text(c, "/name") == target) {
        errors.push(Error::not_found(&path.child("targetContainerName"), target));
    }
}
