//! Where a pod may run: node selectors, affinity, tolerations, spread, readiness gates.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use crate::check::{self, words};
use crate::value::{at, items, number, present, text};

/// `spec.nodeSelector`.
pub fn node_selector_map(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    errors.extend(rules::labels(spec.get("nodeSelector"), &path.child("nodeSelector")));
}

/// `spec.tolerations`.
pub fn tolerations(errors: &mut Vec<Error>, path: &Path, tolerations: &[Value]) {
    for (i, t) in tolerations.iter().enumerate() {
        let path = path.index(i);
        let operator_path = path.child("operator");
        let (key, operator, effect) = (text(t, "/key"), text(t, "/operator"), text(t, "/effect"));
        if !key.is_empty() {
            words(errors, &path.child("key"), key, rules::label_key(key));
        }
        if key.is_empty() && operator != "Exists" {
            errors.push(Error::invalid(
                &operator_path,
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if present(t, "/tolerationSeconds") && effect != "NoExecute" {
            errors.push(Error::invalid(
                &path.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        let value = text(t, "/value");
        match operator {
            "Equal" | "" => {
                words(errors, &operator_path, value, rules::label_value(value));
            }
            "Exists" if !value.is_empty() => {
                errors.push(Error::invalid(
                    &operator_path,
                    value,
                    "value must be empty when `operator` is 'Exists'",
                ));
            }
            "Exists" => {}
            other => errors.push(Error::not_supported(&operator_path, other, &["Equal", "Exists"])),
        }
        check::one_of(
            errors,
            &path.child("effect"),
            effect,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            false,
        );
    }
}

/// `spec.affinity`.
pub fn affinity(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let (affinity, path) = (at(spec, "/affinity"), path.child("affinity"));
    let node = at(affinity, "/nodeAffinity");
    let node_path = path.child("nodeAffinity");
    let required = at(node, "/requiredDuringSchedulingIgnoredDuringExecution");
    if !required.is_null() {
        let path =
            node_path.child("requiredDuringSchedulingIgnoredDuringExecution").child("nodeSelectorTerms");
        let terms = items(required, "/nodeSelectorTerms");
        if terms.is_empty() {
            errors.push(Error::required(&path, "must have at least one node selector term"));
        }
        for (i, term) in terms.iter().enumerate() {
            node_term(errors, term, &path.index(i));
        }
    }
    for (i, p) in items(node, "/preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        let path = node_path.child("preferredDuringSchedulingIgnoredDuringExecution").index(i);
        weight(errors, p, &path);
        node_term(errors, at(p, "/preference"), &path.child("preference"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = at(affinity, &format!("/{kind}"));
        let path = path.child(kind);
        for (i, term) in items(pods, "/requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            pod_term(errors, term, &path.child("requiredDuringSchedulingIgnoredDuringExecution").index(i));
        }
        for (i, p) in items(pods, "/preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            let path = path.child("preferredDuringSchedulingIgnoredDuringExecution").index(i);
            weight(errors, p, &path);
            pod_term(errors, at(p, "/podAffinityTerm"), &path.child("podAffinityTerm"));
        }
    }
}

fn weight(errors: &mut Vec<Error>, preferred: &Value, path: &Path) {
    let weight = number(preferred, "/weight");
    if !(1..=100).contains(&weight) {
        errors.push(Error::invalid(&path.child("weight"), weight, "must be in the range 1-100"));
    }
}

fn node_term(errors: &mut Vec<Error>, term: &Value, path: &Path) {
    for (i, r) in items(term, "/matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = items(r, "/values");
        match text(r, "/operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(Error::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(Error::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Exists" | "DoesNotExist" => {}
            "Gt" | "Lt" if values.len() != 1 => errors.push(Error::required(
                &path.child("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
            "Gt" | "Lt" => {}
            other => {
                errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
        let key = text(r, "/key");
        words(errors, &path.child("key"), key, rules::label_key(key));
    }
    for (i, r) in items(term, "/matchFields").iter().enumerate() {
        let path = path.child("matchFields").index(i);
        match text(r, "/operator") {
            "In" | "NotIn" if items(r, "/values").len() != 1 => errors.push(Error::required(
                &path.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            )),
            "In" | "NotIn" => {}
            other => {
                errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
        let key = text(r, "/key");
        if key != "metadata.name" {
            errors.push(Error::invalid(&path.child("key"), key, "not a valid field selector key"));
        }
    }
}

fn pod_term(errors: &mut Vec<Error>, term: &Value, path: &Path) {
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = term.get(field) {
            check::label_selector(errors, &path.child(field), selector);
        }
    }
    for (i, namespace) in items(term, "/namespaces").iter().enumerate() {
        let namespace = namespace.as_str().unwrap_or_default();
        words(errors, &path.child("namespaces").index(i), namespace, rules::dns1123_label(namespace));
    }
    let key = text(term, "/topologyKey");
    let path = path.child("topologyKey");
    if key.is_empty() {
        errors.push(Error::required(&path, "can not be empty"));
    }
    words(errors, &path, key, rules::label_key(key));
}

/// `spec.readinessGates`.
pub fn readiness_gates(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    for (i, gate) in items(spec, "/readinessGates").iter().enumerate() {
        let name = text(gate, "/conditionType");
        words(
            errors,
            &path.child("readinessGates").index(i).child("conditionType"),
            name,
            rules::qualified_name(name),
        );
    }
}

/// `spec.topologySpreadConstraints`.
pub fn spread(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, c) in items(spec, "/topologySpreadConstraints").iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(i);
        let skew = number(c, "/maxSkew");
        if skew <= 0 {
            errors.push(Error::invalid(&path.child("maxSkew"), skew, "must be greater than zero"));
        }
        let key = text(c, "/topologyKey");
        if key.is_empty() {
            errors.push(Error::required(&path.child("topologyKey"), "can not be empty"));
        } else {
            words(errors, &path.child("topologyKey"), key, rules::label_key(key));
        }
        let when = text(c, "/whenUnsatisfiable");
        check::one_of(
            errors,
            &path.child("whenUnsatisfiable"),
            when,
            &["DoNotSchedule", "ScheduleAnyway"],
            true,
        );
        if seen.contains(&(key, when)) {
            errors.push(Error::duplicate(&path, format!("{{{key}, {when}}}")));
        }
        seen.push((key, when));
        if let Some(domains) = at(c, "/minDomains").as_i64() {
            if domains <= 0 {
                errors.push(Error::invalid(&path.child("minDomains"), domains, "must be greater than zero"));
            }
            if when != "DoNotSchedule" {
                let words = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                errors.push(Error::invalid(&path.child("minDomains"), domains, words));
            }
        }
        if let Some(selector) = c.get("labelSelector") {
            check::label_selector(errors, &path.child("labelSelector"), selector);
        }
    }
}
