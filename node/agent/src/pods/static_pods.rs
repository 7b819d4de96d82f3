//! Static pods: manifests in a directory of this node, which run whether the API is there or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use coracle_api::qos;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Toleration};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::source::Pods;
use crate::context::Context;

/// On a mirror: the uid of the static pod that it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
const SOURCE: &str = "kubernetes.io/config.source";
const HASH: &str = "kubernetes.io/config.hash";
const SEEN: &str = "kubernetes.io/config.seen";

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Files that are read, and the most of one.
const MAX_FILES: usize = 1000;
const MAX_BYTES: u64 = 1 << 20;

/// Whether a pod comes from a file of this node. Its mirror does not.
pub fn is_static(pod: &Pod) -> bool {
    // Whoever writes such annotations into the API makes no static pod.
    let of_api = pod.metadata.resource_version.is_some();
    let annotations = pod.metadata.annotations.as_ref().filter(|_| !of_api);
    annotations.is_some_and(|a| a.get(SOURCE).is_some_and(|s| s == "file") && !a.contains_key(MIRROR))
}

/// The static pod that an object of the API mirrors.
pub fn mirrors(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

/// Removes a mirror at once; one that is gone is fine.
pub async fn delete(api: &Api<Pod>, mirror: &Pod) -> anyhow::Result<()> {
    let same = Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams::default().grace_period(0).preconditions(same);
    match api.delete(mirror.metadata.name.as_deref().unwrap_or_default(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => Ok(()),
        Err(error) => Err(anyhow::Error::new(error).context("remove the mirror of a static pod")),
    }
}

/// Removes a mirror of nothing.
pub async fn remove_mirror(client: kube::Client, mirror: Pod) {
    let namespace = mirror.metadata.namespace.as_deref().unwrap_or_default();
    if let Err(error) = delete(&Api::namespaced(client, namespace), &mirror).await {
        tracing::warn!(pod = mirror.metadata.name, error = format!("{error:#}"), "a mirror of nothing stays");
    }
}

/// The files, and what was wrong with them last.
pub struct Files {
    path: Option<PathBuf>,
    node: String,
    told: Mutex<Vec<String>>,
}

impl Files {
    /// Those that the node's tuning names.
    pub fn new(context: &Context) -> Self {
        let path = context.tuning.static_pods.clone();
        Self { path, node: context.node_name.clone(), told: Mutex::default() }
    }

    /// Reads them and tells the pods. What cannot be read is told once.
    pub async fn look(&self, context: &Arc<Context>, pods: &Pods) {
        let Some(path) = self.path.clone() else { return pods.set_static(context, Vec::new()) };
        let node = self.node.clone();
        let read = tokio::task::spawn_blocking(move || read(&path, &node)).await;
        let (wanted, wrong) = match read {
            Ok(Ok(read)) => read,
            // A directory that cannot be read is no reason to end pods, now or of an earlier agent.
            Ok(Err(error)) => return self.tell(vec![format!("{error:#}")]),
            Err(_) => return,
        };
        self.tell(wrong);
        pods.set_static(context, wanted);
    }

    fn tell(&self, wrong: Vec<String>) {
        let mut told = self.told.lock();
        for words in wrong.iter().filter(|words| !told.contains(words)) {
            tracing::warn!("static pods: {words}");
        }
        *told = wrong;
    }

    /// Looks again and again.
    pub async fn follow(&self, context: &Arc<Context>, pods: &Pods) {
        if self.path.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(context, pods).await;
        }
    }
}

/// Pods, and what is wrong with the others.
type Read = (Vec<Pod>, Vec<String>);

fn read(path: &Path, node: &str) -> anyhow::Result<Read> {
    let metadata = std::fs::metadata(path).with_context(|| format!("read {}", path.display()))?;
    let mut files = Vec::new();
    if metadata.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
        for entry in entries.take(MAX_FILES) {
            let entry = entry?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !hidden && std::fs::metadata(entry.path()).is_ok_and(|m| m.is_file()) {
                files.push(entry.path());
            }
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    let (mut pods, mut wrong) = (Vec::<Pod>::new(), Vec::new());
    for file in files {
        match pod(&file, node) {
            Ok(pod) if pods.iter().any(|other| name(other) == name(&pod)) => {
                wrong.push(format!("{}: another file has a pod of that name", file.display()));
            }
            Ok(pod) => pods.push(pod),
            Err(error) => wrong.push(format!("{}: {error:#}", file.display())),
        }
    }
    Ok((pods, wrong))
}

fn name(pod: &Pod) -> (Option<&str>, Option<&str>) {
    (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref())
}

fn pod(file: &Path, node: &str) -> anyhow::Result<Pod> {
    let size = std::fs::metadata(file)?.len();
    anyhow::ensure!(size <= MAX_BYTES, "larger than {MAX_BYTES} bytes");
    let text = std::fs::read_to_string(file)?;
    let mut documents = coracle_api::yaml::to_json_documents(&text)?;
    anyhow::ensure!(documents.len() == 1, "holds {} objects instead of one Pod", documents.len());
    let object = documents.remove(0);
    let of = |field: &str| object.get(field).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    anyhow::ensure!(of("kind") == "Pod" && of("apiVersion") == "v1", "is no Pod of v1");
    let mut hash = Sha256::new();
    hash.update(object.to_string());
    hash.update(format!("host:{node}file:{}", file.display()));
    let hash = hex::encode(hash.finalize()).get(..32).unwrap_or_default().to_owned();
    let mut pod = complete(serde_json::from_value(object)?, node, hash)?;
    // Of the spec as the API would have it: amounts may be numbers in a file.
    let class = qos::class(&serde_json::to_value(&pod.spec)?);
    pod.status = Some(PodStatus { qos_class: Some(class.to_owned()), ..Default::default() });
    Ok(pod)
}

/// What a kubelet adds to a static pod.
fn complete(mut pod: Pod, node: &str, hash: String) -> anyhow::Result<Pod> {
    let meta = &mut pod.metadata;
    let base = meta.name.clone().filter(|n| !n.is_empty()).context("has no name")?;
    meta.name = Some(format!("{base}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    meta.uid = Some(hash.clone());
    meta.generation = Some(1);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.remove(MIRROR);
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    annotations.insert(HASH.to_owned(), hash);
    annotations.insert(SEEN.to_owned(), k8s_openapi::jiff::Timestamp::now().to_string());
    let spec = pod.spec.as_mut().context("has no spec")?;
    anyhow::ensure!(!spec.containers.is_empty(), "has no containers");
    anyhow::ensure!(
        spec.service_account_name.as_deref().unwrap_or_default().is_empty(),
        "static pods have no service account"
    );
    let from_api = |v: &k8s_openapi::api::core::v1::Volume| {
        v.config_map.is_some()
            || v.secret.is_some()
            || v.persistent_volume_claim.is_some()
            || v.ephemeral.is_some()
    };
    if let Some(volume) = spec.volumes.iter().flatten().find(|v| from_api(v)) {
        anyhow::bail!("volume {:?}: static pods use no objects of the API", volume.name);
    }
    spec.node_name = Some(node.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(requests);
    if spec.priority.is_none() {
        spec.priority = match spec.priority_class_name.as_deref() {
            Some("system-node-critical") => Some(2_000_001_000),
            Some("system-cluster-critical") => Some(2_000_000_000),
            _ => None,
        };
    }
    // It stays whatever the node's taints.
    let stays = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Default::default()
    };
    spec.tolerations.get_or_insert_default().push(stays);
    Ok(pod)
}

/// Who says only how much it may use at most asks for that.
fn requests(container: &mut Container) {
    let Some(resources) = &mut container.resources else { return };
    for (name, limit) in resources.limits.iter().flatten() {
        let requests = resources.requests.get_or_insert_default();
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_a_file_has_requests_and_a_class() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: m, image: i, \
                    resources: {limits: {cpu: 2, memory: 1Mi}}}]}}";
        std::fs::write(dir.path().join("a.yaml"), text).expect("written");
        let (pods, wrong) = read(dir.path(), "node-1").expect("read");
        let pod = pods.first().unwrap_or_else(|| panic!("{wrong:?}"));
        assert_eq!(pod.status.as_ref().and_then(|s| s.qos_class.as_deref()), Some("Guaranteed"));
        assert_eq!(crate::pods::requests::of_pod(pod), [2000, 1 << 20, 0]);
    }

    #[test]
    fn files_become_pods() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write(
            "a.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: m, image: i}]}\n",
        );
        write("b.json", r#"{"kind": "Service", "apiVersion": "v1"}"#);
        write("c.yaml", "kind: Pod\napiVersion: v1\nmetadata: {name: a}\nspec: {containers: [{name: m}]}");
        write(".hidden.yaml", "no");
        let (pods, wrong) = read(dir.path(), "Node-1").expect("read");
        assert_eq!((pods.len(), wrong.len()), (1, 2), "{wrong:?}");
        let pod = &pods[0];
        assert_eq!(name(pod), (Some("default"), Some("a-node-1")));
        assert!(is_static(pod) && mirrors(pod).is_none());
        let uid = |pods: &[Pod]| pods[0].metadata.uid.clone();
        let (again, _) = read(dir.path(), "Node-1").expect("read");
        assert_eq!(uid(&pods), uid(&again));
        write(
            "a.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: m, image: j}]}\n",
        );
        let (changed, _) = read(dir.path(), "Node-1").expect("read");
        assert_ne!(uid(&pods), uid(&changed));
    }
}
