//! KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1): the file that kube-scheduler reads.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde_json::Value;

use crate::plugins::resources_fit::Strategy;
use crate::plugins::{PLUGINS, Plugin};
use crate::profile::{OTHERS, Profile};

/// What a configuration says.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// At least one; no two of a name.
    pub profiles: Vec<Profile>,
    /// The pause after a pod's first failed attempt; it doubles.
    pub first_back_off: Duration,
    /// The longest pause.
    pub longest_back_off: Duration,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            profiles: vec![Profile::default()],
            first_back_off: Duration::from_secs(1),
            longest_back_off: Duration::from_secs(10),
        }
    }
}

/// What is wrong with a configuration: where, and what.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{0}")]
pub struct ConfigError(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<FileProfile>,
    percentage_of_nodes_to_score: Option<usize>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    #[serde(default)]
    extenders: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<usize>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Plugins {
    multi_point: PluginSet,
    filter: PluginSet,
    score: PluginSet,
    post_filter: PluginSet,
    permit: PluginSet,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PluginSet {
    enabled: Vec<Named>,
    disabled: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    weight: Option<i64>,
}

#[derive(Deserialize)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScoringStrategy {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    resources: Vec<Named>,
    requested_to_capacity_ratio: Option<Shape>,
}

#[derive(Deserialize)]
struct Shape {
    shape: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    utilization: i64,
    score: i64,
}

fn wrong<T>(words: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(words.into()))
}

fn plugin(name: &str) -> Result<Option<&'static Plugin>, ConfigError> {
    match PLUGINS.iter().find(|plugin| plugin.name == name) {
        Some(plugin) => Ok(Some(plugin)),
        None if OTHERS.contains(&name) => Ok(None),
        None => wrong(format!("there is no plugin {name:?}")),
    }
}

impl Configuration {
    /// Reads a configuration, already parsed from YAML or JSON.
    ///
    /// # Errors
    /// What is wrong, with the name of the field; extenders are not supported.
    pub fn read(file: Value) -> Result<Self, ConfigError> {
        let file: File = serde_json::from_value(file).map_err(|error| ConfigError(error.to_string()))?;
        if file.api_version != "kubescheduler.config.k8s.io/v1" || file.kind != "KubeSchedulerConfiguration" {
            return wrong(format!(
                "{}/{} is no KubeSchedulerConfiguration of v1",
                file.api_version, file.kind
            ));
        }
        if !file.extenders.is_empty() {
            return wrong("extenders are not supported");
        }
        let mut this = Self::default();
        if let Some(seconds) = file.pod_initial_backoff_seconds {
            this.first_back_off = Duration::from_secs(seconds.max(1));
        }
        if let Some(seconds) = file.pod_max_backoff_seconds {
            this.longest_back_off = Duration::from_secs(seconds).max(this.first_back_off);
        }
        if !file.profiles.is_empty() {
            this.profiles = file.profiles.iter().map(profile).collect::<Result<_, _>>()?;
        }
        for (at, profile) in this.profiles.iter().enumerate() {
            if this.profiles.iter().take(at).any(|other| other.name == profile.name) {
                return wrong(format!("profiles[{at}].schedulerName: duplicate value {:?}", profile.name));
            }
        }
        for profile in &mut this.profiles {
            profile.percentage_of_nodes = profile.percentage_of_nodes.or(file.percentage_of_nodes_to_score);
        }
        Ok(this)
    }
}

fn profile(file: &FileProfile) -> Result<Profile, ConfigError> {
    let mut profile = Profile::default();
    if let Some(name) = &file.scheduler_name {
        profile.name.clone_from(name);
    }
    profile.percentage_of_nodes = file.percentage_of_nodes_to_score;
    let Plugins { multi_point, filter, score, post_filter, permit } = &file.plugins;
    for one in &multi_point.disabled {
        profile.disable_filter(&one.name);
        profile.disable_score(&one.name);
        profile.disable_permit(&one.name);
    }
    for one in &multi_point.enabled {
        if let Some(plugin) = plugin(&one.name)? {
            profile.enable_filter(plugin);
            profile.enable_score(plugin, one.weight);
            profile.enable_permit(plugin);
        }
    }
    filter.disabled.iter().for_each(|one| profile.disable_filter(&one.name));
    for one in &filter.enabled {
        plugin(&one.name)?.into_iter().for_each(|plugin| profile.enable_filter(plugin));
    }
    score.disabled.iter().for_each(|one| profile.disable_score(&one.name));
    for one in &score.enabled {
        plugin(&one.name)?.into_iter().for_each(|plugin| profile.enable_score(plugin, one.weight));
    }
    permit.disabled.iter().for_each(|one| profile.disable_permit(&one.name));
    for one in &permit.enabled {
        plugin(&one.name)?.into_iter().for_each(|plugin| profile.enable_permit(plugin));
    }
    let preemption = |one: &Named| one.name == "*" || one.name == "DefaultPreemption";
    let off = [multi_point, post_filter].iter().any(|set| set.disabled.iter().any(preemption));
    let on = [multi_point, post_filter].iter().any(|set| set.enabled.iter().any(preemption));
    profile.preempts = on || !off;
    for config in &file.plugin_config {
        arguments(&mut profile, config)?;
    }
    Ok(profile)
}

fn field<T: serde::de::DeserializeOwned>(
    config: &PluginConfig,
    name: &str,
) -> Result<Option<T>, ConfigError> {
    let Some(value) = config.args.get(name) else { return Ok(None) };
    let read = serde_json::from_value(value.clone());
    read.map(Some).map_err(|error| ConfigError(format!("args of {}: {name}: {error}", config.name)))
}

fn arguments(profile: &mut Profile, config: &PluginConfig) -> Result<(), ConfigError> {
    plugin(&config.name)?;
    match config.name.as_str() {
        "NodeResourcesFit" => {
            let Some(given) = field::<ScoringStrategy>(config, "scoringStrategy")? else { return Ok(()) };
            profile.fit.strategy = match (given.kind.as_str(), given.requested_to_capacity_ratio) {
                ("LeastAllocated", _) => Strategy::LeastAllocated,
                ("MostAllocated", _) => Strategy::MostAllocated,
                ("RequestedToCapacityRatio", Some(curve)) => Strategy::RequestedToCapacityRatio(
                    curve.shape.iter().map(|point| (point.utilization, point.score)).collect(),
                ),
                (kind, _) => {
                    return wrong(format!("args of NodeResourcesFit: scoringStrategy: type {kind:?}"));
                }
            };
            let named: Vec<(String, i64)> =
                given.resources.into_iter().map(|one| (one.name, one.weight.unwrap_or(1))).collect();
            if !named.is_empty() {
                profile.fit.resources = named;
            } else if profile.fit.strategy != Strategy::LeastAllocated {
                profile.fit.resources.retain(|(name, _)| name != "pods");
            }
        }
        "InterPodAffinity" => {
            profile.hard_affinity_weight =
                field(config, "hardPodAffinityWeight")?.unwrap_or(profile.hard_affinity_weight);
        }
        "PodTopologySpread" => {
            let kind: Option<String> = field(config, "defaultingType")?;
            let given: Option<Vec<TopologySpreadConstraint>> = field(config, "defaultConstraints")?;
            if given.is_some() || kind.as_deref() == Some("List") {
                profile.spread = given.unwrap_or_default();
            }
        }
        "NodeAffinity" => {
            let added: Option<NodeAffinity> = field(config, "addedAffinity")?;
            profile.added_affinity =
                added.and_then(|one| one.required_during_scheduling_ignored_during_execution);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(more: Value) -> Result<Configuration, ConfigError> {
        let mut file =
            json!({ "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration" });
        json_patch::merge(&mut file, &more);
        Configuration::read(file)
    }

    #[test]
    fn profiles_enable_disable_and_weigh_plugins() {
        let ratio = json!({ "scoringStrategy": { "type": "MostAllocated", "resources": [{ "name": "cpu", "weight": 3 }] } });
        let read = read(json!({
            "podInitialBackoffSeconds": 2, "percentageOfNodesToScore": 30,
            "profiles": [
                { "schedulerName": "default-scheduler" },
                { "schedulerName": "packed",
                  "plugins": {
                      "score": { "disabled": [{ "name": "*" }], "enabled": [{ "name": "NodeResourcesFit", "weight": 5 }] },
                      "multiPoint": { "disabled": [{ "name": "NodePorts" }] },
                      "postFilter": { "disabled": [{ "name": "*" }] },
                      "permit": { "disabled": [{ "name": "GangScheduling" }] },
                  },
                  "pluginConfig": [{ "name": "NodeResourcesFit", "args": ratio }, { "name": "PodTopologySpread", "args": { "defaultingType": "List" } }] },
            ],
        }))
        .unwrap();
        assert_eq!((read.profiles.len(), read.first_back_off), (2, Duration::from_secs(2)));
        let packed = &read.profiles[1];
        let scores: Vec<_> = packed.scores().map(|(plugin, _, weight)| (plugin.name, weight)).collect();
        assert_eq!(scores, [("NodeResourcesFit", 5)]);
        assert!(packed.filters().all(|(plugin, _)| plugin.name != "NodePorts") && !packed.preempts);
        assert_eq!(
            (packed.fit.strategy.clone(), packed.fit.resources.clone()),
            (Strategy::MostAllocated, vec![("cpu".into(), 3)])
        );
        let gangs = |profile: &Profile| profile.has_permit("GangScheduling");
        assert!(!gangs(packed) && gangs(&read.profiles[0]));
        assert!(packed.spread.is_empty() && packed.percentage_of_nodes == Some(30));
        assert_eq!(read.profiles[0].scores().count(), Profile::default().scores().count());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let plugins = |plugins: Value| json!({ "profiles": [{ "plugins": plugins }] });
        for (file, words) in [
            (
                json!({ "apiVersion": "v1" }),
                "v1/KubeSchedulerConfiguration is no KubeSchedulerConfiguration of v1",
            ),
            (json!({ "extenders": [{}] }), "extenders are not supported"),
            (plugins(json!({ "score": { "enabled": [{ "name": "Nope" }] } })), "there is no plugin \"Nope\""),
            (
                json!({ "profiles": [{}, {}] }),
                "profiles[1].schedulerName: duplicate value \"default-scheduler\"",
            ),
        ] {
            assert_eq!(read(file).unwrap_err().to_string(), words);
        }
    }
}
