//! CronJob of `batch`.

mod schedule;

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::value::{at, flag, items, object, reset, set_default, text};
use crate::{check, job, table, workload};

/// The names of its Jobs end in 11 more characters.
const NAME_MAX: usize = 52;

static COLUMNS: [Column; 10] = [
    table::NAME,
    table::string("Schedule", "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron."),
    table::string("Timezone", "The time zone name for the given schedule."),
    Column::new("Suspend", "boolean", "", "Whether subsequent executions are suspended.", 0),
    table::integer("Active", "The number of currently running jobs."),
    table::string("Last Schedule", "When the job was last successfully scheduled."),
    table::AGE,
    table::wide("Containers", "Names of each container in the template."),
    table::wide("Images", "Images referenced by each container in the template."),
    table::wide("Selector", "A label query over pods that should match the pod count."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("batch", "v1", "CronJob", "cronjobs", Arc::new(CronJob))
        .short_names(&["cj"])
        .categories(&["all"])
        .subresource(Subresource::status("CronJob"))
}

struct CronJob;

#[async_trait::async_trait]
impl Strategy for CronJob {
    fn default(&self, obj: &mut Value) {
        object(obj, "status");
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "concurrencyPolicy", "Allow");
        set_default(spec, "suspend", false);
        set_default(spec, "successfulJobsHistoryLimit", 3);
        set_default(spec, "failedJobsHistoryLimit", 1);
        if let Some(job) = object(spec, "jobTemplate").and_then(|t| object(t, "spec")) {
            workload::default_template(job);
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        spec(&mut errors, at(obj, "/spec"), &Path::new("spec"));
        let name = text(obj, "/metadata/name");
        if name.len() > NAME_MAX {
            let path = Path::new("metadata").child("name");
            errors.push(Error::invalid(&path, name, format!("must be no more than {NAME_MAX} characters")));
        }
        errors
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        spec(&mut errors, at(new, "/spec"), &Path::new("spec"));
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        let pod = at(obj, "/spec/jobTemplate/spec/template/spec");
        crate::pod::warnings::pod_spec(pod, "spec.jobTemplate.spec.template.spec")
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let last = match text(obj, "/status/lastScheduleTime") {
            "" => "<none>".into(),
            time => table::since(time, now),
        };
        let pod = at(obj, "/spec/jobTemplate/spec/template/spec");
        vec![
            table::name(obj),
            text(obj, "/spec/schedule").into(),
            table::or_none(text(obj, "/spec/timeZone")),
            flag(obj, "/spec/suspend").into(),
            items(obj, "/status/active").len().into(),
            last.into(),
            table::age(obj, now),
            table::names_of(pod, "/name"),
            table::names_of(pod, "/image"),
            table::selector(at(obj, "/spec/jobTemplate/spec/selector")).into(),
        ]
    }
}

fn spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let given = text(spec, "/schedule");
    let at_schedule = path.child("schedule");
    match given {
        "" => errors.push(Error::required(&at_schedule, "")),
        zoned if zoned.contains("TZ") => {
            let words = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(Error::invalid(&at_schedule, zoned, words));
        }
        other => {
            if let Err(why) = schedule::check(other) {
                errors.push(Error::invalid(&at_schedule, other, why));
            }
        }
    }
    let deadline = at(spec, "/startingDeadlineSeconds");
    check::non_negative(errors, &path.child("startingDeadlineSeconds"), deadline);
    zone(errors, at(spec, "/timeZone"), &path.child("timeZone"));
    let policies = ["Allow", "Forbid", "Replace"];
    let policy = text(spec, "/concurrencyPolicy");
    check::one_of(errors, &path.child("concurrencyPolicy"), policy, &policies, true);
    let template = path.child("jobTemplate").child("spec");
    job::job_spec(errors, at(spec, "/jobTemplate/spec"), &template);
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        check::non_negative(errors, &path.child(field), at(spec, &format!("/{field}")));
    }
}

fn zone(errors: &mut Vec<Error>, zone: &Value, path: &Path) {
    let Some(name) = zone.as_str() else { return };
    if name.is_empty() {
        errors.push(Error::invalid(path, name, "timeZone must be nil or non-empty string"));
    } else if name.eq_ignore_ascii_case("local") {
        let words = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(Error::invalid(path, name, words));
    } else if TimeZone::get(name).is_err() {
        errors.push(Error::invalid(path, name, format!("unknown time zone {name}")));
    }
}
