//! Volumes of drivers: staged once a node, published once a pod, and given back when the pod is gone. What was published
//! is written beside it, so that another agent can give it back.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, Node, Pod, SecretReference, Volume};
use k8s_openapi::api::storage::v1::{CSIDriver, TokenRequest, VolumeAttachment};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::record::{Record, in_use, is_due, is_published, read, recorded, write};
use super::{Driver, calls, v1};
use crate::context::Context;
use crate::objects::Kind;
use crate::tokens::DEFAULT_SECONDS;
use crate::volumes::claims::Claimed;
use crate::volumes::{PodDir, mounting};
use v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode};

/// The directory of volumes of drivers, in a pod's.
pub const PLUGIN: &str = "kubernetes.io~csi";
/// Of a volume's own, where its driver publishes it.
const MOUNT: &str = "mount";
/// Where drivers find the tokens that they ask for.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Tells the Node's status which attached volumes are in use.
async fn report(context: &Context) -> Result<(), String> {
    let api: Api<Node> = Api::all(context.client.clone());
    let body = json!({"status": {"volumesInUse": in_use(&context.root)}});
    let written = api.patch_status(&context.node_name, &PatchParams::default(), &Patch::Merge(body)).await;
    written.map(drop).map_err(|e| format!("tell the Node of volumes in use: {e}"))
}

/// A volume as the pod's spec or its claim has it.
pub(super) struct Wish {
    pub source: CSIPersistentVolumeSource,
    /// Made for this pod, without a PersistentVolume.
    inline: bool,
    /// The directory's name: the volume of the pod, or the PersistentVolume.
    name: String,
    mode: Mode,
    flags: Vec<String>,
    read_only: bool,
    /// A device, not a filesystem.
    block: bool,
}

impl Wish {
    pub fn capability(&self, group: String) -> v1::VolumeCapability {
        let access = match self.block {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume {
                fs_type: self.source.fs_type.clone().unwrap_or_default(),
                mount_flags: self.flags.clone(),
                volume_mount_group: group,
            }),
        };
        let access_mode = Some(AccessMode { mode: self.mode.into() });
        v1::VolumeCapability { access_type: Some(access), access_mode }
    }
}

fn hash(parts: &[&str]) -> String {
    hex::encode(Sha256::digest(parts.concat()))
}

pub(super) fn wish(pod: &Pod, volume: &Volume, claimed: Option<&Claimed>) -> Option<Wish> {
    if let Some(csi) = &volume.csi {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let source = CSIPersistentVolumeSource {
            driver: csi.driver.clone(),
            volume_handle: format!("csi-{}", hash(&[uid, &volume.name])),
            fs_type: csi.fs_type.clone(),
            volume_attributes: csi.volume_attributes.clone(),
            node_publish_secret_ref: csi.node_publish_secret_ref.as_ref().map(|s| SecretReference {
                name: Some(s.name.clone()),
                namespace: pod.metadata.namespace.clone(),
            }),
            ..Default::default()
        };
        let read_only = csi.read_only == Some(true);
        return Some(Wish {
            source,
            inline: true,
            name: volume.name.clone(),
            mode: Mode::SingleNodeWriter,
            flags: Vec::new(),
            read_only,
            block: false,
        });
    }
    let claimed = claimed?;
    let source = claimed.spec.csi.clone()?;
    let mode = match claimed.spec.access_modes.iter().flatten().next().map(String::as_str) {
        Some("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        Some("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        _ => Mode::SingleNodeWriter,
    };
    Some(Wish {
        read_only: claimed.read_only || source.read_only == Some(true),
        block: claimed.is_block(),
        source,
        inline: false,
        name: claimed.name.clone(),
        mode,
        flags: claimed.spec.mount_options.clone().unwrap_or_default(),
    })
}

/// Where a volume of a driver lies on this node.
pub fn place(pod_dir: &Path, volume: &Volume, claimed: Option<&Claimed>) -> Option<PathBuf> {
    let name = match (&volume.csi, claimed) {
        (Some(_), _) => &volume.name,
        (None, Some(claimed)) if claimed.spec.csi.is_some() => &claimed.name,
        _ => return None,
    };
    let is_name = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    is_name.then(|| pod_dir.join("volumes").join(PLUGIN).join(name).join(MOUNT))
}

/// Publishes every volume of a driver that the pod has and that is not published yet, or that its driver wants to be asked for
/// again.
///
/// # Errors
/// Which volume, and the words of a `FailedMount` Event.
pub async fn publish(context: &Context, pod: &Pod, dir: &PodDir) -> Result<(), (String, String)> {
    for volume in crate::volumes::volumes(pod) {
        let claimed = dir.claimed(&volume.name);
        let Some(wish) = wish(pod, volume, claimed) else { continue };
        let failed = |words: String| (volume.name.clone(), words);
        let target = place(&dir.path, volume, claimed)
            .ok_or_else(|| failed("the name of the volume is not a file name".to_owned()))?;
        let Some(home) = target.parent() else { continue };
        if !is_due(home, &target) {
            continue;
        }
        publish_one(context, pod, &wish, home, &target).await.map_err(failed)?;
    }
    Ok(())
}

async fn publish_one(
    context: &Context,
    pod: &Pod,
    wish: &Wish,
    home: &Path,
    target: &Path,
) -> Result<(), String> {
    let (source, name) = (&wish.source, wish.source.driver.as_str());
    let mut driver = context.csi.get(name).await?;
    let api: Api<CSIDriver> = Api::all(context.client.clone());
    let object = api.get_opt(name).await.map_err(|e| format!("read CSIDriver {name}: {e}"))?;
    let spec = object.map(|o| o.spec).unwrap_or_default();
    let modes = spec.volume_lifecycle_modes.clone().unwrap_or_else(|| vec!["Persistent".to_owned()]);
    let mode = if wish.inline { "Ephemeral" } else { "Persistent" };
    if !modes.iter().any(|m| m == mode) {
        return Err(format!(
            "volume mode \"{mode}\" not supported by driver {name} (only supports {modes:?})"
        ));
    }
    let needs_attaching = !wish.inline && spec.attach_required != Some(false);
    let mut attached = match needs_attaching {
        true => attachment(context, source).await?,
        false => HashMap::new(),
    };
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    let group = group.filter(|_| driver.groups).map(|g| g.to_string()).unwrap_or_default();
    let capability = wish.capability(group);
    let mut about: HashMap<String, String> =
        source.volume_attributes.clone().unwrap_or_default().into_iter().collect();
    if wish.inline || spec.pod_info_on_mount == Some(true) {
        about.extend(pod_info(pod, wish.inline));
    }
    let mut publish_secrets = secrets(context, source.node_publish_secret_ref.as_ref()).await?;
    if let Some(requests) = spec.token_requests.as_deref().filter(|requests| !requests.is_empty()) {
        let holder = match spec.service_account_token_in_secrets {
            Some(true) => &mut publish_secrets,
            _ => &mut about,
        };
        holder.insert(TOKENS.to_owned(), account_tokens(context, pod, requests).await?);
    }
    let again = is_published(home, target);
    let mut record = Record {
        driver_name: name.to_owned(),
        volume_handle: source.volume_handle.clone(),
        spec_vol_id: wish.name.clone(),
        node_name: context.node_name.clone(),
        volume_lifecycle_mode: mode.to_owned(),
        staged: read(home).map(|before| before.staged).unwrap_or_default(),
        attached: needs_attaching,
        // Of one that is asked again this stays, whatever comes of it now.
        mounted: read(home).and_then(|before| before.mounted).filter(|_| again),
        again: spec.requires_republish == Some(true),
    };
    if needs_attaching && !again {
        // What is said to be in use is not detached, unless that was decided before it was said.
        write(home, &record)?;
        report(context).await?;
        attached = attachment(context, source).await?;
    }
    let stages = driver.stages && !wish.inline;
    if stages && !again {
        record.staged = staging(&context.root, name, &source.volume_handle).display().to_string();
    }
    let stage = v1::NodeStageVolumeRequest {
        volume_id: source.volume_handle.clone(),
        publish_context: attached.clone(),
        staging_target_path: record.staged.clone(),
        volume_capability: Some(capability.clone()),
        secrets: secrets(context, source.node_stage_secret_ref.as_ref().filter(|_| stages && !again)).await?,
        volume_context: source.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
    };
    let publish = v1::NodePublishVolumeRequest {
        volume_id: source.volume_handle.clone(),
        publish_context: attached,
        staging_target_path: if stages { record.staged.clone() } else { String::new() },
        target_path: target.display().to_string(),
        volume_capability: Some(capability),
        readonly: wish.read_only,
        secrets: publish_secrets,
        volume_context: about,
    };
    let asked = calls::Asked { stage: stages.then_some(stage), publish };
    calls::publish(&mut driver, context.csi.turns(), home, &record, asked).await?;
    let gives = gives_to_group(wish, spec.fs_group_policy.as_deref());
    if gives && !again && !driver.groups && !wish.read_only && !wish.block {
        let (pod, target) = (pod.clone(), target.to_owned());
        let owned = tokio::task::spawn_blocking(move || crate::volumes::own(&pod, &target)).await;
        owned.unwrap_or_else(|e| Err(e.to_string()))?;
    }
    write(home, &Record { mounted: Some(mounting::is_mounted(target)), ..record })
}

/// Whether the agent gives what is in the volume to the pod's `fsGroup`.
fn gives_to_group(wish: &Wish, policy: Option<&str>) -> bool {
    match policy {
        Some("None") => false,
        Some("File") => true,
        _ => {
            wish.mode == Mode::SingleNodeWriter
                && wish.source.fs_type.as_deref().is_some_and(|t| !t.is_empty())
        }
    }
}

/// Tokens of the pod's service account for the audiences that a driver names.
async fn account_tokens(context: &Context, pod: &Pod, requests: &[TokenRequest]) -> Result<String, String> {
    let mut tokens = BTreeMap::new();
    for request in requests {
        let wish = (request.audience.clone(), request.expiration_seconds.unwrap_or(DEFAULT_SECONDS));
        let issued = context.tokens.get(pod, &wish).await?;
        tokens.insert(wish.0, issued);
    }
    Ok(tokens_text(tokens))
}

/// Tokens by audience, and when they end, as the kubelet writes them for drivers.
fn tokens_text(tokens: BTreeMap<String, (String, Timestamp)>) -> String {
    let one =
        |(token, end): (String, Timestamp)| json!({"token": token, "expirationTimestamp": end.to_string()});
    let all: BTreeMap<String, serde_json::Value> =
        tokens.into_iter().map(|(audience, issued)| (audience, one(issued))).collect();
    json!(all).to_string()
}

fn pod_info(pod: &Pod, inline: bool) -> [(String, String); 5] {
    let key = |name: &str| format!("csi.storage.k8s.io/{name}");
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    [
        (key("pod.name"), text(&pod.metadata.name)),
        (key("pod.namespace"), text(&pod.metadata.namespace)),
        (key("pod.uid"), text(&pod.metadata.uid)),
        (key("serviceAccount.name"), account),
        (key("ephemeral"), inline.to_string()),
    ]
}

/// What the attacher said of a volume that is attached to this node.
async fn attachment(
    context: &Context,
    source: &CSIPersistentVolumeSource,
) -> Result<HashMap<String, String>, String> {
    let name = format!("csi-{}", hash(&[&source.volume_handle, &source.driver, &context.node_name]));
    let api: Api<VolumeAttachment> = Api::all(context.client.clone());
    let found = api.get_opt(&name).await.map_err(|e| format!("read VolumeAttachment {name}: {e}"))?;
    let status = found.filter(|a| a.metadata.deletion_timestamp.is_none()).and_then(|a| a.status);
    match status {
        Some(status) if status.attached => {
            Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect())
        }
        _ => Err(format!(
            "volume {} is not attached to this node yet: VolumeAttachment {name} is awaited, because driver {} needs one (attachRequired)",
            source.volume_handle, source.driver
        )),
    }
}

pub(super) async fn secrets(
    context: &Context,
    reference: Option<&SecretReference>,
) -> Result<HashMap<String, String>, String> {
    let Some(reference) = reference else { return Ok(HashMap::new()) };
    let (name, namespace) =
        (reference.name.clone().unwrap_or_default(), reference.namespace.clone().unwrap_or_default());
    let keys = context.objects.get(Kind::Secret, &namespace, &name).await.map_err(|e| e.to_string())?;
    let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
    Ok(keys.iter().map(|(key, value)| (key.clone(), text(value))).collect())
}

pub(super) fn staging(root: &Path, driver: &str, handle: &str) -> PathBuf {
    let driver: String = driver.chars().filter(|c| *c != '/').collect();
    root.join("plugins/kubernetes.io/csi").join(driver).join(hash(&[handle])).join("globalmount")
}

/// Where a driver has a volume staged; empty: its volumes are not.
pub(super) fn staged(context: &Context, driver: &Driver, source: &CSIPersistentVolumeSource) -> String {
    let path = staging(&context.root, &source.driver, &source.volume_handle);
    if driver.stages { path.display().to_string() } else { String::new() }
}

/// Gives back what a pod has of drivers: before its directory is removed.
///
/// # Errors
/// What a driver says: it is tried again, and nothing is deleted before.
pub async fn give_back(context: &Context, dir: &PodDir) -> anyhow::Result<()> {
    for (home, record) in recorded(&dir.path) {
        let name = record.driver_name.as_str();
        let mut driver = context.csi.get(name).await.map_err(anyhow::Error::msg)?;
        let (turns, target) = (context.csi.turns(), home.join(MOUNT));
        calls::give_back(&mut driver, turns, &context.root, (&home, &target), &record).await?;
        // Said again with the Node's next status if it fails now.
        if record.attached
            && let Err(error) = report(context).await
        {
            tracing::debug!(error, "a volume that is given back");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_find_tokens_by_audience() {
        let issued = ("t".to_owned(), Timestamp::from_second(0).expect("a time"));
        let text = tokens_text(BTreeMap::from([("vault".to_owned(), issued)]));
        let expected = json!({"vault": {"token": "t", "expirationTimestamp": "1970-01-01T00:00:00Z"}});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), expected);
    }
}
