//! Asks for each metric of an autoscaler and says how many pods it wants.

use std::sync::Arc;

use coracle_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricSource, ExternalMetricStatus, MetricSpec, MetricStatus,
    MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricSource,
    PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Amount;

use super::custom::{self, CUSTOM, EXTERNAL, Values};
use super::metrics::{PodMetricsList, Refusal, Wanted, invalid, wanted};
use super::replicas::{Answer, State, Target, by_average, by_value, replicas};
use crate::scale::{Scale, Scales};
use crate::view::{HorizontalPodAutoscaler, Meta, Pod};
use crate::write::{self, Writer};

/// What one metric asks for.
pub struct Found {
    pub replicas: i64,
    pub why: String,
    pub status: MetricStatus,
}

/// What a metric is asked with.
pub struct Evaluation<'a> {
    pub writer: &'a Writer,
    pub scales: &'a Scales,
    pub scaler: &'a HorizontalPodAutoscaler,
    pub scale: &'a Scale,
    /// The pods of the target.
    pub pods: &'a [Arc<Pod>],
    /// `(up, down)`: how far from the target is near enough.
    pub tolerance: (f64, f64),
    pub now: Timestamp,
}

const PREFIX: &str = "the HPA was unable to compute the replica count:";

impl Evaluation<'_> {
    /// How many pods a metric asks for.
    ///
    /// # Errors
    /// Why it cannot be told: the reason of a condition and its words.
    pub async fn metric(&self, spec: &MetricSpec) -> Result<Found, Refusal> {
        match (spec.type_.as_str(), &spec.pods, &spec.object, &spec.external) {
            ("Resource" | "ContainerResource", ..) => self.resource(&wanted(spec)?).await,
            ("Pods", Some(pods), ..) => self.pods(spec, pods).await,
            ("Object", _, Some(object), _) => self.object(spec, object).await,
            ("External", .., Some(external)) => self.external(spec, external).await,
            _ => Err(invalid(spec)),
        }
    }

    fn ready(&self) -> i64 {
        i64::try_from(self.pods.iter().filter(|p| p.phase() == "Running" && p.is_ready()).count())
            .unwrap_or(0)
    }

    async fn resource(&self, wanted: &Wanted<'_>) -> Result<Found, Refusal> {
        let refused = |why: String| {
            let words = format!("{PREFIX} failed to get {} utilization: {why}", wanted.resource);
            ("FailedGetResourceMetric", words)
        };
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", self.scaler.namespace());
        let listed = self.writer.get::<PodMetricsList>(&path).await.map_err(|error| {
            let (resource, words) = (wanted.resource, write::words(&error));
            refused(format!("unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: {words}"))
        })?;
        let used = listed.used(wanted.resource, wanted.container);
        let state = State {
            pods: self.pods,
            used: &used,
            resource: wanted.resource,
            container: wanted.container,
            tolerance: self.tolerance,
            now: self.now,
        };
        let answer = replicas(&state, wanted.target, self.scale.wanted).map_err(refused)?;
        Ok(Found { replicas: answer.replicas, why: why(wanted), status: resource_status(wanted, &answer) })
    }

    // The first version of the API that is served.
    async fn custom(&self, path: &str) -> Result<Values, String> {
        let mut last = String::new();
        for version in CUSTOM {
            match self.writer.get::<Values>(&format!("{version}{path}")).await {
                Ok(values) => return Ok(values),
                Err(error) => {
                    last = write::words(&error);
                    if !write::is_not_found(&error) {
                        break;
                    }
                }
            }
        }
        Err(format!("unable to fetch metrics from custom metrics API: {last}"))
    }

    async fn pods(&self, spec: &MetricSpec, source: &PodsMetricSource) -> Result<Found, Refusal> {
        let name = &source.metric.name;
        let refused =
            |why: String| ("FailedGetPodsMetric", format!("{PREFIX} unable to get metric {name}: {why}"));
        let target = average(&source.target).ok_or_else(|| invalid(spec))?;
        let path =
            custom::path(self.scaler.namespace(), "pods/*", &source.metric, Some(&self.scale.selector));
        let used = self.custom(&path).await.map_err(refused)?.by_pod(self.now);
        let (pods, tolerance, now) = (self.pods, self.tolerance, self.now);
        let state = State { pods, used: &used, resource: "", container: None, tolerance, now };
        let answer = replicas(&state, Target::AverageValue(target), self.scale.wanted).map_err(refused)?;
        let current = MetricValueStatus { average_value: amount(answer.average), ..Default::default() };
        Ok(Found {
            replicas: answer.replicas,
            why: format!("pods metric {name}"),
            status: MetricStatus {
                type_: "Pods".into(),
                pods: Some(PodsMetricStatus { current, metric: source.metric.clone() }),
                ..MetricStatus::default()
            },
        })
    }

    async fn object(&self, spec: &MetricSpec, source: &ObjectMetricSource) -> Result<Found, Refusal> {
        let (object, name) = (&source.described_object, &source.metric.name);
        let refused = |why: String| {
            let of = format!("{} on {} {}", name, object.kind, object.name);
            ("FailedGetObjectMetric", format!("{PREFIX} unable to get metric {name}: {of}: {why}"))
        };
        let served = self.scales.resource(object.api_version.as_deref().unwrap_or("v1"), &object.kind).await;
        let served = served.map_err(refused)?;
        let resource = match served.resource.group.as_str() {
            "" => served.resource.plural.clone(),
            group => format!("{}.{group}", served.resource.plural),
        };
        let namespace = if served.namespaced { self.scaler.namespace() } else { "" };
        let path = custom::path(namespace, &format!("{resource}/{}", object.name), &source.metric, None);
        let used = self.custom(&path).await.map_err(refused)?.sum();
        let used = used.ok_or_else(|| refused("no metrics returned from custom metrics API".into()))?;
        let (replicas, current) = self.judge(spec, &source.target, used)?;
        Ok(Found {
            replicas,
            why: format!("{} metric {name}", object.kind),
            status: MetricStatus {
                type_: "Object".into(),
                object: Some(ObjectMetricStatus {
                    current,
                    described_object: object.clone(),
                    metric: source.metric.clone(),
                }),
                ..MetricStatus::default()
            },
        })
    }

    async fn external(&self, spec: &MetricSpec, source: &ExternalMetricSource) -> Result<Found, Refusal> {
        let name = &source.metric.name;
        let refused = |why: String| {
            let of = format!("external metric {}/{name}", self.scaler.namespace());
            ("FailedGetExternalMetric", format!("{PREFIX} unable to get {of}: {why}"))
        };
        let query = custom::query("labelSelector", source.metric.selector.as_ref());
        let query = query.map(|q| format!("?{q}")).unwrap_or_default();
        let (namespace, metric) = (self.scaler.namespace(), custom::escaped(name));
        let values: Values =
            self.writer.get(&format!("{EXTERNAL}/namespaces/{namespace}/{metric}{query}")).await.map_err(
                |error| {
                    let why = write::words(&error);
                    refused(format!("unable to fetch metrics from external metrics API: {why}"))
                },
            )?;
        let used = values.sum();
        let used = used.ok_or_else(|| refused("no metrics returned from external metrics API".into()))?;
        let (replicas, current) = self.judge(spec, &source.target, used)?;
        Ok(Found {
            replicas,
            why: format!("external metric {name}"),
            status: MetricStatus {
                type_: "External".into(),
                external: Some(ExternalMetricStatus { current, metric: source.metric.clone() }),
                ..MetricStatus::default()
            },
        })
    }

    // By a value as a whole, or a value for each pod.
    fn judge(
        &self,
        spec: &MetricSpec,
        target: &MetricTarget,
        used: i64,
    ) -> Result<(i64, MetricValueStatus), Refusal> {
        let (wanted, there) = (self.scale.wanted, self.scale.there);
        if let Some(target) = target.value.as_ref().and_then(|q| Quantity::parse(&q.0).ok()) {
            let replicas = by_value(used, target.milli_value(), wanted, self.ready(), self.tolerance);
            return Ok((replicas, MetricValueStatus { value: amount(used), ..Default::default() }));
        }
        let target = average(target).ok_or_else(|| invalid(spec))?;
        let replicas = by_average(used, target, there, self.tolerance);
        let each = used / there.max(1);
        Ok((replicas, MetricValueStatus { average_value: amount(each), ..Default::default() }))
    }
}

fn average(target: &MetricTarget) -> Option<i64> {
    Some(Quantity::parse(&target.average_value.as_ref()?.0).ok()?.milli_value())
}

fn amount(milli: i64) -> Option<Amount> {
    Some(Amount(Quantity::from_milli(milli).to_string()))
}

fn why(wanted: &Wanted<'_>) -> String {
    let (resource, container) = (wanted.resource, wanted.container);
    let what = match container {
        Some(container) => format!("{resource} container resource {container}"),
        None => format!("{resource} resource"),
    };
    match wanted.target {
        Target::Utilization(_) => format!("{what} utilization (percentage of request)"),
        Target::AverageValue(_) => what,
    }
}

fn resource_status(wanted: &Wanted<'_>, answer: &Answer) -> MetricStatus {
    let current = MetricValueStatus {
        average_utilization: answer.utilization.and_then(|u| i32::try_from(u).ok()),
        average_value: amount(answer.average),
        value: None,
    };
    let name = wanted.resource.to_string();
    match wanted.container {
        None => MetricStatus {
            type_: "Resource".into(),
            resource: Some(ResourceMetricStatus { current, name }),
            ..MetricStatus::default()
        },
        Some(container) => MetricStatus {
            type_: "ContainerResource".into(),
            container_resource: Some(ContainerResourceMetricStatus {
                container: container.into(),
                current,
                name,
            }),
            ..MetricStatus::default()
        },
    }
}
