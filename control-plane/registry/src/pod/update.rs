//! What may change in a pod: images, a shorter deadline, more tolerations; in its status nearly everything.

use coracle_api::field::{Error, Path};
use serde_json::Value;

use crate::value::{at, items, items_mut, maybe_number, number, present, remove, same, set, text};

const WORDS: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Everything wrong with a change of a pod.
pub fn validate(new: &Value, old: &Value) -> Vec<Error> {
    let (spec, was) = (at(new, "/spec"), at(old, "/spec"));
    let path = Path::new("spec");
    let mut errors = Vec::new();
    if let Some(status) = counts(spec, was, &path) {
        return vec![status];
    }
    for list in ["containers", "initContainers"] {
        for (i, c) in items(spec, &format!("/{list}")).iter().enumerate() {
            let (image, path) = (text(c, "/image"), path.child(list).index(i).child("image"));
            if image.is_empty() {
                errors.push(Error::required(&path, ""));
            } else if image.trim() != image {
                errors.push(Error::invalid(&path, image, "must not have leading or trailing whitespace"));
            }
        }
    }
    deadline(&mut errors, spec, was, &path);
    if !errors.is_empty() {
        return errors;
    }
    let gates = items(was, "/schedulingGates");
    let gated = !gates.is_empty();
    if items(spec, "/schedulingGates").iter().any(|g| !gates.contains(g)) {
        errors.push(Error::forbidden(
            &path.child("schedulingGates"),
            "only deletion is allowed, but found new scheduling gate",
        ));
    }
    additions(&mut errors, spec, was, &path);
    if !errors.is_empty() {
        return errors;
    }
    let mut munged = spec.clone();
    allow(&mut munged, was, gated);
    if !same(&munged, was) {
        errors.push(Error::forbidden(&path, WORDS));
    }
    errors
}

fn counts(spec: &Value, was: &Value, path: &Path) -> Option<Error> {
    for list in ["containers", "initContainers"] {
        let pointer = format!("/{list}");
        if items(spec, &pointer).len() != items(was, &pointer).len() {
            return Some(Error::forbidden(&path.child(list), "pod updates may not add or remove containers"));
        }
    }
    None
}

fn deadline(errors: &mut Vec<Error>, spec: &Value, was: &Value, path: &Path) {
    let path = path.child("activeDeadlineSeconds");
    match (maybe_number(spec, "/activeDeadlineSeconds"), maybe_number(was, "/activeDeadlineSeconds")) {
        (Some(n), _) if !(0..=i64::from(i32::MAX)).contains(&n) => {
            errors.push(Error::invalid(&path, n, "must be between 0 and 2147483647, inclusive"));
        }
        (Some(n), Some(before)) if n > before => {
            errors.push(Error::invalid(&path, n, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            errors.push(Error::invalid(
                &path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

/// Tolerations may be added; of those that are there only `tolerationSeconds` may change.
fn additions(errors: &mut Vec<Error>, spec: &Value, was: &Value, path: &Path) {
    let bare = |t: &Value| {
        let mut t = t.clone();
        remove(&mut t, "tolerationSeconds");
        t
    };
    let new: Vec<Value> = items(spec, "/tolerations").iter().map(bare).collect();
    if items(was, "/tolerations").iter().any(|t| !new.contains(&bare(t))) {
        errors.push(Error::forbidden(
            &path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
}

/// Puts back what may have changed.
fn allow(munged: &mut Value, was: &Value, gated: bool) {
    for list in ["containers", "initContainers"] {
        let before = items(was, &format!("/{list}"));
        for (c, was) in items_mut(munged, list).zip(before) {
            set(c, "image", text(was, "/image"));
        }
    }
    let mut fields = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    if number(was, "/terminationGracePeriodSeconds") < 0
        && number(munged, "/terminationGracePeriodSeconds") == 1
    {
        fields.push("terminationGracePeriodSeconds");
    }
    if gated {
        fields.extend(["nodeSelector", "affinity"]);
    }
    for field in fields {
        match was.get(field) {
            Some(value) => set(munged, field, value.clone()),
            None => {
                remove(munged, field);
            }
        }
    }
}

/// Everything wrong with a change of a pod's status.
pub fn validate_status(new: &Value, old: &Value) -> Vec<Error> {
    let status = Path::new("status");
    let mut errors = Vec::new();
    let node = text(new, "/status/nominatedNodeName");
    if !node.is_empty() {
        let path = status.child("nominatedNodeName");
        crate::check::words(&mut errors, &path, node, coracle_api::meta::validation::dns1123_subdomain(node));
    }
    for list in ["containerStatuses", "initContainerStatuses"] {
        let pointer = format!("/status/{list}");
        for (i, container) in items(new, &pointer).iter().enumerate() {
            crate::check::non_negative(
                &mut errors,
                &status.child(list).index(i).child("restartCount"),
                at(container, "/restartCount"),
            );
        }
    }
    if text(new, "/spec/restartPolicy") != "Always" {
        revived(&mut errors, new, old, &status);
    }
    for (i, ip) in items(new, "/status/podIPs").iter().enumerate() {
        crate::check::ip(&mut errors, &status.child("podIPs").index(i), text(ip, "/ip"));
    }
    errors
}

/// A container that ended for good may not be said to run again.
fn revived(errors: &mut Vec<Error>, new: &Value, old: &Value, path: &Path) {
    let never = text(new, "/spec/restartPolicy") == "Never";
    for (i, was) in items(old, "/status/containerStatuses").iter().enumerate() {
        if !present(was, "/state/terminated") {
            continue;
        }
        if !never && number(was, "/state/terminated/exitCode") != 0 {
            continue;
        }
        let name = text(was, "/name");
        let now = items(new, "/status/containerStatuses").iter().find(|c| text(c, "/name") == name);
        if now.is_some_and(|c| !present(c, "/state/terminated")) {
            errors.push(Error::forbidden(
                &path.child("containerStatuses").index(i).child("state"),
                "may not be transitioned to non-terminated state",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_may_change() {
        let base = json!({"spec": {"containers": [{"name": "c", "image": "a"}], "tolerations": [{"key": "x"}], "activeDeadlineSeconds": 10}});
        let change = |f: &dyn Fn(&mut Value)| {
            let mut new = base.clone();
            f(&mut new);
            validate(&new, &base).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(change(&|p| p["spec"]["containers"][0]["image"] = json!("b")), "");
        assert_eq!(change(&|p| p["spec"]["activeDeadlineSeconds"] = json!(5)), "");
        assert_eq!(
            change(
                &|p| p["spec"]["tolerations"] = json!([{"key": "x", "tolerationSeconds": 1}, {"key": "y"}])
            ),
            ""
        );
        assert!(
            change(&|p| p["spec"]["activeDeadlineSeconds"] = json!(50))
                .contains("must be less than or equal to previous value")
        );
        assert!(change(&|p| p["spec"]["tolerations"] = json!([])).contains("existing toleration"));
        assert!(
            change(&|p| p["spec"]["containers"][0]["name"] = json!("d"))
                .starts_with("spec: Forbidden: pod updates may not change fields other than")
        );
        assert!(change(&|p| p["spec"]["nodeName"] = json!("n")).starts_with("spec: Forbidden"));
        assert!(
            change(&|p| p["spec"]["containers"] = json!([])).contains("may not add or remove containers")
        );
    }
}
