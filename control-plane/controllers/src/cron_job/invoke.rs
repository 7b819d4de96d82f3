//! CronJobs that call an HTTP handler instead of making a Job: no container is started.
//!
//! The annotation [`ANNOTATION`] names a Service of the CronJob's namespace, its port and a path:
//! `http://reports:8080/nightly`. The call is a POST through the API's proxy of Services, with the scheduled time as JSON;
//! an answer of 2xx is a success. Schedule, time zone, suspension, starting deadline and concurrency policy hold as for
//! Jobs; `jobTemplate.spec.activeDeadlineSeconds` bounds the call, 30 s unless set. A failed call is told by an Event and
//! not tried again before the next time.

use std::time::Duration;

use crate::view::{CronJob, Meta};

/// Where a CronJob calls.
pub const ANNOTATION: &str = "coracle.dev/invoke";
const PATIENCE: Duration = Duration::from_secs(30);

/// The path in the API under which a CronJob's target is called; None where it makes Jobs.
///
/// # Errors
/// What is wrong with the annotation.
pub fn target(cron: &CronJob) -> Option<Result<String, String>> {
    let text = cron.annotation(ANNOTATION)?;
    let path = || {
        let rest = text.strip_prefix("http://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, port) = host.split_once(':').unwrap_or((host, "80"));
        let plain =
            |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let clean = path.bytes().all(|b| b.is_ascii_graphic()) && !path.split('/').any(|part| part == "..");
        (plain(name) && plain(port) && clean)
            .then(|| format!("/api/v1/namespaces/{}/services/{name}:{port}/proxy/{path}", cron.namespace()))
    };
    Some(path().ok_or_else(|| {
        format!("annotation {ANNOTATION}: {text:?} is no address such as http://SERVICE:PORT/PATH of this namespace")
    }))
}

/// How long a call may take.
pub fn patience(cron: &CronJob) -> Duration {
    let seconds =
        cron.spec.job_template.pointer("/spec/activeDeadlineSeconds").and_then(serde_json::Value::as_u64);
    seconds.map_or(PATIENCE, |seconds| Duration::from_secs(seconds.clamp(1, 3600)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_target_is_a_service_of_the_namespace() {
        let target = |text: &str| {
            let meta = json!({ "name": "c", "namespace": "shop", "annotations": { ANNOTATION: text } });
            target(&serde_json::from_value(json!({ "metadata": meta })).unwrap()).unwrap()
        };
        let path = |rest: &str| Ok(format!("/api/v1/namespaces/shop/services/{rest}"));
        assert_eq!(target("http://reports:8080/nightly?full=1"), path("reports:8080/proxy/nightly?full=1"));
        assert_eq!(target("http://reports"), path("reports:80/proxy/"));
        for wrong in [
            "",
            "reports",
            "https://reports",
            "http://reports.other/x",
            "http:///x",
            "http://a/../../x",
            "http://a b/",
        ] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
        assert!(super::target(&CronJob::default()).is_none());
    }
}
