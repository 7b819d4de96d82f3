//! Devices that pods claim (`resource.k8s.io`): their driver prepares them before the pod's containers start, and takes them
//! back when the last pod that has them is gone. What was prepared is written beside the pod, so that another agent can give
//! it back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::csi::connect;
use crate::volumes::PodDir;

/// The messages of drivers.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}

use v1::dra_plugin_client::DraPluginClient;

/// What a driver says that it serves when it registers.
pub const SERVICE: &str = "v1.DRAPlugin";
const RECORD: &str = "claims.json";
/// Below a pod's directory: what is being prepared.
const HALF: &str = "preparing";

/// The drivers that have registered; cheap to clone.
#[derive(Clone, Default)]
pub struct Drivers(Arc<RwLock<BTreeMap<String, PathBuf>>>);

impl Drivers {
    /// A driver came, or left.
    pub fn set(&self, name: &str, endpoint: Option<PathBuf>) {
        let mut all = self.0.write();
        match endpoint {
            Some(endpoint) => all.insert(name.to_owned(), endpoint),
            None => all.remove(name),
        };
    }

    async fn get(&self, name: &str) -> Result<DraPluginClient<tonic::transport::Channel>, String> {
        let endpoint = self.0.read().get(name).cloned();
        let endpoint = endpoint.ok_or_else(|| format!("DRA driver {name} is not registered"))?;
        Ok(DraPluginClient::new(connect(&endpoint).await?))
    }
}

/// A claim that a pod of this node has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Prepared {
    /// Its name in the pod.
    entry: String,
    name: String,
    namespace: String,
    uid: String,
    drivers: BTreeSet<String>,
    devices: Vec<Device>,
}

/// A device that was prepared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Device {
    /// Empty: of all requests.
    requests: Vec<String>,
    cdi: Vec<String>,
}

fn read(pod_dir: &Path) -> Option<Vec<Prepared>> {
    serde_json::from_slice(&std::fs::read(pod_dir.join(RECORD)).ok()?).ok()
}

fn write(pod_dir: &Path, all: &[Prepared]) -> Result<(), String> {
    let text = serde_json::to_vec(all).map_err(|e| e.to_string())?;
    let failed = |e: std::io::Error| format!("write {}: {e}", pod_dir.join(RECORD).display());
    std::fs::create_dir_all(pod_dir).map_err(failed)?;
    std::fs::write(pod_dir.join(RECORD), text).map_err(failed)
}

/// The claims of a pod: their names in the pod, and as objects.
fn named(pod: &Pod) -> Result<Vec<(String, String)>, String> {
    let made: BTreeMap<&str, Option<&String>> = pod
        .status
        .iter()
        .flat_map(|status| status.resource_claim_statuses.iter().flatten())
        .map(|one| (one.name.as_str(), one.resource_claim_name.as_ref()))
        .collect();
    let mut all = Vec::new();
    for entry in pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten()) {
        match (&entry.resource_claim_name, made.get(entry.name.as_str()).copied()) {
            (Some(name), _) | (None, Some(Some(name))) => all.push((entry.name.clone(), name.clone())),
            // None was made on purpose.
            (None, Some(None)) => {}
            (None, None) => return Err(format!("no resource claim was made for {} yet", entry.name)),
        }
    }
    Ok(all)
}

/// Has the devices of a pod prepared, once.
///
/// # Errors
/// The words of an Event: it is tried again.
pub async fn prepare(context: &Context, pod: &Pod) -> Result<(), String> {
    let claims = named(pod)?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let Some(dir) = PodDir::new(&context.root, uid).filter(|_| !claims.is_empty()) else { return Ok(()) };
    if read(&dir.path).is_some() {
        return Ok(());
    }
    let mut all = Vec::new();
    for (entry, name) in claims {
        all.push(claim(context, pod, entry, &name).await?);
    }
    // Written first, so that what is half done is undone too.
    write(&dir.path.join(HALF), &all)?;
    for one in &mut all {
        for driver in one.drivers.clone() {
            one.devices.extend(ask(context, &driver, one).await?);
        }
    }
    write(&dir.path, &all)
}

async fn claim(context: &Context, pod: &Pod, entry: String, name: &str) -> Result<Prepared, String> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let api: Api<ResourceClaim> = Api::namespaced(context.client.clone(), &namespace);
    let found = api.get_opt(name).await.map_err(|e| format!("read resourceclaim {namespace}/{name}: {e}"))?;
    let found = found.ok_or_else(|| format!("resourceclaim {namespace}/{name} not found"))?;
    let status = found.status.unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !status.reserved_for.iter().flatten().any(|user| user.uid == uid) {
        return Err(format!(
            "pod {} is not allowed to use resource claim {name}",
            pod.metadata.name.as_deref().unwrap_or_default()
        ));
    }
    let allocation =
        status.allocation.ok_or_else(|| format!("resourceclaim {namespace}/{name} not allocated"))?;
    let results = allocation.devices.and_then(|devices| devices.results).unwrap_or_default();
    let drivers = results.into_iter().map(|result| result.driver).collect();
    let uid = found.metadata.uid.unwrap_or_default();
    Ok(Prepared { entry, name: name.to_owned(), namespace, uid, drivers, devices: Vec::new() })
}

fn about(one: &Prepared) -> v1::Claim {
    v1::Claim { namespace: one.namespace.clone(), uid: one.uid.clone(), name: one.name.clone() }
}

async fn ask(context: &Context, driver: &str, one: &Prepared) -> Result<Vec<Device>, String> {
    let mut client = context.claims.get(driver).await?;
    let failed = |why: &str| {
        format!("NodePrepareResources failed for claim {}/{}: {driver}: {why}", one.namespace, one.name)
    };
    let request = v1::NodePrepareResourcesRequest { claims: vec![about(one)] };
    let answer = client.node_prepare_resources(request).await.map_err(|status| failed(status.message()))?;
    let mut answers = answer.into_inner().claims;
    let answer = answers.remove(&one.uid).ok_or_else(|| failed("the driver says nothing of this claim"))?;
    if !answer.error.is_empty() {
        return Err(failed(&answer.error));
    }
    let device = |d: v1::Device| Device { requests: d.request_names, cdi: d.cdi_device_ids };
    Ok(answer.devices.into_iter().map(device).collect())
}

/// The CDI names of the devices that a container gets by the claims that it names.
///
/// # Errors
/// When nothing was prepared for a claim that it names.
pub fn devices(context: &Context, pod: &Pod, spec: &Container) -> Result<Vec<String>, String> {
    let wanted = spec.resources.iter().flat_map(|r| r.claims.iter().flatten());
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let all = PodDir::new(&context.root, uid).and_then(|dir| read(&dir.path)).unwrap_or_default();
    let mut names = Vec::new();
    for one in wanted {
        let prepared = all.iter().find(|prepared| prepared.entry == one.name);
        let prepared =
            prepared.ok_or_else(|| format!("the devices of claim {} are not prepared", one.name))?;
        names.extend(of(prepared, one.request.as_deref()));
    }
    names.dedup();
    Ok(names)
}

/// The devices of a request; of all where none is named.
fn of(prepared: &Prepared, request: Option<&str>) -> Vec<String> {
    let is = |name: &String| {
        request.is_none_or(|wanted| {
            name == wanted || name.split_once('/').is_some_and(|(main, _)| main == wanted)
        })
    };
    let devices = prepared.devices.iter().filter(|d| d.requests.is_empty() || d.requests.iter().any(is));
    devices.flat_map(|d| d.cdi.clone()).collect()
}

/// Gives back what a pod has of drivers: before its directory is removed.
///
/// # Errors
/// What a driver says: it is tried again, and nothing is deleted before.
pub async fn give_back(context: &Context, dir: &PodDir) -> anyhow::Result<()> {
    let half = dir.path.join(HALF);
    let Some(all) = read(&dir.path).or_else(|| read(&half)) else { return Ok(()) };
    let others: BTreeSet<String> = others(&context.root, &dir.path);
    for one in all.iter().filter(|one| !others.contains(&one.uid)) {
        for driver in &one.drivers {
            let mut client = context.claims.get(driver).await.map_err(anyhow::Error::msg)?;
            let request = v1::NodeUnprepareResourcesRequest { claims: vec![about(one)] };
            let answer = client.node_unprepare_resources(request).await?.into_inner().claims.remove(&one.uid);
            let error =
                answer.map_or_else(|| "the driver says nothing of this claim".to_owned(), |a| a.error);
            anyhow::ensure!(
                error.is_empty(),
                "NodeUnprepareResources failed for claim {}: {driver}: {error}",
                one.name
            );
        }
    }
    for path in [dir.path.join(RECORD), half.join(RECORD)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// The claims that other pods of this node have.
fn others(root: &Path, own: &Path) -> BTreeSet<String> {
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let others = pods.map(|pod| pod.path()).filter(|path| path != own);
    let records = others.filter_map(|path| read(&path).or_else(|| read(&path.join(HALF))));
    records.flatten().map(|one| one.uid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_get_the_devices_of_the_requests_that_they_name() {
        let device = |requests: &[&str], cdi: &str| Device {
            requests: requests.iter().map(|r| (*r).to_owned()).collect(),
            cdi: vec![cdi.to_owned()],
        };
        let devices = vec![device(&["a"], "x=1"), device(&["b/large"], "x=2"), device(&[], "x=3")];
        let prepared = Prepared { devices, ..Prepared::default() };
        assert_eq!(of(&prepared, None), ["x=1", "x=2", "x=3"]);
        assert_eq!(of(&prepared, Some("a")), ["x=1", "x=3"]);
        assert_eq!(of(&prepared, Some("b")), ["x=2", "x=3"]);
    }

    #[test]
    fn claims_are_known_by_the_pods_status() {
        let pod = |status| -> Pod {
            let claims = json!([{"name": "a", "resourceClaimName": "shared"}, {"name": "b", "resourceClaimTemplateName": "t"}]);
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "resourceClaims": claims}, "status": status})).unwrap()
        };
        assert!(named(&pod(json!({}))).is_err());
        let made =
            named(&pod(json!({"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x"}]})));
        assert_eq!(made.unwrap(), [("a".into(), "shared".into()), ("b".into(), "p-b-x".into())]);
    }
}
