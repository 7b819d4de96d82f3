//! What a worker writes to the API: the status, and in the end the removal of the pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};

use super::Worker;
use crate::pods::state::Fate;
use crate::pods::static_pods;

/// The merge patch that turns the status `old` into `new`; `None` when they are equal.
pub fn patch(old: Option<&PodStatus>, new: &PodStatus) -> Option<Value> {
    let object = |status: Option<&PodStatus>| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (object(old), object(Some(new)));
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        if old.get(&key) != Some(&value) {
            patch.insert(key, value);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

impl Worker {
    pub(super) fn api(&self) -> Api<Pod> {
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), &namespace)
    }

    /// Writes the status if it changed. A pod that is gone needs none.
    pub(super) async fn write_status(&mut self) -> anyhow::Result<()> {
        if self.fate == Fate::Gone {
            return Ok(());
        }
        let status = self.status();
        if static_pods::is_static(&self.pod) {
            return self.write_mirror(status).await;
        }
        let Some(patch) = patch(self.pod.status.as_ref(), &status) else { return Ok(()) };
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let body = json!({"metadata": {"uid": self.pod.metadata.uid}, "status": patch});
        match self.api().patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await {
            Ok(mut pod) => {
                // The spec and the deletion of the answer reach us by the watch.
                if pod.metadata.uid == self.pod.metadata.uid {
                    pod.metadata.managed_fields = None;
                    self.pod = Arc::new(pod);
                }
                Ok(())
            }
            // Removed or replaced meanwhile: the watch will say so.
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
            Err(error) => Err(anyhow::Error::new(error).context("write the status")),
        }
    }

    /// Removes the pod from the API: nothing of it runs any more.
    pub(super) async fn delete(&mut self) -> anyhow::Result<()> {
        if static_pods::is_static(&self.pod) {
            return self.delete_mirror().await;
        }
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let same = Preconditions { uid: self.pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(same);
        match self.api().delete(&name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
            Err(error) => Err(anyhow::Error::new(error).context("remove the pod from the API")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_written() {
        let status = |phase: &str, reason: Option<&str>| PodStatus {
            phase: Some(phase.into()),
            reason: reason.map(str::to_owned),
            host_ip: Some("127.0.1.1".into()),
            ..Default::default()
        };
        assert_eq!(patch(Some(&status("Running", None)), &status("Running", None)), None);
        let changed = patch(Some(&status("Pending", Some("x"))), &status("Running", None));
        assert_eq!(changed, Some(json!({"phase": "Running", "reason": null})));
    }
}
