//! Looks at each autoscaler again and again, and scales its target.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerStatus, MetricStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::behavior::{History, rules};
use super::conditions::set;
use super::evaluate::Evaluation;
use super::metrics::Refusal;
use crate::cache::{Key, key_of};
use crate::events::{Recorder, whole_second};
use crate::informers::Informers;
use crate::ownership::matches;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::scale::{Scale, Scales};
use crate::view::{HorizontalPodAutoscaler, Meta};
use crate::write::{self, Writer};

/// How often autoscalers are looked at, and how slowly they scale down unless they say so themselves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub period: Duration,
    pub down_stabilization: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { period: Duration::from_secs(15), down_stabilization: Duration::from_secs(300) }
    }
}

/// Scales what autoscalers name.
pub struct AutoscalerController {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
    options: Options,
    histories: Mutex<HashMap<Key, History>>,
    scales: Scales,
}

/// What the metrics ask for.
struct Proposal {
    replicas: i64,
    why: String,
    metrics: Vec<MetricStatus>,
}

impl AutoscalerController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder, options: Options) -> Arc<Self> {
        let this = Arc::new(Self {
            caches: caches.clone(),
            scales: Scales::new(writer.clone()),
            writer,
            events,
            queue: WorkQueue::new(),
            options,
            histories: Mutex::default(),
        });
        let own = this.clone();
        caches.autoscalers.on_change(move |old, new| {
            // Its own status is no reason to look again.
            let generation = |a: &Arc<HorizontalPodAutoscaler>| a.metadata.generation;
            if let Some(scaler) = new.filter(|n| old.is_none_or(|o| generation(o) != generation(n))) {
                own.queue.add(key_of(scaler.as_ref()));
            }
            if let (Some(old), None) = (old, new) {
                own.histories.lock().remove(&key_of(old.as_ref()));
            }
        });
        this
    }

    async fn target(&self, scaler: &HorizontalPodAutoscaler) -> Result<Scale, String> {
        let target = &scaler.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or("v1");
        self.scales.of(scaler.namespace(), version, &target.kind, &target.name).await
    }

    // The highest number that a metric asks for. A metric that cannot be had lets others scale up, never down.
    async fn proposal(
        &self,
        scaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        tolerance: (f64, f64),
    ) -> Result<Proposal, Refusal> {
        let selector = Selector::parse(&scale.selector).map_err(|_| {
            (
                "InvalidSelector",
                "couldn't convert selector into a corresponding internal selector object".to_string(),
            )
        })?;
        if selector.is_everything() {
            return Err(("InvalidSelector", "the HPA target's scale is missing a selector".to_string()));
        }
        let mut pods = self.caches.pods.by(&format!("namespace:{}", scaler.namespace()));
        pods.retain(|p| matches(&selector, p.as_ref()));
        let (writer, scales, now) = (&self.writer, &self.scales, Timestamp::now());
        let evaluation = Evaluation { writer, scales, scaler, scale, pods: &pods, tolerance, now };
        let mut proposal = Proposal { replicas: 0, why: String::new(), metrics: Vec::new() };
        let mut refused = None;
        for spec in &scaler.spec.metrics {
            match evaluation.metric(spec).await {
                Ok(found) => {
                    proposal.metrics.push(found.status);
                    if found.replicas > proposal.replicas || proposal.why.is_empty() {
                        proposal.replicas = found.replicas;
                        proposal.why = found.why;
                    }
                }
                Err(refusal) => refused = refused.or(Some(refusal)),
            }
        }
        match refused {
            Some(refusal) if proposal.why.is_empty() || proposal.replicas < scale.wanted => Err(refusal),
            _ if proposal.why.is_empty() => {
                Err(("InvalidMetricSourceType", "the HPA has no metrics".to_string()))
            }
            _ => Ok(proposal),
        }
    }

    async fn look(&self, key: &Key, scaler: &HorizontalPodAutoscaler) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let mut status = scaler.status.clone();
        status.observed_generation = scaler.metadata.generation;
        let scale = match self.target(scaler).await {
            Ok(scale) => scale,
            Err(why) => {
                let words = format!("the HPA controller was unable to get the target's current scale: {why}");
                self.events.warning(scaler, "FailedGetScale", why);
                set(&mut status, "AbleToScale", false, ("FailedGetScale", &words), now);
                return self.write_status(scaler, &status).await;
            }
        };
        set(
            &mut status,
            "AbleToScale",
            true,
            ("SucceededGetScale", "the HPA controller was able to get the target's current scale"),
            now,
        );
        status.current_replicas = i32::try_from(scale.there).ok();
        let desired = self.desired(key, scaler, &scale, &mut status, now).await;
        status.desired_replicas =
            i32::try_from(desired.as_ref().map_or(scale.wanted, |(n, _)| *n)).unwrap_or(0);
        if let Some((replicas, why)) = desired.filter(|(n, _)| *n != scale.wanted) {
            let mut body = scale.body.clone();
            body["spec"]["replicas"] = replicas.into();
            match self.writer.replace(&scale.path, &body).await {
                Ok(_) => {
                    self.events.normal(
                        scaler,
                        "SuccessfulRescale",
                        format!("New size: {replicas}; reason: {why}"),
                    );
                    set(
                        &mut status,
                        "AbleToScale",
                        true,
                        (
                            "SucceededRescale",
                            &format!("the HPA controller was able to update the target scale to {replicas}"),
                        ),
                        now,
                    );
                    status.last_scale_time = Some(Time(whole_second(now)));
                    if let Some(history) = self.histories.lock().get_mut(key) {
                        history.changed(replicas - scale.wanted, Instant::now());
                    }
                }
                Err(error) => {
                    let why = write::words(&error);
                    let words = format!("the HPA controller was unable to update the target scale: {why}");
                    self.events.warning(
                        scaler,
                        "FailedRescale",
                        format!("New size: {replicas}; error: {why}"),
                    );
                    set(&mut status, "AbleToScale", false, ("FailedUpdateScale", &words), now);
                }
            }
        }
        self.write_status(scaler, &status).await
    }

    // The number of pods to have and why; None to leave it.
    async fn desired(
        &self,
        key: &Key,
        scaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> Option<(i64, String)> {
        let (least, most) = (scaler.spec.min_replicas.unwrap_or(1), scaler.spec.max_replicas);
        if scale.wanted == 0 && least != 0 {
            let words = "scaling is disabled since the replica count of the target is zero";
            set(status, "ScalingActive", false, ("ScalingDisabled", words), now);
            return None;
        }
        if scale.wanted > most {
            return Some((most, "Current number of replicas above Spec.MaxReplicas".to_string()));
        }
        if scale.wanted < least {
            return Some((least, "Current number of replicas below Spec.MinReplicas".to_string()));
        }
        let (up, down) = rules(scaler.spec.behavior.as_ref(), self.options.down_stabilization);
        let proposal = match self.proposal(scaler, scale, (up.tolerance, down.tolerance)).await {
            Ok(proposal) => proposal,
            Err((reason, words)) => {
                self.events.warning(scaler, reason, words.clone());
                set(status, "ScalingActive", false, (reason, &words), now);
                return None;
            }
        };
        let words =
            format!("the HPA was able to successfully calculate a replica count from {}", proposal.why);
        set(status, "ScalingActive", true, ("ValidMetricFound", &words), now);
        status.current_metrics = Some(proposal.metrics);
        let bounded = {
            let mut histories = self.histories.lock();
            let history = histories.entry(key.clone()).or_default();
            history.bound((&up, &down), (least, most), scale.wanted, proposal.replicas, Instant::now())
        };
        set(status, "AbleToScale", true, bounded.able, now);
        let limited = bounded
            .limited
            .unwrap_or(("DesiredWithinRange", "the desired count is within the acceptable range"));
        set(status, "ScalingLimited", bounded.limited.is_some(), limited, now);
        let why = if bounded.replicas < scale.wanted {
            "All metrics below target".to_string()
        } else {
            format!("{} above target", proposal.why)
        };
        Some((bounded.replicas, why))
    }

    async fn write_status(
        &self,
        scaler: &HorizontalPodAutoscaler,
        status: &HorizontalPodAutoscalerStatus,
    ) -> anyhow::Result<()> {
        if *status == scaler.status {
            return Ok(());
        }
        Ok(self.writer.status(scaler, json!(status)).await?)
    }
}

#[async_trait]
impl Reconciler for AutoscalerController {
    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(scaler) = self.caches.autoscalers.get(key) else { return Ok(None) };
        self.look(key, &scaler).await?;
        Ok(Some(self.options.period))
    }
}
