//! The mirror of a static pod: an object in the API that shows the pod to its users. The file decides, the mirror follows.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Worker, report};
use crate::pods::static_pods::{self, MIRROR};

impl Worker {
    /// Writes the status to the mirror, which is made if it is not there.
    pub(super) async fn write_mirror(&mut self, status: PodStatus) -> anyhow::Result<()> {
        let lost = self.mirrors_lost;
        let known = self.mirror.as_ref().filter(|(_, at)| *at == lost).map(|(uid, _)| uid.clone());
        let uid = match known {
            Some(uid) => uid,
            None => {
                let Some(mirror) = self.make_mirror().await? else { return Ok(()) };
                self.written = mirror.status.clone();
                let uid = mirror.metadata.uid.unwrap_or_default();
                self.mirror = Some((uid.clone(), lost));
                uid
            }
        };
        // Where there is no API, the pod runs all the same, and its status is kept here.
        let patch = report::patch(self.written.as_ref(), &status);
        Arc::make_mut(&mut self.pod).status = Some(status.clone());
        let Some(patch) = patch else { return Ok(()) };
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let body = json!({"metadata": {"uid": uid}, "status": patch});
        match self.api().patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await {
            Ok(_) => {
                self.written = Some(status);
                Ok(())
            }
            Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {
                self.mirror = None;
                Ok(())
            }
            Err(error) => Err(anyhow::Error::new(error).context("write the status of a static pod's mirror")),
        }
    }

    /// The mirror of this very pod. One of another file, or one that leaves, is replaced. `None`: an ordinary pod has the
    /// name.
    async fn make_mirror(&self) -> anyhow::Result<Option<Pod>> {
        let api = self.api();
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        if let Some(found) = api.get_opt(&name).await? {
            let Some(of) = static_pods::mirrors(&found) else {
                tracing::warn!(pod = name, "a static pod has no mirror: another pod of that name exists");
                return Ok(None);
            };
            let same = Some(of) == self.pod.metadata.uid.as_deref();
            if same && found.metadata.deletion_timestamp.is_none() {
                return Ok(Some(found));
            }
            static_pods::delete(&api, &found).await?;
        }
        let node = kube::Api::<k8s_openapi::api::core::v1::Node>::all(self.context.client.clone());
        let node = node.get(&self.context.node_name).await?;
        let mut mirror = Pod::clone(&self.pod);
        let meta = &mut mirror.metadata;
        let hash = meta.uid.take().unwrap_or_default();
        meta.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash);
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": self.context.node_name,
            "uid": node.metadata.uid, "controller": true});
        meta.owner_references = Some(vec![serde_json::from_value(owner)?]);
        mirror.status = None;
        Ok(Some(api.create(&PostParams::default(), &mirror).await?))
    }

    /// Removes the mirror, unless another file's pod has taken its place.
    pub(super) async fn delete_mirror(&self) -> anyhow::Result<()> {
        let api = self.api();
        let name = self.pod.metadata.name.clone().unwrap_or_default();
        let found = api.get_opt(&name).await?;
        let own = found.filter(|found| static_pods::mirrors(found) == self.pod.metadata.uid.as_deref());
        match own {
            Some(own) => static_pods::delete(&api, &own).await,
            None => Ok(()),
        }
    }
}
