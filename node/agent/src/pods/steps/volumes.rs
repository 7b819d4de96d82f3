//! Reads the objects that a pod refers to, and writes its volumes.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::env::Sources;
use crate::objects::{Error as ObjectError, Kind};
use crate::volumes::{self, Error, PodDir, sources};

/// Reads what is referred to; an object that does not exist is `None`.
pub async fn read(
    context: &Context,
    pod: &Pod,
    references: Vec<(Kind, String)>,
) -> Result<Sources, ObjectError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let unique: HashSet<(Kind, String)> = references.into_iter().collect();
    let mut found = Sources::new();
    for (kind, name) in unique {
        let keys = match context.objects.get(kind, &namespace, &name).await {
            Ok(keys) => Some(keys),
            Err(ObjectError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        found.insert((kind, name), keys);
    }
    Ok(found)
}

/// Makes and fills the volumes of a pod. Returns whether anything changed.
pub async fn mount(context: &Context, pod: &Pod, pod_ips: Vec<String>) -> Result<bool, Error> {
    if let Some(error) = volumes::unsupported(pod) {
        return Err(error);
    }
    let failed = |message: String| Error::SetUp {
        volume: volumes::volumes(pod).first().map(|v| v.name.clone()).unwrap_or_default(),
        message,
    };
    let found = read(context, pod, sources::references(pod)).await.map_err(|e| failed(e.to_string()))?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let dir = PodDir::new(&context.root, &uid)
        .ok_or_else(|| failed(format!("the uid {uid:?} is not a file name")))?;
    let mut facts = context.facts(pod_ips);
    facts.tokens = context.tokens.of(pod).await.map_err(failed)?;
    let pod = pod.clone();
    let written = tokio::task::spawn_blocking(move || volumes::set_up(&pod, &dir, &found, &facts)).await;
    written.unwrap_or_else(|e| Err(failed(e.to_string())))
}

/// Whether the volumes of a pod can change while it runs.
pub fn live(pod: &Pod) -> bool {
    volumes::volumes(pod).iter().any(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.projected.is_some() || v.downward_api.is_some()
    })
}
