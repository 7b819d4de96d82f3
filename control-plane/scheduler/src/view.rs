//! What the scheduler keeps of pods and nodes: little, so that 150,000 pods fit.

use std::borrow::Cow;
use std::collections::BTreeMap;

use coracle_api::quantity::Quantity;
use coracle_controllers::view::slim;
use k8s_openapi::api::core::v1::{
    Affinity, Container, Node, PodResourceClaimStatus, PodSpec, Taint, Toleration, TopologySpreadConstraint,
    Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use kube::core::{DynamicResourceScope, ObjectMeta};
use serde::Deserialize;

use crate::plugins::node_ports::{ANY, HostPort};

/// What pods ask for and nodes have, in each resource's base unit (CPU in thousandths).
pub type Resources = BTreeMap<String, i64>;

/// A pod as the API tells of it: what is read here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    #[serde(deserialize_with = "slim")]
    pub metadata: ObjectMeta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

/// What is read of a pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    phase: Option<String>,
    nominated_node_name: Option<String>,
    start_time: Option<Time>,
    resource_claim_statuses: Option<Vec<PodResourceClaimStatus>>,
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The node it is on; empty: it waits.
    pub node: String,
    pub scheduler: String,
    pub priority: i32,
    /// Whole seconds since the Unix epoch.
    pub created: i64,
    pub requests: Resources,
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<Box<Affinity>>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    /// Names of its images, with tags.
    pub images: Vec<String>,
    /// The uid of its controller; empty: none.
    pub owner: String,
    pub gated: bool,
    /// The group, as `namespace/name`, that it is placed with; empty: none.
    pub group: String,
    pub labels: BTreeMap<String, String>,
    pub spread: Vec<TopologySpreadConstraint>,
    /// Names of its claims, in its namespace.
    pub claims: Vec<String>,
    /// Its claims of devices: their names in the pod, and those of the claims where they are known.
    pub devices: Vec<(String, Option<String>)>,
    /// Whether it may take the place of pods of lower priority.
    pub preempts: bool,
    /// The node where others were stopped for it.
    pub nominated: String,
    /// When it started, in seconds since the Unix epoch.
    pub started: i64,
    /// Ended or being deleted: it takes no new node, and once ended, no room.
    pub ended: bool,
    pub deleting: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    /// Sizes in bytes of the images that it has, by name.
    pub images: BTreeMap<String, i64>,
}

impl PodView {
    /// Keeps what matters.
    pub fn of(pod: &Pod) -> Self {
        let (meta, spec, status) = (&pod.metadata, &pod.spec, &pod.status);
        let owner = meta.owner_references.iter().flatten().find(|one| one.controller == Some(true));
        let ports = spec.containers.iter().flat_map(|one| one.ports.iter().flatten());
        let host_ports = ports
            .filter_map(|port| {
                let number = port.host_port.filter(|number| *number > 0)?;
                let address = port.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "::");
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some((protocol, number, address.unwrap_or_else(|| ANY.to_owned())))
            })
            .collect();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            requests: requests(&spec.containers, spec.init_containers.as_deref().unwrap_or_default()),
            node: spec.node_name.clone().unwrap_or_default(),
            scheduler: spec.scheduler_name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            affinity: spec.affinity.clone().map(Box::new),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            host_ports,
            images: spec.containers.iter().filter_map(|one| Some(with_tag(one.image.as_deref()?))).collect(),
            owner: owner.map(|one| one.uid.clone()).unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            spread: spec.topology_spread_constraints.clone().unwrap_or_default(),
            claims: claims(
                spec.volumes.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
            ),
            devices: devices(pod),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            nominated: status.nominated_node_name.clone().unwrap_or_default(),
            started: status.start_time.as_ref().map_or(0, |time| time.0.as_second()),
            gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
            group: group(pod).unwrap_or_default(),
            ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

// An image without tag or digest is its latest.
fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

fn claims(volumes: &[Volume], pod: &str) -> Vec<String> {
    let claim = |volume: &Volume| match &volume.persistent_volume_claim {
        Some(claim) => Some(claim.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{pod}-{}", volume.name)),
    };
    volumes.iter().filter_map(claim).collect()
}

fn group(pod: &Pod) -> Option<String> {
    let name = pod.spec.scheduling_group.as_ref()?.pod_group_name.as_ref()?;
    Some(format!("{}/{name}", pod.metadata.namespace.as_deref()?))
}

fn devices(pod: &Pod) -> Vec<(String, Option<String>)> {
    let made = pod.status.resource_claim_statuses.iter().flatten();
    let made: BTreeMap<&str, Option<&String>> =
        made.map(|one| (one.name.as_str(), one.resource_claim_name.as_ref())).collect();
    let entries = pod.spec.resource_claims.iter().flatten();
    let claim =
        |name: &str, named: Option<&String>| named.or_else(|| made.get(name).copied().flatten()).cloned();
    // An entry for which no claim was made on purpose needs none.
    let needed =
        entries.filter(|one| one.resource_claim_name.is_some() || made.get(one.name.as_str()) != Some(&None));
    needed.map(|one| (one.name.clone(), claim(&one.name, one.resource_claim_name.as_ref()))).collect()
}

impl NodeView {
    /// Keeps what matters.
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let allocatable = node.status.iter().flat_map(|status| status.allocatable.iter().flatten());
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            allocatable: allocatable.map(|(name, text)| (name.clone(), amount(name, &text.0))).collect(),
            images: node
                .status
                .iter()
                .flat_map(|status| status.images.iter().flatten())
                .flat_map(|image| {
                    let size = image.size_bytes.unwrap_or(0);
                    image.names.iter().flatten().map(move |name| (with_tag(name), size))
                })
                .collect(),
        }
    }
}

/// A pod's requests: the sum over its containers and sidecars, or what an init container takes beside the sidecars
/// that started before it where that is more.
fn requests(containers: &[Container], inits: &[Container]) -> Resources {
    let mut sidecars = Resources::new();
    let mut largest = Resources::new();
    for init in inits {
        let mut while_it_runs = sidecars.clone();
        add(&mut while_it_runs, &of(init));
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars.clone_from(&while_it_runs);
        }
        for (name, value) in while_it_runs {
            let most = largest.entry(name).or_default();
            *most = value.max(*most);
        }
    }
    let mut sum = sidecars;
    for one in containers {
        add(&mut sum, &of(one));
    }
    for (name, value) in largest {
        let total = sum.entry(name).or_default();
        *total = value.max(*total);
    }
    sum.insert("pods".to_owned(), 1);
    sum
}

fn of(container: &Container) -> Resources {
    let wanted = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    wanted.into_iter().flatten().map(|(name, text)| (name.clone(), amount(name, &text.0))).collect()
}

/// The API has validated quantities; what still cannot be read counts as nothing.
fn amount(name: &str, text: &str) -> i64 {
    let Ok(quantity) = Quantity::parse(text) else { return 0 };
    if name == "cpu" { quantity.milli_value() } else { quantity.value() }
}

/// Adds to a sum.
pub fn add(sum: &mut Resources, more: &Resources) {
    for (name, value) in more {
        let total = sum.entry(name.clone()).or_default();
        *total = total.saturating_add(*value);
    }
}

/// Takes away from a sum.
pub fn subtract(sum: &mut Resources, less: &Resources) {
    for (name, value) in less {
        let total = sum.entry(name.clone()).or_default();
        *total = total.saturating_sub(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_init_container_counts_beside_the_sidecars_before_it() {
        let one = |name: &str, cpu: &str, policy: Option<&str>| json!({"name": name, "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        let pod = json!({"spec": {
            "containers": [one("main", "1", None)],
            "initContainers": [one("side", "500m", Some("Always")), one("init", "2", None)],
        }});
        let view = PodView::of(&serde_json::from_value(pod).unwrap());
        assert_eq!(view.requests.get("cpu"), Some(&2500));
    }
}
