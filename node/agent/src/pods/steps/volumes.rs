//! Reads the objects that a pod refers to, and writes its volumes.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;

use crate::context::Context;
use crate::env::Sources;
use crate::objects::{Error as ObjectError, Kind};
use crate::volumes::claims::{self, Claimed, Claims};
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

/// Where the volumes of a pod lie, those of its claims included.
pub async fn place(context: &Context, pod: &Pod) -> Result<PodDir, Error> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let failed = |volume: &str, message: String| Error::SetUp { volume: volume.to_owned(), message };
    let dir = PodDir::new(&context.root, &uid)
        .ok_or_else(|| failed("", format!("the uid {uid:?} is not a file name")))?;
    let mut bound = Claims::new();
    for volume in volumes::volumes(pod) {
        if let Some((claim, read_only)) = claims::claim(pod, volume) {
            let claimed = claimed(context, pod, &claim, volume.ephemeral.is_some(), read_only).await;
            bound.insert(volume.name.clone(), claimed.map_err(|message| failed(&volume.name, message))?);
        }
    }
    Ok(dir.with_claims(bound))
}

/// The volume that a claim is bound to.
async fn claimed(
    context: &Context,
    pod: &Pod,
    claim: &str,
    ephemeral: bool,
    read_only: bool,
) -> Result<Claimed, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_opt(claim).await.map_err(|e| format!("read the claim {namespace}/{claim}: {e}"))?;
    let found = found.ok_or_else(|| format!("persistentvolumeclaim \"{claim}\" not found"))?;
    let owners = found.metadata.owner_references.iter().flatten();
    if ephemeral && !owners.into_iter().any(|o| Some(&o.uid) == pod.metadata.uid.as_ref()) {
        return Err(format!("the claim {namespace}/{claim} was not made for this pod"));
    }
    let phase = found.status.as_ref().and_then(|s| s.phase.as_deref());
    let name = found.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
    let (Some("Bound"), Some(name)) = (phase, name) else {
        return Err(format!("the claim {namespace}/{claim} is not bound to a volume yet"));
    };
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let volume = api.get_opt(&name).await.map_err(|e| format!("read the persistent volume {name}: {e}"))?;
    let spec = volume.and_then(|v| v.spec).ok_or_else(|| format!("persistentvolume \"{name}\" not found"))?;
    let bound_to = spec.claim_ref.as_ref().and_then(|r| r.uid.as_ref());
    if bound_to.is_some() && bound_to != found.metadata.uid.as_ref() {
        return Err(format!(
            "the persistent volume {name} is bound to another claim than {namespace}/{claim}"
        ));
    }
    Ok(Claimed { name, spec, read_only })
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
    let dir = place(context, pod).await?;
    volumes::devices::check(pod, &dir)?;
    let published = crate::csi::volume::publish(context, pod, &dir).await;
    published.map_err(|(volume, message)| Error::SetUp { volume, message })?;
    let mut facts = context.facts(pod_ips);
    facts.tokens = context.tokens.of(pod).await.map_err(failed)?;
    let pod = pod.clone();
    let written = tokio::task::spawn_blocking(move || volumes::set_up(&pod, &dir, &found, &facts)).await;
    written.unwrap_or_else(|e| Err(failed(e.to_string())))
}

/// Whether the volumes of a pod can change while it runs.
pub fn live(pod: &Pod) -> bool {
    volumes::volumes(pod).iter().any(|v| {
        let written = v.config_map.is_some() || v.secret.is_some() || v.projected.is_some();
        written || v.downward_api.is_some() || v.csi.is_some()
    })
}
