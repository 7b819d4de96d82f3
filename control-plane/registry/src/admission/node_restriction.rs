//! A node writes only what is its own: its Node, and the status of pods that are bound to it. The authorizer cannot tell, for
//! it does not see objects.

use coracle_api::meta;
use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::authz::node::node_of;
use crate::value::{at, items, present, same, text};

/// Labels of Kubernetes' own domains that a node may set on itself.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "node.kubernetes.io/windows-build",
];
const OWN_LABEL_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

/// On a PersistentVolume: its data lies on a node, which removes it first.
const LOCAL_DATA: &str = "coracle.dev/local-data";

/// The plugin.
pub struct NodeRestriction;

#[async_trait::async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let cx = attributes.request;
        let Some(node) = node_of(&cx.user) else { return Ok(()) };
        let refused = match (cx.group.as_str(), cx.resource.as_str()) {
            ("", "pods") => pod(attributes, obj, node).await?,
            ("", "nodes") => own_node(attributes, obj, node),
            ("", "persistentvolumes") => volume(attributes, obj, node).await?,
            _ => None,
        };
        match refused {
            None => Ok(()),
            Some(why) => {
                let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
                Err(Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), why))
            }
        }
    }
}

/// Why a node may not write a pod.
async fn pod(attributes: &Attributes<'_>, obj: Option<&Value>, node: &str) -> Result<Option<String>, Status> {
    let cx = attributes.request;
    let foreign = |pod: &Value| {
        (text(pod, "/spec/nodeName") != node)
            .then(|| format!("node {node:?} can only write pods with spec.nodeName set to itself"))
    };
    Ok(match (attributes.operation, cx.subresource.as_deref()) {
        (Operation::Create, None) => {
            let Some(new) = obj else { return Ok(None) };
            if !present(new, "/metadata/annotations/kubernetes.io~1config.mirror") {
                let name = meta::name(new).unwrap_or_default();
                return Ok(Some(format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods, not {name:?}"
                )));
            }
            if !text(new, "/spec/serviceAccountName").is_empty() {
                return Ok(Some(format!(
                    "node {node:?} can not create pods that reference a service account"
                )));
            }
            foreign(new)
        }
        (Operation::Create, Some("eviction")) => {
            let name = cx.name.as_deref().unwrap_or_default();
            match attributes.objects.get("", "pods", cx.namespace.as_deref(), name).await? {
                Some(pod) => foreign(&pod),
                None => None,
            }
        }
        (Operation::Update, Some("status")) => match (attributes.old, obj) {
            (Some(old), Some(new)) => foreign(old).or_else(|| {
                let changed = !same(at(old, "/metadata/labels"), at(new, "/metadata/labels"));
                changed.then(|| format!("node {node:?} cannot update labels through pod status"))
            }),
            _ => None,
        },
        (Operation::Delete, None) => attributes.old.and_then(foreign),
        (Operation::Connect, _) => None,
        (operation, subresource) => Some(format!(
            "unexpected operation {operation:?} on {} by node {node:?}",
            subresource.map_or_else(|| "pods".to_owned(), |s| format!("pods/{s}"))
        )),
    })
}

/// Why a node may not write a volume: it lets go of volumes whose data lies on it, and does nothing else to them.
async fn volume(
    attributes: &Attributes<'_>,
    obj: Option<&Value>,
    node: &str,
) -> Result<Option<String>, Status> {
    let name = attributes.request.name.as_deref().unwrap_or_default();
    let (Operation::Update, Some(new), Some(old)) = (attributes.operation, obj, attributes.old) else {
        return Ok(Some(format!(
            "unexpected operation {:?} on volumes by node {node:?}",
            attributes.operation
        )));
    };
    let own = attributes.objects.get("", "nodes", None, node).await?.unwrap_or_default();
    let host = meta::label(&own, "kubernetes.io/hostname").unwrap_or(node);
    if !lies_on(old, host) {
        return Ok(Some(format!(
            "node {node:?} is not allowed to modify volume {name:?}, which is not its own"
        )));
    }
    let bare = |volume: &Value| {
        let mut volume = volume.clone();
        for part in ["finalizers", "managedFields", "resourceVersion", "generation"] {
            meta::remove_metadata(&mut volume, part);
        }
        volume
    };
    let kept: Vec<&str> = meta::finalizers(new).collect();
    let left = meta::finalizers(old).filter(|f| *f != LOCAL_DATA);
    let lets_go = left.eq(kept.iter().copied().filter(|f| *f != LOCAL_DATA));
    let fits = lets_go && kept.iter().all(|f| meta::finalizers(old).any(|o| o == *f));
    Ok((!fits || !same(&bare(new), &bare(old)))
        .then(|| format!("node {node:?} may only take the finalizer {LOCAL_DATA} from volume {name:?}")))
}

/// Whether a volume can be used on one host alone, which is this one.
fn lies_on(volume: &Value, host: &str) -> bool {
    let terms = items(volume, "/spec/nodeAffinity/required/nodeSelectorTerms");
    let here = |requirement: &Value| {
        let values = items(requirement, "/values");
        text(requirement, "/key") == "kubernetes.io/hostname"
            && text(requirement, "/operator") == "In"
            && matches!(values, [one] if one == host)
    };
    !terms.is_empty() && terms.iter().all(|t| items(t, "/matchExpressions").iter().any(here))
}

/// Why a node may not write a Node.
fn own_node(attributes: &Attributes<'_>, obj: Option<&Value>, node: &str) -> Option<String> {
    let name = attributes.request.name.as_deref().unwrap_or_default();
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let (new, old) = (obj?, attributes.old.unwrap_or(&Value::Null));
    let changed: Vec<&str> = meta::labels(new)
        .filter(|(key, value)| meta::label(old, key) != Some(value))
        .map(|(key, _)| key)
        .chain(meta::labels(old).map(|(key, _)| key).filter(|key| meta::label(new, key).is_none()))
        .filter(|key| !may_set(key))
        .collect();
    if !changed.is_empty() {
        return Some(format!("is not allowed to modify labels: {}", changed.join(", ")));
    }
    if attributes.operation == Operation::Update && !same(at(new, "/spec/taints"), at(old, "/spec/taints")) {
        return Some(format!("node {node:?} is not allowed to modify taints"));
    }
    None
}

/// Whether a node may set this label on itself.
fn may_set(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let kubernetes = ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|known| domain == *known || domain.strip_suffix(known).is_some_and(|rest| rest.ends_with('.')));
    !kubernetes
        || OWN_LABELS.contains(&key)
        || OWN_LABEL_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_a_node() {
        for (key, expected) in [
            ("team", true),
            ("example.com/x", true),
            ("kubernetes.io/hostname", true),
            ("node.kubernetes.io/x", true),
            ("node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("x.k8s.io/y", false),
            ("notk8s.io/y", true),
        ] {
            assert_eq!(may_set(key), expected, "{key}");
        }
    }
}
