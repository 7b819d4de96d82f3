//! What a pod refers to by name, read from its JSON without the rest of it.

use std::collections::HashSet;

use serde::Deserialize;

/// Kinds of objects that a pod refers to by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Secret,
    ConfigMap,
    Claim,
    Account,
}

/// What one pod needs of its namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The node that it is bound to.
    pub node: String,
    /// The objects that it names.
    pub objects: HashSet<(Kind, String)>,
}

/// The parts of a pod that name other objects.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: String,
    service_account_name: String,
    volumes: Vec<Volume>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    image_pull_secrets: Vec<Reference>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reference {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Source {
    name: String,
    secret_name: String,
    claim_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Volume {
    name: String,
    secret: Option<Source>,
    config_map: Option<Source>,
    persistent_volume_claim: Option<Source>,
    ephemeral: Option<serde::de::IgnoredAny>,
    projected: Option<Projected>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Projected {
    sources: Vec<Volume>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    env: Vec<Variable>,
    env_from: Vec<FromSource>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Variable {
    value_from: Option<FromSource>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct FromSource {
    secret_ref: Option<Reference>,
    config_map_ref: Option<Reference>,
    secret_key_ref: Option<Reference>,
    config_map_key_ref: Option<Reference>,
}

impl Pod {
    /// What the pod needs, if it is bound to a node.
    pub fn needs(self) -> Option<Needs> {
        let spec = self.spec;
        if spec.node_name.is_empty() {
            return None;
        }
        let mut objects = HashSet::new();
        let mut add = |kind, name: String| {
            if !name.is_empty() {
                objects.insert((kind, name));
            }
        };
        add(Kind::Account, spec.service_account_name);
        for secret in spec.image_pull_secrets {
            add(Kind::Secret, secret.name);
        }
        for volume in spec.volumes {
            if volume.ephemeral.is_some() {
                add(Kind::Claim, format!("{}-{}", self.metadata.name, volume.name));
            }
            let parts = volume.projected.map(|p| p.sources).unwrap_or_default();
            let own = Volume { projected: None, ephemeral: None, ..volume };
            for part in parts.into_iter().chain([own]) {
                let secret = part.secret.unwrap_or_default();
                add(Kind::Secret, secret.secret_name);
                // In a projected volume a Secret is called `name`.
                add(Kind::Secret, secret.name);
                add(Kind::ConfigMap, part.config_map.unwrap_or_default().name);
                add(Kind::Claim, part.persistent_volume_claim.unwrap_or_default().claim_name);
            }
        }
        let containers =
            spec.containers.into_iter().chain(spec.init_containers).chain(spec.ephemeral_containers);
        for container in containers {
            let variables = container.env.into_iter().filter_map(|v| v.value_from);
            for source in container.env_from.into_iter().chain(variables) {
                for secret in [source.secret_ref, source.secret_key_ref].into_iter().flatten() {
                    add(Kind::Secret, secret.name);
                }
                for map in [source.config_map_ref, source.config_map_key_ref].into_iter().flatten() {
                    add(Kind::ConfigMap, map.name);
                }
            }
        }
        Some(Needs { node: spec.node_name, objects })
    }
}
