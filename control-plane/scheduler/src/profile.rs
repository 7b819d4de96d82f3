//! How one scheduler of a cluster decides: a profile of KubeSchedulerConfiguration.

use k8s_openapi::api::core::v1::{NodeSelector, TopologySpreadConstraint};

use crate::plugins::resources_fit::FitArgs;
use crate::plugins::{Filter, PLUGINS, Permit, Plugin, Score};

/// Plugins that a profile may name and that are no filters or scores: always there, or part of another here.
pub const OTHERS: [&str; 8] = [
    "PrioritySort",
    "SchedulingGates",
    "NodeName",
    "VolumeZone",
    "DefaultPreemption",
    "DefaultBinder",
    "NodeDeclaredFeatures",
    "DeferredPodScheduling",
];

/// A profile.
#[derive(Clone, Debug)]
pub struct Profile {
    /// `spec.schedulerName` of its pods.
    pub name: String,
    filters: Vec<(&'static Plugin, Filter)>,
    scores: Vec<(&'static Plugin, Score, i64)>,
    permits: Vec<(&'static Plugin, Permit)>,
    pub fit: FitArgs,
    /// The constraints of pods that have none; those of Kubernetes unless set.
    pub spread: Vec<TopologySpreadConstraint>,
    /// What required affinity of pods that are there weighs for a pod that they want near, from 0 to 100.
    pub hard_affinity_weight: i64,
    /// Affinity that every pod of the profile has besides its own.
    pub added_affinity: Option<NodeSelector>,
    /// Whether pods of lower priority are stopped (the plugin DefaultPreemption).
    pub preempts: bool,
    /// How many percent of the nodes are looked at; None is by their number.
    pub percentage_of_nodes: Option<usize>,
}

impl Default for Profile {
    fn default() -> Self {
        let soft = |key: &str, max_skew: i32| TopologySpreadConstraint {
            max_skew,
            topology_key: key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            ..TopologySpreadConstraint::default()
        };
        let mut profile = Self {
            name: "default-scheduler".to_owned(),
            filters: Vec::new(),
            scores: Vec::new(),
            permits: Vec::new(),
            fit: FitArgs::default(),
            spread: vec![soft("kubernetes.io/hostname", 3), soft("topology.kubernetes.io/zone", 5)],
            hard_affinity_weight: 1,
            added_affinity: None,
            preempts: true,
            percentage_of_nodes: None,
        };
        for plugin in &PLUGINS {
            profile.enable_filter(plugin);
            profile.enable_score(plugin, None);
            profile.enable_permit(plugin);
        }
        profile
    }
}

impl Profile {
    /// Its filters, in order.
    pub fn filters(&self) -> impl Iterator<Item = (&'static Plugin, Filter)> + '_ {
        self.filters.iter().copied()
    }

    /// Its scores and their weights.
    pub fn scores(&self) -> impl Iterator<Item = (&'static Plugin, Score, i64)> + '_ {
        self.scores.iter().copied()
    }

    /// Who says whether a pod with a node may be bound.
    pub fn permits(&self) -> impl Iterator<Item = Permit> + '_ {
        self.permits.iter().map(|(_, permit)| *permit)
    }

    /// Whether a plugin's permit is asked.
    pub fn has_permit(&self, name: &str) -> bool {
        self.permits.iter().any(|(plugin, _)| plugin.name == name)
    }

    /// Adds a plugin's permit, if it has one.
    pub fn enable_permit(&mut self, plugin: &'static Plugin) {
        self.disable_permit(plugin.name);
        self.permits.extend(plugin.permit.map(|permit| (plugin, permit)));
    }

    /// Takes a permit away; `*` takes all.
    pub fn disable_permit(&mut self, name: &str) {
        self.permits.retain(|(plugin, _)| name != "*" && plugin.name != name);
    }

    /// Adds a plugin's filter, if it has one.
    pub fn enable_filter(&mut self, plugin: &'static Plugin) {
        self.disable_filter(plugin.name);
        self.filters.extend(plugin.filter.map(|filter| (plugin, filter)));
    }

    /// Adds a plugin's score, if it has one, with its weight unless another is given.
    pub fn enable_score(&mut self, plugin: &'static Plugin, weight: Option<i64>) {
        self.disable_score(plugin.name);
        self.scores.extend(plugin.score.map(|(score, own)| (plugin, score, weight.unwrap_or(own))));
    }

    /// Takes a filter away; `*` takes all.
    pub fn disable_filter(&mut self, name: &str) {
        self.filters.retain(|(plugin, _)| name != "*" && plugin.name != name);
    }

    /// Takes a score away; `*` takes all.
    pub fn disable_score(&mut self, name: &str) {
        self.scores.retain(|(plugin, ..)| name != "*" && plugin.name != name);
    }
}
