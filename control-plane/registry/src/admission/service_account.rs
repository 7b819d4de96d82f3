//! Every pod runs as a service account, by default as `default`, which must exist. Its token is mounted into every container.

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::{Value, json};

use crate::value::{at, items, items_mut, list, object, present, set, text};

/// The plugin.
pub struct ServiceAccount;

#[async_trait::async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(pod) = obj else { return Ok(()) };
        if attributes.operation != Operation::Create || !super::writes_pods(attributes) {
            return Ok(());
        }
        // A pod that mirrors a static one runs as nobody.
        if present(pod, "/metadata/annotations/kubernetes.io~1config.mirror") {
            return Ok(());
        }
        let wanted = match text(pod, "/spec/serviceAccountName") {
            "" => "default".to_string(),
            name => name.to_string(),
        };
        let namespace = attributes.request.namespace.as_deref();
        let found = attributes.objects.get("", "serviceaccounts", namespace, &wanted).await?;
        let Some(account) = found else {
            let place = namespace.unwrap_or_default();
            let why = format!(
                "error looking up service account {place}/{wanted}: serviceaccount {wanted:?} not found"
            );
            let pods = GroupResource::new("", "pods");
            return Err(Status::forbidden(
                &pods,
                attributes.request.name.as_deref().unwrap_or_default(),
                why,
            ));
        };
        if let Some(spec) = object(pod, "spec") {
            set(spec, "serviceAccountName", wanted.as_str());
            set(spec, "serviceAccount", wanted);
            let secrets = items(&account, "/imagePullSecrets");
            if items(spec, "/imagePullSecrets").is_empty() && !secrets.is_empty() {
                set(spec, "imagePullSecrets", secrets.to_vec());
            }
            let automount = |from: &Value, at: &str| crate::value::at(from, at).as_bool();
            let automount = automount(spec, "/automountServiceAccountToken")
                .or_else(|| automount(&account, "/automountServiceAccountToken"))
                .unwrap_or(true);
            if automount {
                mount_token(spec);
            }
        }
        Ok(())
    }
}

/// Where programs look for their account.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// An hour, and the 7 seconds by which Kubernetes tells such tokens from those that somebody asked for.
const TOKEN_SECONDS: i64 = 3607;

/// Adds the volume with token, authority and namespace, and mounts it where nothing else is mounted.
fn mount_token(spec: &mut Value) {
    let lacks = |container: &Value| {
        !items(container, "/volumeMounts").iter().any(|m| text(m, "/mountPath") == MOUNT_PATH)
    };
    let lists = ["initContainers", "containers"];
    if !lists.iter().any(|list| items(at(spec, &format!("/{list}")), "").iter().any(lacks)) {
        return;
    }
    let kept =
        items(spec, "/volumes").iter().map(|v| text(v, "/name")).find(|n| n.starts_with(VOLUME_PREFIX));
    let name = match kept {
        Some(name) => name.to_owned(),
        None => {
            let name = coracle_api::names::generate(VOLUME_PREFIX);
            if let Some(volumes) = list(spec, "volumes") {
                volumes.push(token_volume(&name));
            }
            name
        }
    };
    for list_name in lists {
        for container in items_mut(spec, list_name).filter(|c| lacks(c)) {
            if let Some(mounts) = list(container, "volumeMounts") {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            }
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_mounted_once() {
        let mut spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
        });
        mount_token(&mut spec);
        let volume = text(&spec, "/volumes/0/name").to_owned();
        assert!(volume.starts_with(VOLUME_PREFIX));
        assert_eq!(text(&spec, "/containers/0/volumeMounts/0/name"), volume);
        assert_eq!(text(&spec, "/initContainers/0/volumeMounts/0/name"), volume);
        assert_eq!(items(&spec, "/containers/1/volumeMounts").len(), 1);
        let once = spec.clone();
        mount_token(&mut spec);
        assert_eq!(spec, once);
    }
}
