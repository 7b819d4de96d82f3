//! Version 1: one field for CPU. What it cannot say lies in annotations, so that nothing is lost when a client of old writes.

use coracle_api::field::Error;
use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::{Column, Strategy, StrategyContext};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{HorizontalPodAutoscaler, is_cpu_percent};
use crate::value::{at, items, maybe_number, number, object, present, remove, set, set_default};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// The strategy of version 1: checks and shows the object as version 2.
pub struct V1;

fn as_v2(obj: &Value) -> Value {
    let mut v2 = obj.clone();
    V1.to_storage(&mut v2);
    v2
}

#[async_trait::async_trait]
impl Strategy for V1 {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set_default(status, "currentReplicas", 0);
            set_default(status, "desiredReplicas", 0);
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "minReplicas", 1);
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        set(obj, "status", json!({"currentReplicas": 0, "desiredReplicas": 0}));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        HorizontalPodAutoscaler.validate_create(&as_v2(obj))
    }

    fn columns(&self) -> &[Column] {
        HorizontalPodAutoscaler.columns()
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        HorizontalPodAutoscaler.row(&as_v2(obj), now)
    }

    fn converts(&self) -> bool {
        true
    }

    fn from_storage(&self, obj: &mut Value) {
        set(obj, "apiVersion", "autoscaling/v1");
        let Some(spec) = object(obj, "spec") else { return };
        let metrics = remove(spec, "metrics").unwrap_or_default();
        let behavior = remove(spec, "behavior").unwrap_or_default();
        let (cpu, others): (Vec<&Value>, Vec<&Value>) =
            items(&metrics, "").iter().partition(|m| is_cpu_percent(m));
        if let Some(percent) =
            cpu.first().and_then(|m| maybe_number(m, "/resource/target/averageUtilization"))
        {
            set(spec, "targetCPUUtilizationPercentage", percent);
        }
        if !others.is_empty() {
            meta::set_annotation(obj, METRICS, &json!(others).to_string());
        }
        if behavior.is_object() {
            meta::set_annotation(obj, BEHAVIOR, &written(&behavior));
        }
        let Some(status) = object(obj, "status") else { return };
        let current = remove(status, "currentMetrics").unwrap_or_default();
        remove(status, "conditions");
        let used = items(&current, "").iter().find(|m| at(m, "/resource/name") == "cpu");
        if let Some(percent) = used.and_then(|m| maybe_number(m, "/resource/current/averageUtilization")) {
            set(status, "currentCPUUtilizationPercentage", percent);
        }
        set_default(status, "currentReplicas", 0);
    }

    fn to_storage(&self, obj: &mut Value) {
        set(obj, "apiVersion", "autoscaling/v2");
        let parsed = |key: &str| {
            let text = meta::annotation(obj, key)?;
            serde_json::from_str::<Value>(text).ok()
        };
        let others = parsed(METRICS).unwrap_or_default();
        let behavior = parsed(BEHAVIOR).map(|b| read(&b)).unwrap_or_default();
        for key in [METRICS, BEHAVIOR] {
            drop_annotation(obj, key);
        }
        let Some(spec) = object(obj, "spec") else { return };
        let mut metrics: Vec<Value> = items(&others, "").to_vec();
        if let Some(percent) = remove(spec, "targetCPUUtilizationPercentage").and_then(|p| p.as_i64()) {
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": percent}}}));
        }
        set(spec, "metrics", metrics);
        if behavior.is_object() {
            set(spec, "behavior", behavior);
        }
        if let Some(status) = object(obj, "status") {
            let used = remove(status, "currentCPUUtilizationPercentage").and_then(|p| p.as_i64());
            let metrics = used.map(|percent| {
                json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent, "averageValue": "0"}}}])
            });
            set(status, "currentMetrics", metrics.unwrap_or_default());
        }
        HorizontalPodAutoscaler.default(obj);
    }
}

fn drop_annotation(obj: &mut Value, key: &str) {
    let Some(metadata) = obj.get_mut("metadata") else { return };
    if let Some(annotations) = metadata.get_mut("annotations") {
        remove(annotations, key);
    }
    if at(metadata, "/annotations").as_object().is_some_and(|a| a.is_empty()) {
        remove(metadata, "annotations");
    }
}

/// A behavior as Kubernetes writes it into the annotation: the fields of its Go struct, in their order.
fn written(behavior: &Value) -> String {
    let rules = |direction: &str| {
        let rules = at(behavior, &format!("/{direction}"));
        if rules.is_null() {
            return "null".to_string();
        }
        let policies: Vec<String> = items(rules, "/policies")
            .iter()
            .map(|p| {
                let (value, period) = (number(p, "/value"), number(p, "/periodSeconds"));
                format!(r#"{{"Type":{},"Value":{value},"PeriodSeconds":{period}}}"#, at(p, "/type"))
            })
            .collect();
        format!(
            r#"{{"StabilizationWindowSeconds":{},"SelectPolicy":{},"Policies":[{}],"Tolerance":{}}}"#,
            at(rules, "/stabilizationWindowSeconds"),
            at(rules, "/selectPolicy"),
            policies.join(","),
            at(rules, "/tolerance")
        )
    };
    format!(r#"{{"ScaleUp":{},"ScaleDown":{}}}"#, rules("scaleUp"), rules("scaleDown"))
}

/// The reverse of [`written`].
fn read(written: &Value) -> Value {
    let mut behavior = json!({});
    for (from, to) in [("ScaleUp", "scaleUp"), ("ScaleDown", "scaleDown")] {
        let rules = at(written, &format!("/{from}"));
        if !rules.is_object() {
            continue;
        }
        let mut out = json!({});
        for (from, to) in [
            ("StabilizationWindowSeconds", "stabilizationWindowSeconds"),
            ("SelectPolicy", "selectPolicy"),
            ("Tolerance", "tolerance"),
        ] {
            if present(rules, &format!("/{from}")) {
                set(&mut out, to, at(rules, &format!("/{from}")).clone());
            }
        }
        let policies: Vec<Value> = items(rules, "/Policies")
            .iter()
            .map(|p| json!({"type": at(p, "/Type"), "value": at(p, "/Value"), "periodSeconds": at(p, "/PeriodSeconds")}))
            .collect();
        set(&mut out, "policies", policies);
        set(&mut behavior, to, out);
    }
    behavior
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let mut stored = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "minReplicas": 1,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]},
            "status": {"currentReplicas": 1, "desiredReplicas": 2, "currentMetrics": null}});
        HorizontalPodAutoscaler.default(&mut stored);
        let mut there_and_back = stored.clone();
        V1.from_storage(&mut there_and_back);
        assert_eq!(number(&there_and_back, "/spec/targetCPUUtilizationPercentage"), 50);
        assert!(!present(&there_and_back, "/spec/metrics"));
        V1.to_storage(&mut there_and_back);
        assert_eq!(there_and_back, stored);
    }
}
