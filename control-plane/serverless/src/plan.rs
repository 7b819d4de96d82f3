//! Pure: each of Knative's objects in, what should exist for it out.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;

pub mod configuration;
pub mod revision;
pub mod route;
pub mod service;
#[cfg(test)]
mod tests;

use crate::types::Condition;

/// Annotations that belong to the object that a user applied, not to what is made of it.
const NOT_PASSED_ON: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The metadata of an object that is made for another one, and goes with it.
fn owned<K: Resource<DynamicType = ()>>(
    owner: &K,
    name: &str,
    labels: BTreeMap<String, String>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: owner.meta().namespace.clone(),
        labels: Some(labels),
        owner_references: owner.controller_owner_ref(&()).map(|reference: OwnerReference| vec![reference]),
        ..ObjectMeta::default()
    }
}

/// Annotations that what is made of an object carries as well.
fn passed_on(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let all = meta.annotations.clone().unwrap_or_default();
    all.into_iter().filter(|(key, _)| key != NOT_PASSED_ON).collect()
}

/// How something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    True,
    Unknown(&'static str, String),
    False(String, String),
}

impl Standing {
    /// The worst of several.
    pub fn all(standings: &[&Self]) -> Self {
        let failed = standings.iter().find(|standing| matches!(standing, Self::False(..)));
        let unknown = standings.iter().find(|standing| matches!(standing, Self::Unknown(..)));
        failed.or(unknown).map_or(Self::True, |standing| (**standing).clone())
    }

    /// As one of an object's conditions says; an absent one is unknown.
    pub fn read(conditions: &[Condition], kind: &str) -> Self {
        let Some(found) = conditions.iter().find(|condition| condition.kind == kind) else {
            return Self::Unknown("Unknown", String::new());
        };
        let message = found.message.clone().unwrap_or_default();
        match found.status.as_str() {
            "True" => Self::True,
            "False" => Self::False(found.reason.clone().unwrap_or_default(), message),
            _ => Self::Unknown("Unknown", message),
        }
    }

    /// The condition of a kind; keeps the time of the last transition where the status stays.
    pub fn condition(&self, kind: &str, before: &[Condition], now: &Time) -> Condition {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let (status, reason, message) = match self {
            Self::True => ("True", None, None),
            Self::Unknown(reason, message) => ("Unknown", some(reason), some(message)),
            Self::False(reason, message) => ("False", some(reason), some(message)),
        };
        let same = before.iter().find(|condition| condition.kind == kind && condition.status == status);
        Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: same
                .map_or_else(|| Some(now.clone()), |same| same.last_transition_time.clone()),
        }
    }
}
