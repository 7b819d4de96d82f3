//! How fast the number of pods may change. Pure.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};
use tokio::time::Instant;

/// The most that is remembered of an autoscaler.
const REMEMBERED: usize = 1000;

/// What an autoscaler found and did lately.
#[derive(Debug, Default)]
pub struct History {
    /// Recommended numbers.
    recommended: Vec<(Instant, i64)>,
    /// Changes: pods added, or removed where negative.
    changes: Vec<(Instant, i64)>,
}

/// The rules of one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub stabilization: Duration,
    pub select: Select,
    pub policies: Vec<Policy>,
    /// How far from the target is near enough.
    pub tolerance: f64,
}

/// Which policy counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Select {
    Max,
    Min,
    Disabled,
}

/// So many pods, or percent of them, in a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    pub percent: bool,
    pub value: i64,
    pub period: Duration,
}

const TOLERANCE: f64 = 0.1;

/// The rules for scaling up and down; what is not given is as Kubernetes has it.
pub fn rules(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    down_stabilization: Duration,
) -> (Rules, Rules) {
    let fast = Duration::from_secs(15);
    let all = Policy { percent: true, value: 100, period: fast };
    let four = Policy { percent: false, value: 4, period: fast };
    let up = Rules {
        stabilization: Duration::ZERO,
        select: Select::Max,
        policies: vec![four, all],
        tolerance: TOLERANCE,
    };
    let down = Rules { stabilization: down_stabilization, policies: vec![all], ..up.clone() };
    let given = |rules: Option<&HPAScalingRules>, default: Rules| match rules {
        None => default,
        Some(rules) => Rules {
            stabilization: rules
                .stabilization_window_seconds
                .map_or(default.stabilization, |s| Duration::from_secs(u64::try_from(s).unwrap_or(0))),
            select: match rules.select_policy.as_deref() {
                Some("Min") => Select::Min,
                Some("Disabled") => Select::Disabled,
                _ => Select::Max,
            },
            policies: match rules.policies.as_deref() {
                None | Some([]) => default.policies,
                Some(policies) => policies.iter().map(policy).collect(),
            },
            tolerance: rules.tolerance.as_ref().map_or(default.tolerance, |q| {
                coracle_api::quantity::Quantity::parse(&q.0)
                    .map_or(default.tolerance, |q| q.milli_value() as f64 / 1000.0)
            }),
        },
    };
    let up_given = behavior.and_then(|b| b.scale_up.as_ref());
    let down_given = behavior.and_then(|b| b.scale_down.as_ref());
    (given(up_given, up), given(down_given, down))
}

fn policy(of: &HPAScalingPolicy) -> Policy {
    Policy {
        percent: of.type_ == "Percent",
        value: i64::from(of.value),
        period: Duration::from_secs(u64::try_from(of.period_seconds).unwrap_or(0)),
    }
}

/// A number, and the words of the conditions AbleToScale and ScalingLimited.
#[derive(Debug, PartialEq)]
pub struct Bounded {
    pub replicas: i64,
    pub able: (&'static str, &'static str),
    pub limited: Option<(&'static str, &'static str)>,
}

impl History {
    /// The wanted number, held back by what was wanted lately, by the policies and by the limits.
    pub fn bound(
        &mut self,
        (up, down): (&Rules, &Rules),
        (least, most): (i64, i64),
        current: i64,
        wanted: i64,
        now: Instant,
    ) -> Bounded {
        let (stable, able) = self.stabilize((up, down), current, wanted, now);
        let (mut replicas, mut limited) = (stable, None);
        if stable > current {
            let limit = self.limit_up(up, current, now).max(current);
            if stable > limit.min(most) {
                replicas = limit.min(most);
                limited = Some(if limit < most {
                    (
                        "ScaleUpLimit",
                        "the desired replica count is increasing faster than the maximum scale rate",
                    )
                } else {
                    ("TooManyReplicas", "the desired replica count is more than the maximum replica count")
                });
            }
        } else if stable < current {
            let limit = self.limit_down(down, current, now).min(current);
            if stable < limit.max(least) {
                replicas = limit.max(least);
                limited = Some(if limit > least {
                    (
                        "ScaleDownLimit",
                        "the desired replica count is decreasing faster than the maximum scale rate",
                    )
                } else {
                    ("TooFewReplicas", "the desired replica count is less than the minimum replica count")
                });
            }
        } else if wanted > most && stable == most {
            limited =
                Some(("TooManyReplicas", "the desired replica count is more than the maximum replica count"));
        } else if wanted < least && stable == least {
            limited =
                Some(("TooFewReplicas", "the desired replica count is less than the minimum replica count"));
        }
        Bounded { replicas, able, limited }
    }

    // No higher than the lowest of the window for scaling up, no lower than the highest of that for scaling down.
    fn stabilize(
        &mut self,
        (up, down): (&Rules, &Rules),
        current: i64,
        wanted: i64,
        now: Instant,
    ) -> (i64, (&'static str, &'static str)) {
        let longest = up.stabilization.max(down.stabilization);
        self.recommended.retain(|(at, _)| now.duration_since(*at) <= longest);
        self.recommended.push((now, wanted));
        if self.recommended.len() > REMEMBERED {
            self.recommended.remove(0);
        }
        let within = |window: Duration| {
            self.recommended.iter().filter(move |(at, _)| now.duration_since(*at) <= window).map(|(_, n)| *n)
        };
        let lowest = within(up.stabilization).min().unwrap_or(wanted);
        let highest = within(down.stabilization).max().unwrap_or(wanted);
        let stable = if current < lowest { lowest } else { current.min(highest) };
        let able = if stable == wanted {
            ("ReadyForNewScale", "recommended size matches current size")
        } else if stable < wanted {
            (
                "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation",
            )
        } else {
            (
                "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation",
            )
        };
        (stable, able)
    }

    fn changed_within(&self, period: Duration, added: bool, now: Instant) -> i64 {
        let recent =
            self.changes.iter().filter(|(at, n)| now.duration_since(*at) < period && (*n > 0) == added);
        recent.map(|(_, n)| n.abs()).sum()
    }

    fn limit_up(&self, rules: &Rules, current: i64, now: Instant) -> i64 {
        let limit = |policy: &Policy| {
            let start = current - self.changed_within(policy.period, true, now);
            if policy.percent { (start * (100 + policy.value) + 99) / 100 } else { start + policy.value }
        };
        let limits = rules.policies.iter().map(limit);
        match rules.select {
            Select::Disabled => current,
            Select::Max => limits.max().unwrap_or(current),
            Select::Min => limits.min().unwrap_or(current),
        }
    }

    fn limit_down(&self, rules: &Rules, current: i64, now: Instant) -> i64 {
        let limit = |policy: &Policy| {
            let start = current + self.changed_within(policy.period, false, now);
            if policy.percent { start * (100 - policy.value) / 100 } else { start - policy.value }
        };
        let limits = rules.policies.iter().map(limit);
        match rules.select {
            Select::Disabled => current,
            // The policy that changes most.
            Select::Max => limits.min().unwrap_or(current),
            Select::Min => limits.max().unwrap_or(current),
        }
    }

    /// The number was changed by so many.
    pub fn changed(&mut self, by: i64, now: Instant) {
        self.changes.retain(|(at, _)| now.duration_since(*at) <= Duration::from_secs(3600));
        self.changes.push((now, by));
        if self.changes.len() > REMEMBERED {
            self.changes.remove(0);
        }
    }
}
