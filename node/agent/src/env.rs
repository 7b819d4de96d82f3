//! The environment of a container: values, references, `$(VAR)` expansion; and the downward API that volumes share.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use crate::objects::Kind;

pub mod expand;
pub mod fields;

/// The keys of a ConfigMap or a Secret.
pub type Keys = BTreeMap<String, Vec<u8>>;

/// The objects that a pod refers to; `None`: it does not exist.
pub type Sources = HashMap<(Kind, String), Option<Arc<Keys>>>;

/// Why a container's environment cannot be made: `CreateContainerConfigError`.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A ConfigMap or Secret that must exist does not.
    #[error("{} \"{name}\" not found", .kind.word())]
    NotFound {
        /// Which kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// It exists without the key.
    #[error("couldn't find key {key} in {} {namespace}/{name}", match .kind { Kind::ConfigMap => "ConfigMap", Kind::Secret => "Secret" })]
    NoKey {
        /// Which kind.
        kind: Kind,
        /// The pod's namespace.
        namespace: String,
        /// The object's name.
        name: String,
        /// The key asked for.
        key: String,
    },
    /// A field or resource that the downward API does not know.
    #[error("{0}")]
    Field(String),
}

/// ConfigMaps and Secrets that the environment of a container refers to.
pub fn references(container: &Container) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    for from in container.env_from.iter().flatten() {
        found.extend(from.config_map_ref.iter().map(|r| (Kind::ConfigMap, r.name.clone())));
        found.extend(from.secret_ref.iter().map(|r| (Kind::Secret, r.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        found.extend(source.config_map_key_ref.iter().map(|r| (Kind::ConfigMap, r.name.clone())));
        found.extend(source.secret_key_ref.iter().map(|r| (Kind::Secret, r.name.clone())));
    }
    found.sort_by(|a, b| (a.0 as u8, &a.1).cmp(&(b.0 as u8, &b.1)));
    found.dedup();
    found
}

/// Builds the environment in Kubernetes' order: `services` first, then `envFrom`, then `env`, later entries replacing
/// earlier ones.
pub fn build(
    pod: &Pod,
    container: &Container,
    services: Vec<(String, String)>,
    sources: &Sources,
    facts: &fields::Facts,
) -> Result<Vec<(String, String)>, Error> {
    let mut env = Ordered::default();
    services.into_iter().for_each(|(name, value)| env.set(name, value));
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            add_all(&mut env, prefix, object(sources, Kind::ConfigMap, &r.name, r.optional)?);
        }
        if let Some(r) = &from.secret_ref {
            add_all(&mut env, prefix, object(sources, Kind::Secret, &r.name, r.optional)?);
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(pod, container, variable, sources, facts, &env)? {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env.list)
}

#[derive(Default)]
struct Ordered {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Ordered {
    fn set(&mut self, name: String, value: String) {
        match self.index.get(&name).and_then(|i| self.list.get_mut(*i)) {
            Some(entry) => entry.1 = value,
            None => {
                self.index.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).and_then(|i| self.list.get(*i)).map(|(_, value)| value.as_str())
    }
}

fn add_all(env: &mut Ordered, prefix: &str, keys: Option<&Arc<Keys>>) {
    for (key, value) in keys.into_iter().flat_map(|k| k.iter()) {
        let name = format!("{prefix}{key}");
        // Names that no environment can hold are left out, as the kubelet does.
        if !name.is_empty() && !name.contains(['=', '\0']) {
            env.set(name, String::from_utf8_lossy(value).into_owned());
        }
    }
}

fn object<'a>(
    sources: &'a Sources,
    kind: Kind,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Arc<Keys>>, Error> {
    match sources.get(&(kind, name.to_owned())).and_then(Option::as_ref) {
        Some(keys) => Ok(Some(keys)),
        None if optional == Some(true) => Ok(None),
        None => Err(Error::NotFound { kind, name: name.to_owned() }),
    }
}

fn value(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    sources: &Sources,
    facts: &fields::Facts,
    env: &Ordered,
) -> Result<Option<String>, Error> {
    let Some(from) = &variable.value_from else {
        let text = variable.value.as_deref().unwrap_or_default();
        return Ok(Some(expand::expand(text, |name| env.get(name).map(str::to_owned))));
    };
    if let Some(r) = &from.field_ref {
        return fields::field(pod, &r.field_path, facts).map(Some).map_err(Error::Field);
    }
    if let Some(r) = &from.resource_field_ref {
        return fields::resource(pod, container, r, facts).map(Some).map_err(Error::Field);
    }
    if let Some(r) = &from.config_map_key_ref {
        return key(pod, sources, Kind::ConfigMap, &r.name, &r.key, r.optional);
    }
    if let Some(r) = &from.secret_key_ref {
        return key(pod, sources, Kind::Secret, &r.name, &r.key, r.optional);
    }
    Err(Error::Field(format!("env {}: this kind of valueFrom is not supported by this node", variable.name)))
}

fn key(
    pod: &Pod,
    sources: &Sources,
    kind: Kind,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, Error> {
    let found = object(sources, kind, name, optional)?.and_then(|keys| keys.get(key));
    match found {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(Error::NoKey {
            kind,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.to_owned(),
            key: key.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
