//! What a revision asks of the autoscaler, by annotations of `autoscaling.knative.dev`.

use std::time::Duration;

use kube::ResourceExt;

use crate::types::Revision;

/// Knative's default target of requests at a time for each pod.
const TARGET: f64 = 100.0;
/// The share of the target, or of the hard limit, that is aimed at.
const UTILIZATION: f64 = 0.7;
const WINDOW: Duration = Duration::from_secs(60);
const WINDOWS: std::ops::RangeInclusive<Duration> = Duration::from_secs(6)..=Duration::from_secs(3600);

/// How a revision is scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Fewest pods; 0 allows none.
    pub min: i32,
    /// Most pods; None is any number.
    pub max: Option<i32>,
    /// Pods of a new revision.
    initial: i32,
    /// Requests at a time that a pod should have.
    pub target: f64,
    /// Over what time the mean is taken, 6 s to 1 h. After one without requests there are no pods.
    pub window: Duration,
}

impl Settings {
    /// As the annotations and the concurrency of a revision say; what cannot be read has its default.
    pub fn of(revision: &Revision) -> Self {
        let text = |names: [&str; 2]| {
            let annotations = revision.annotations();
            names.into_iter().find_map(|name| annotations.get(&format!("autoscaling.knative.dev/{name}")))
        };
        let count = |names| text(names).and_then(|text| text.parse::<i32>().ok()).filter(|count| *count >= 0);
        let limit = revision.spec.container_concurrency.filter(|limit| *limit > 0).map(f64::from);
        let target =
            text(["target", "target"]).and_then(|text| text.parse::<f64>().ok()).filter(|t| *t > 0.0);
        let share = text(["target-utilization-percentage", "targetUtilizationPercentage"])
            .and_then(|text| text.parse::<f64>().ok())
            .filter(|percent| (1.0..=100.0).contains(percent))
            .map_or(UTILIZATION, |percent| percent / 100.0);
        let aimed = match (target, limit) {
            (Some(target), Some(limit)) => target.min(limit),
            (Some(target), None) => target,
            (None, Some(limit)) => limit * share,
            (None, None) => TARGET * share,
        };
        let window =
            text(["window", "window"]).and_then(|text| seconds(text)).filter(|w| WINDOWS.contains(w));
        Self {
            min: count(["min-scale", "minScale"]).unwrap_or(0),
            max: count(["max-scale", "maxScale"]).filter(|max| *max > 0),
            initial: count(["initial-scale", "initialScale"]).unwrap_or(1),
            target: aimed.max(0.01),
            window: window.unwrap_or(WINDOW),
        }
    }

    /// Pods of a new revision.
    pub fn initial(&self) -> i32 {
        self.within(self.initial.max(self.min))
    }

    /// A number of pods between the bounds.
    pub fn within(&self, pods: i32) -> i32 {
        let most = self.max.map_or(i32::MAX, |max| max.max(self.min));
        pods.clamp(self.min, most)
    }
}

/// `90s`, `2m`, `1h`, `1m30s`: durations as Go writes them.
fn seconds(text: &str) -> Option<Duration> {
    let span: jiff::Span = text.parse().ok()?;
    Duration::try_from(jiff::SignedDuration::try_from(span).ok()?).ok()
}
