//! What may be wrong with the spec of a Job, and what of it may change.

use coracle_api::field::{Error, Path};
use serde_json::Value;

use crate::value::{at, flag, maybe_number, number, object, present, same, set, text};
use crate::{check, workload};

const MODES: [&str; 2] = ["NonIndexed", "Indexed"];
/// Most completions of an indexed Job.
const COMPLETIONS_MAX: i64 = 1_000_000_000;

/// Everything wrong with the spec of a Job, or of the template of one, but its selector.
pub fn job_spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        check::non_negative(errors, &path.child(field), at(spec, &format!("/{field}")));
    }
    indexed(errors, spec, path);
    let replacement = text(spec, "/podReplacementPolicy");
    let supported = ["Failed", "TerminatingOrFailed"];
    check::one_of(errors, &path.child("podReplacementPolicy"), replacement, &supported, false);
    failure_policy(errors, spec, path);
    let template = path.child("template");
    workload::template(errors, at(spec, "/template"), &template);
    let policy = text(spec, "/template/spec/restartPolicy");
    let at_policy = template.child("spec").child("restartPolicy");
    if matches!(policy, "" | "Always") {
        errors.push(Error::required(&at_policy, "valid values: \"OnFailure\", \"Never\""));
    } else if present(spec, "/podFailurePolicy") && policy != "Never" {
        let words = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.push(Error::invalid(&at_policy, policy, words));
    }
}

fn indexed(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let mode = text(spec, "/completionMode");
    check::one_of(errors, &path.child("completionMode"), mode, &MODES, false);
    if mode == "Indexed" {
        let path = path.child("completions");
        match maybe_number(spec, "/completions") {
            None => errors.push(Error::required(&path, "when completion mode is Indexed")),
            Some(n) if n > COMPLETIONS_MAX => {
                errors.push(Error::invalid(
                    &path,
                    n,
                    format!("must be less than or equal to {COMPLETIONS_MAX}"),
                ));
            }
            Some(_) => {}
        }
        return;
    }
    if let Some(n) = maybe_number(spec, "/backoffLimitPerIndex") {
        errors.push(Error::invalid(
            &path.child("backoffLimitPerIndex"),
            n,
            "requires indexed completion mode",
        ));
    }
    if let Some(n) = maybe_number(spec, "/maxFailedIndexes") {
        let words = "when maxFailedIndexes is specified, backoffLimitPerIndex is required";
        errors.push(Error::required(&path.child("backoffLimitPerIndex"), format!("{words} ({n})")));
    }
    if present(spec, "/successPolicy") {
        let words = "requires indexed completion mode";
        errors.push(Error::invalid(&path.child("successPolicy"), at(spec, "/successPolicy").clone(), words));
    }
}

fn failure_policy(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let path = path.child("podFailurePolicy").child("rules");
    for (i, rule) in crate::value::items(spec, "/podFailurePolicy/rules").iter().enumerate() {
        let path = path.index(i);
        let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
        check::one_of(errors, &path.child("action"), text(rule, "/action"), &actions, true);
        let (codes, conditions) = (present(rule, "/onExitCodes"), present(rule, "/onPodConditions"));
        if codes && conditions {
            let words = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.push(Error::invalid(&path, rule.clone(), words));
        } else if !codes && !conditions {
            let words = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.push(Error::invalid(&path, rule.clone(), words));
        }
    }
}

/// What may not change.
pub fn update(errors: &mut Vec<Error>, new: &Value, old: &Value, path: &Path) {
    let fixed = |errors: &mut Vec<Error>, field: &'static str| {
        let pointer = format!("/spec/{field}");
        check::immutable(errors, &path.child(field), at(new, &pointer), at(old, &pointer));
    };
    if !elastic(new, old) {
        fixed(errors, "completions");
    }
    fixed(errors, "selector");
    let template = allowed_template(new, old);
    check::immutable(errors, &path.child("template"), &template, at(old, "/spec/template"));
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        fixed(errors, field);
    }
}

/// An indexed Job may change completions together with parallelism.
fn elastic(new: &Value, old: &Value) -> bool {
    let both = |obj: &Value| (maybe_number(obj, "/spec/completions"), maybe_number(obj, "/spec/parallelism"));
    let (new_count, new_parallel) = both(new);
    let (old_count, _) = both(old);
    new_count == old_count
        || (text(old, "/spec/completionMode") == "Indexed"
            && new_count.is_some()
            && new_count == new_parallel)
}

/// The new template with what a Job that has not started yet may change as it was.
fn allowed_template(new: &Value, old: &Value) -> Value {
    let mut template = at(new, "/spec/template").clone();
    let before = at(old, "/spec/template");
    let waiting = flag(old, "/spec/suspend")
        && number(old, "/status/active") == 0
        && !present(old, "/status/startTime");
    if !waiting || same(&template, before) {
        return template;
    }
    let mut put_back = |part: &str, fields: &[&str]| {
        let Some(part_of) = object(&mut template, part) else { return };
        for field in fields {
            set(part_of, field, at(before, &format!("/{part}/{field}")).clone());
        }
    };
    put_back("metadata", &["labels", "annotations"]);
    put_back("spec", &["nodeSelector", "affinity", "tolerations", "schedulingGates"]);
    template
}
