//! Job of `batch`. Its selector and the labels behind it are made from its uid, unless the client takes that on itself.

mod spec;

pub use spec::job_spec;

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{
    at, flag, items, maybe_number, number, object, present, reset, same, set, set_default, text,
};
use crate::{check, table, workload};

/// The label that tells the pods of one Job from all others.
pub const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";
/// Labels of old, still set beside the new ones.
const OLD_LABELS: [&str; 2] = ["controller-uid", "job-name"];
/// Where retries are counted for each index, no number ends the whole Job.
const NO_LIMIT: i64 = i32::MAX as i64;

static COLUMNS: [Column; 8] = [
    table::NAME,
    table::string("Status", "Status of the job."),
    table::string("Completions", "The number of succeeded pods and of those that are wanted."),
    table::string("Duration", "Time required to complete the job."),
    table::AGE,
    table::wide("Containers", "Names of each container in the template."),
    table::wide("Images", "Images referenced by each container in the template."),
    table::wide("Selector", "A label query over pods that should match the pod count."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("batch", "v1", "Job", "jobs", Arc::new(Job))
        .categories(&["all"])
        .subresource(Subresource::status("Job"))
}

struct Job;

/// Fills in the spec of a Job that is one, not a template of one.
fn default_spec(spec: &mut Value) {
    if !present(spec, "/completions") && !present(spec, "/parallelism") {
        set(spec, "completions", 1);
    }
    set_default(spec, "parallelism", 1);
    let each = present(spec, "/backoffLimitPerIndex");
    set_default(spec, "backoffLimit", if each { NO_LIMIT } else { 6 });
    set_default(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    let policy = present(spec, "/podFailurePolicy");
    set_default(spec, "podReplacementPolicy", if policy { "Failed" } else { "TerminatingOrFailed" });
    set_default(spec, "manualSelector", false);
}

/// The selector of a new Job, and the labels that it selects by.
fn generate_selector(obj: &mut Value) {
    let (uid, name) =
        (meta::uid(obj).unwrap_or_default().to_string(), text(obj, "/metadata/name").to_string());
    let Some(spec) = object(obj, "spec") else { return };
    if let Some(template) = object(spec, "template")
        && let Some(labels) = object(template, "metadata").and_then(|m| object(m, "labels"))
    {
        let [old_uid, old_name] = OLD_LABELS;
        for (label, value) in [(UID_LABEL, &uid), (old_uid, &uid), (NAME_LABEL, &name), (old_name, &name)] {
            set_default(labels, label, value.as_str());
        }
    }
    if let Some(map) = object(spec, "selector").and_then(|s| object(s, "matchLabels")) {
        set_default(map, UID_LABEL, uid);
    }
}

#[async_trait::async_trait]
impl Strategy for Job {
    fn default(&self, obj: &mut Value) {
        object(obj, "status");
        let Some(spec) = object(obj, "spec") else { return };
        default_spec(spec);
        workload::default_template(spec);
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        if !flag(obj, "/spec/manualSelector") {
            generate_selector(obj);
        }
        let labels = at(obj, "/spec/template/metadata/labels").clone();
        if meta::labels(obj).next().is_none() && labels.is_object() {
            meta::set_metadata(obj, "labels", labels);
        }
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        generated(&mut errors, obj, &path);
        whole_spec(&mut errors, spec, &path);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let path = Path::new("spec");
        whole_spec(&mut errors, at(new, "/spec"), &path);
        spec::update(&mut errors, new, old, &path);
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        workload::status(&mut errors, new, &["active", "succeeded", "failed", "ready", "terminating"], &[]);
        let path = Path::new("status").child("conditions");
        for ended in ["Complete", "Failed"] {
            if condition(old, ended).is_some() && condition(new, ended).is_none() {
                errors.push(Error::invalid(
                    &path,
                    Value::Bool(false),
                    format!("cannot disable {ended}=True condition"),
                ));
            }
        }
        if condition(new, "Complete").is_some() && condition(new, "Failed").is_some() {
            errors.push(Error::invalid(
                &path,
                Value::Bool(true),
                "cannot set Complete=True and Failed=true conditions",
            ));
        }
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
            state(obj).into(),
            completions(obj).into(),
            duration(obj, now).into(),
            table::age(obj, now),
            table::containers(obj, "/name"),
            table::containers(obj, "/image"),
            table::selector(at(obj, "/spec/selector")).into(),
        ]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        (path == "status.successful").then(|| number(obj, "/status/succeeded").to_string())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["status.successful"]
    }

    fn orphans_by_default(&self) -> bool {
        true
    }
}

/// A selector that the server made must be as it made it.
fn generated(errors: &mut Vec<Error>, obj: &Value, path: &Path) {
    let selector = at(obj, "/spec/selector");
    if flag(obj, "/spec/manualSelector") || selector.is_null() {
        return;
    }
    let uid = meta::uid(obj).unwrap_or_default();
    let expected = |label: &str| json!({"matchLabels": {label: uid}});
    if !same(selector, &expected(UID_LABEL)) && !same(selector, &expected("controller-uid")) {
        errors.push(Error::invalid(
            &path.child("selector"),
            selector.clone(),
            "`selector` not auto-generated",
        ));
    }
}

fn whole_spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    job_spec(errors, spec, path);
    workload::selector(errors, spec, path);
    let selector = workload::given_selector(spec);
    if selector.is_null() || !check::selector_matches(selector, at(spec, "/template/metadata/labels")) {
        workload::unmatched(errors, spec, path);
    }
}

fn condition<'a>(obj: &'a Value, kind: &str) -> Option<&'a Value> {
    items(obj, "/status/conditions").iter().find(|c| text(c, "/type") == kind && text(c, "/status") == "True")
}

fn state(obj: &Value) -> &'static str {
    let has = |kind| condition(obj, kind).is_some();
    match () {
        _ if has("Complete") => "Complete",
        _ if has("Failed") => "Failed",
        _ if meta::deletion_timestamp(obj).is_some() => "Terminating",
        _ if has("Suspended") => "Suspended",
        _ if has("FailureTarget") => "FailureTarget",
        _ if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        _ => "Running",
    }
}

fn completions(obj: &Value) -> String {
    let done = number(obj, "/status/succeeded");
    match (maybe_number(obj, "/spec/completions"), number(obj, "/spec/parallelism")) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, several) if several > 1 => format!("{done}/1 of {several}"),
        _ => format!("{done}/1"),
    }
}

fn duration(obj: &Value, now: Timestamp) -> String {
    let Some(start) = time::parse(text(obj, "/status/startTime")) else { return String::new() };
    let failed = condition(obj, "Failed").and_then(|c| time::parse(text(c, "/lastTransitionTime")));
    let end = time::parse(text(obj, "/status/completionTime")).or(failed).unwrap_or(now);
    table::duration(end.as_second() - start.as_second())
}
