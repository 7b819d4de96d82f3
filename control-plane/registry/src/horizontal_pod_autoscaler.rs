//! HorizontalPodAutoscaler of `autoscaling`: stored and served as v2, and served as v1, whose fields are fewer.

mod v1;
mod validation;

use std::sync::Arc;

use coracle_api::field::Error;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::table;
use crate::value::{at, items, number, object, present, reset, set, set_default, text};

/// Utilization of CPU that is aimed at where no metric is named, in percent of what pods request.
const CPU_PERCENT: i64 = 80;

static COLUMNS: [Column; 7] = [
    table::NAME,
    table::string("Reference", "The resource that is scaled."),
    table::string("Targets", "What is measured and what is aimed at."),
    table::string("MinPods", "The lower limit for the number of replicas."),
    table::string("MaxPods", "The upper limit for the number of replicas."),
    table::string("Replicas", "The current number of replicas."),
    table::AGE,
];

fn define(version: &str, strategy: Arc<dyn Strategy>) -> ResourceDef {
    let plural = "horizontalpodautoscalers";
    ResourceDef::new("autoscaling", version, "HorizontalPodAutoscaler", plural, strategy)
        .short_names(&["hpa"])
        .categories(&["all"])
        .subresource(Subresource::status("HorizontalPodAutoscaler"))
}

/// The resource in the version that is stored.
pub fn v2() -> ResourceDef {
    define("v2", Arc::new(HorizontalPodAutoscaler))
}

/// The resource in the version of old.
pub fn v1() -> ResourceDef {
    define("v1", Arc::new(v1::V1))
}

struct HorizontalPodAutoscaler;

fn empty_status() -> Value {
    json!({"currentMetrics": null, "desiredReplicas": 0})
}

fn default_rules(behavior: &mut Value, direction: &str, policies: Value, window: Option<i64>) {
    let Some(rules) = object(behavior, direction) else { return };
    set_default(rules, "selectPolicy", "Max");
    if let Some(window) = window {
        set_default(rules, "stabilizationWindowSeconds", window);
    }
    if items(rules, "/policies").is_empty() {
        set(rules, "policies", policies);
    }
}

#[async_trait::async_trait]
impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set_default(status, "desiredReplicas", 0);
            set_default(status, "currentMetrics", Value::Null);
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "minReplicas", 1);
        if items(spec, "/metrics").is_empty() {
            set(
                spec,
                "metrics",
                json!([{"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": CPU_PERCENT}}}]),
            );
        }
        if let Some(behavior) = spec.get_mut("behavior").filter(|b| b.is_object()) {
            let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
            default_rules(behavior, "scaleUp", up, Some(0));
            let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
            default_rules(behavior, "scaleDown", down, None);
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", empty_status());
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        validation::spec(at(obj, "/spec"))
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        crate::workload::status(&mut errors, new, &["currentReplicas", "desiredReplicas"], &[]);
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let reference = at(obj, "/spec/scaleTargetRef");
        vec![
            table::name(obj),
            format!("{}/{}", text(reference, "/kind"), text(reference, "/name")).into(),
            targets(obj).into(),
            number(obj, "/spec/minReplicas").to_string().into(),
            number(obj, "/spec/maxReplicas").to_string().into(),
            number(obj, "/status/currentReplicas").into(),
            table::age(obj, now),
        ]
    }
}

/// A metric of the spec, or its counterpart in the status: its kind's own part.
fn part<'a>(metric: &'a Value, holder: &str) -> &'a Value {
    let field = match text(metric, "/type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return &Value::Null,
    };
    at(metric, &format!("/{field}{holder}"))
}

/// `cpu: 12%/80%, 3/10 (avg)`, of the first two metrics.
fn targets(obj: &Value) -> String {
    let metrics = items(obj, "/spec/metrics");
    let current = items(obj, "/status/currentMetrics");
    if metrics.is_empty() {
        return "<none>".into();
    }
    let shown: Vec<String> = metrics
        .iter()
        .take(2)
        .enumerate()
        .map(|(i, m)| target(m, current.get(i).unwrap_or(&Value::Null)))
        .collect();
    let list = shown.join(", ");
    match metrics.len() {
        0..=2 => list,
        n => format!("{list} + {} more...", n - shown.len()),
    }
}

fn target(metric: &Value, current: &Value) -> String {
    let (wanted, now) = (part(metric, "/target"), part(current, "/current"));
    let quantity = |v: &Value, field: &str| at(v, field).as_str().map(str::to_string);
    let unknown = || "<unknown>".to_string();
    let name = match text(metric, "/type") {
        "Resource" => format!("{}: ", text(metric, "/resource/name")),
        "ContainerResource" => format!("{}: ", text(metric, "/containerResource/name")),
        _ => String::new(),
    };
    if present(wanted, "/averageUtilization") {
        let used = at(now, "/averageUtilization").as_i64().map_or_else(unknown, |n| format!("{n}%"));
        return format!("{name}{used}/{}%", number(wanted, "/averageUtilization"));
    }
    if let Some(average) = quantity(wanted, "/averageValue") {
        let used = quantity(now, "/averageValue").unwrap_or_else(unknown);
        let kind = if matches!(text(metric, "/type"), "Object" | "External") { " (avg)" } else { "" };
        return format!("{name}{used}/{average}{kind}");
    }
    let used = quantity(now, "/value").unwrap_or_else(unknown);
    format!("{name}{used}/{}", quantity(wanted, "/value").unwrap_or_else(unknown))
}

/// Every metric but the one that v1 has a field for.
fn is_cpu_percent(metric: &Value) -> bool {
    text(metric, "/type") == "Resource"
        && text(metric, "/resource/name") == "cpu"
        && text(metric, "/resource/target/type") == "Utilization"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_aimed_at() {
        let mut h = json!({"spec": {"maxReplicas": 3}});
        HorizontalPodAutoscaler.default(&mut h);
        assert_eq!(targets(&h), "cpu: <unknown>/80%");
        h["status"]["currentMetrics"] =
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12}}}]);
        assert_eq!(targets(&h), "cpu: 12%/80%");
        h["spec"]["metrics"] = json!([{"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}}]);
        assert_eq!(targets(&h), "<unknown>/10");
    }
}
