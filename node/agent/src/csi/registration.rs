//! Drivers that come and go: their sockets in `plugins_registry`, the node's CSINode, its labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{connect, plugin, v1, words};
use crate::context::Context;

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_secs(1);
const MAX_SOCKETS: usize = 1000;
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";

/// Follows the directory until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let directory = context.root.join("plugins_registry");
    if let Err(error) = std::fs::create_dir_all(&directory) {
        return tracing::warn!(%error, directory = %directory.display(), "storage drivers cannot register");
    }
    let mut known: BTreeMap<PathBuf, Option<(bool, String)>> = BTreeMap::new();
    loop {
        look(&context, &directory, &mut known).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn sockets(directory: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let is_socket = |e: &std::fs::DirEntry| e.file_type().is_ok_and(|t| t.is_socket());
    entries.take(MAX_SOCKETS).flatten().filter(is_socket).map(|e| e.path()).collect()
}

async fn look(context: &Context, directory: &Path, known: &mut BTreeMap<PathBuf, Option<(bool, String)>>) {
    let found = sockets(directory);
    let gone: Vec<PathBuf> = known.keys().filter(|path| !found.contains(path)).cloned().collect();
    for path in gone {
        if let Some(Some((storage, name))) = known.remove(&path) {
            tracing::info!(driver = name, "a driver has left");
            if !storage {
                context.claims.set(&name, None);
                continue;
            }
            context.csi.set(&name, None);
            if let Err(error) = tell(context, &name, None).await {
                tracing::warn!(error = format!("{error:#}"), "the CSINode still lists a driver that left");
            }
        }
    }
    for path in found {
        if matches!(known.get(&path), Some(Some(_))) {
            continue;
        }
        match register(context, &path).await {
            Ok(name) => {
                known.insert(path, name);
            }
            // Told once, tried again.
            Err(error) if !known.contains_key(&path) => {
                tracing::warn!(socket = %path.display(), error = format!("{error:#}"), "a plugin cannot register");
                known.insert(path, None);
            }
            Err(_) => {}
        }
    }
}

/// Takes a plugin in: whether it is a storage driver, and its name.
async fn register(context: &Context, socket: &Path) -> anyhow::Result<Option<(bool, String)>> {
    let mut client = plugin::registration_client::RegistrationClient::new(
        connect(socket).await.map_err(anyhow::Error::msg)?,
    );
    let info = client.get_info(plugin::InfoRequest {}).await?.into_inner();
    let storage = info.r#type == "CSIPlugin";
    if !storage && info.r#type != "DRAPlugin" {
        anyhow::bail!("plugins of type {:?} are not supported", info.r#type);
    }
    let taken = if storage { take(context, &info).await } else { take_devices(context, &info) };
    let error = taken.as_ref().err().map(|e| format!("{e:#}")).unwrap_or_default();
    let status = plugin::RegistrationStatus { plugin_registered: taken.is_ok(), error };
    client.notify_registration_status(status).await?;
    taken?;
    tracing::info!(driver = info.name, "a driver has registered");
    Ok(Some((storage, info.name)))
}

/// A driver of devices that pods claim.
fn take_devices(context: &Context, info: &plugin::PluginInfo) -> anyhow::Result<()> {
    let served = |version: &String| version == crate::claims::SERVICE;
    anyhow::ensure!(
        info.supported_versions.iter().any(served),
        "none of {:?} is {}",
        info.supported_versions,
        crate::claims::SERVICE
    );
    let endpoint = PathBuf::from(info.endpoint.trim_start_matches("unix://"));
    context.claims.set(&info.name, Some(endpoint));
    Ok(())
}

async fn take(context: &Context, info: &plugin::PluginInfo) -> anyhow::Result<()> {
    let major = |version: &String| version.trim_start_matches('v').starts_with("1.");
    anyhow::ensure!(
        info.supported_versions.iter().any(major),
        "no version 1 among {:?}",
        info.supported_versions
    );
    let endpoint = PathBuf::from(info.endpoint.trim_start_matches("unix://"));
    let channel = connect(&endpoint).await.map_err(anyhow::Error::msg)?;
    let mut node = v1::node_client::NodeClient::new(channel);
    let answer = node.node_get_info(v1::NodeGetInfoRequest {}).await;
    let answer = answer.map_err(|status| anyhow::anyhow!(words(&info.name, &status)))?.into_inner();
    tell(context, &info.name, Some(&answer)).await.context("tell the API of the driver")?;
    context.csi.set(&info.name, Some(endpoint));
    Ok(())
}

/// Writes the driver into the CSINode and onto the Node, or takes it out.
async fn tell(context: &Context, name: &str, info: Option<&v1::NodeGetInfoResponse>) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let node = nodes.get(&context.node_name).await?;
    let segments =
        info.and_then(|i| i.accessible_topology.as_ref()).map(|t| t.segments.clone()).unwrap_or_default();
    let mut ids: BTreeMap<String, String> = node
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| serde_json::from_str(a.get(NODE_IDS)?).ok())
        .unwrap_or_default();
    match info {
        Some(info) => ids.insert(name.to_owned(), info.node_id.clone()),
        None => ids.remove(name),
    };
    let ids = (!ids.is_empty()).then(|| serde_json::to_string(&ids)).transpose()?;
    let patch = json!({"metadata": {"annotations": {NODE_IDS: ids}, "labels": segments}});
    nodes.patch(&context.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;

    let api: Api<CSINode> = Api::all(context.client.clone());
    let before = api.get_opt(&context.node_name).await?;
    let fresh = before.is_none();
    let mut object = before.unwrap_or_else(|| {
        let mut object = CSINode::default();
        object.metadata.name = Some(context.node_name.clone());
        object.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: context.node_name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            ..Default::default()
        }]);
        object.spec = CSINodeSpec { drivers: Vec::new() };
        object
    });
    object.spec.drivers.retain(|d| d.name != name);
    if let Some(info) = info {
        object.spec.drivers.push(CSINodeDriver {
            name: name.to_owned(),
            node_id: info.node_id.clone(),
            topology_keys: (!segments.is_empty()).then(|| segments.into_keys().collect()),
            allocatable: i32::try_from(info.max_volumes_per_node)
                .ok()
                .filter(|most| *most > 0)
                .map(|most| VolumeNodeResources { count: Some(most) }),
        });
    }
    if fresh {
        api.create(&PostParams::default(), &object).await?;
    } else {
        api.replace(&context.node_name, &PostParams::default(), &object).await?;
    }
    Ok(())
}
