//! What an operator may tune of controllers and metrics; `coracle up` takes the same flags and hands them on.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use coracle_scheduler::config::Configuration;

use super::super::explain_schedule;

/// How patient and how eager the cluster is.
#[derive(Args, Clone, Debug)]
pub struct Tuning {
    /// Seconds of silence after which a node is not reachable.
    #[arg(long, default_value_t = 40)]
    pub node_monitor_grace_period: u64,
    /// Seconds between two looks at a HorizontalPodAutoscaler.
    #[arg(long, default_value_t = 15)]
    pub horizontal_pod_autoscaler_sync_period: u64,
    /// Seconds that a HorizontalPodAutoscaler waits before it scales down, unless it says otherwise.
    #[arg(long, default_value_t = 300)]
    pub horizontal_pod_autoscaler_downscale_stabilization: u64,
    /// Seconds between two readings of what nodes and pods use.
    #[arg(long, default_value_t = 15)]
    pub metric_resolution: u64,
    /// Addresses for Services of type LoadBalancer. Otherwise they get none, but of `coracle up` on loopback addresses, where
    /// they get the upper half of the /24 of the node's address.
    #[arg(long)]
    pub load_balancer_cidr: Option<String>,
    /// A KubeSchedulerConfiguration: profiles, plugins and their arguments.
    #[arg(long, value_parser = scheduler_config)]
    pub scheduler_config: Option<SchedulerConfig>,
}

/// A scheduler's configuration and the file that it was read from.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    path: PathBuf,
    configuration: Configuration,
}

fn scheduler_config(path: &str) -> Result<SchedulerConfig, String> {
    let path = PathBuf::from(path);
    let configuration = explain_schedule::read(&path).map_err(|error| format!("{error:#}"))?;
    Ok(SchedulerConfig { path, configuration })
}

impl Tuning {
    /// The flags, as a server takes them.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let mut flags = vec![
            ("node-monitor-grace-period", self.node_monitor_grace_period.to_string()),
            ("horizontal-pod-autoscaler-sync-period", self.horizontal_pod_autoscaler_sync_period.to_string()),
            (
                "horizontal-pod-autoscaler-downscale-stabilization",
                self.horizontal_pod_autoscaler_downscale_stabilization.to_string(),
            ),
            ("metric-resolution", self.metric_resolution.to_string()),
        ];
        let config = self.scheduler_config.iter();
        flags.extend(config.map(|config| ("scheduler-config", config.path.display().to_string())));
        flags.extend(self.load_balancer_cidr.iter().map(|range| ("load-balancer-cidr", range.clone())));
        flags
    }

    /// The controllers' options with these in them.
    pub fn controllers(&self, options: coracle_controllers::Options) -> coracle_controllers::Options {
        coracle_controllers::Options {
            node_grace: Duration::from_secs(self.node_monitor_grace_period.max(1)),
            autoscaler: coracle_controllers::autoscaler::Options {
                period: Duration::from_secs(self.horizontal_pod_autoscaler_sync_period.max(1)),
                down_stabilization: Duration::from_secs(
                    self.horizontal_pod_autoscaler_downscale_stabilization,
                ),
            },
            load_balancer_range: self.load_balancer_cidr.clone(),
            ..options
        }
    }

    /// The scheduler's options.
    pub fn scheduler(&self) -> coracle_scheduler::Options {
        let configuration = self.scheduler_config.as_ref().map(|config| config.configuration.clone());
        let defaults = coracle_scheduler::Options::default();
        coracle_scheduler::Options { configuration: configuration.unwrap_or_default(), ..defaults }
    }

    /// How nodes are asked what they use.
    pub fn metrics(&self) -> coracle_metrics::Options {
        coracle_metrics::Options { period: Duration::from_secs(self.metric_resolution.max(1)) }
    }
}
