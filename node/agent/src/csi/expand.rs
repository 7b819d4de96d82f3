//! Volumes whose PersistentVolume has become larger than their claim says: their driver makes the filesystem as large, and
//! the claim is told. Growing the volume itself is the external resizer's.

use std::path::Path;

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimStatus, Pod, Volume};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tonic::Code;

use super::{v1, volume, words};
use crate::context::Context;
use crate::pods::steps::volumes::place;
use crate::volumes::claims::{Claimed, claim};
use crate::volumes::volumes;

const STORAGE: &str = "storage";
const PENDING: &str = "NodeResizePending";
const BEGUN: &str = "NodeResizeInProgress";
const NEVER: &str = "NodeResizeInfeasible";

fn bytes(text: Option<&str>) -> i64 {
    text.and_then(|text| Quantity::parse(text).ok()).map_or(0, |quantity| quantity.value())
}

/// Pure: how large the volume is to be and its claim does not say it is; `None`: nothing is to be done, or not by the node.
fn wanted(claimed: &Claimed, claim: &PersistentVolumeClaimStatus) -> Option<(String, i64)> {
    let size = claimed.spec.capacity.as_ref()?.get(STORAGE)?.0.clone();
    let has = claim.capacity.as_ref().and_then(|c| c.get(STORAGE)).map(|q| q.0.as_str());
    let larger = bytes(Some(&size)) > bytes(has) && has.is_some();
    let step = claim.allocated_resource_statuses.as_ref().and_then(|s| s.get(STORAGE)).map(String::as_str);
    let ours = step.is_none_or(|step| step == PENDING || step == BEGUN);
    let to = (larger && ours && !claimed.read_only).then(|| bytes(Some(&size)))?;
    Some((size, to))
}

/// Pure: what the claim says of an expansion that has come so far.
fn step(claim: &PersistentVolumeClaim, word: &str) -> Value {
    json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {"allocatedResourceStatuses": {STORAGE: word}},
    })
}

/// Pure: what the claim says when its volume has its size.
fn done(claim: &PersistentVolumeClaim, size: &str) -> Value {
    let resizes = ["Resizing", "FileSystemResizePending"];
    let conditions = claim.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let left: Vec<_> = conditions.filter(|c| !resizes.contains(&c.type_.as_str())).collect();
    json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {"capacity": {STORAGE: size}, "conditions": left, "allocatedResourceStatuses": {STORAGE: null}},
    })
}

/// What came of an expansion.
enum Expanded {
    /// The volume has its new size.
    Done,
    /// Nothing of it is to be done on the node.
    Needless,
    /// The driver refuses this size for good, in its words.
    Never(String),
}

/// Lets a driver make its volume as large as it is to be.
///
/// # Errors
/// In the driver's words; it is worth another try.
async fn expand(
    context: &Context,
    pod: &Pod,
    of: &Volume,
    claimed: &Claimed,
    (target, bytes): (&Path, i64),
) -> Result<Expanded, String> {
    let Some(wish) = volume::wish(pod, of, Some(claimed)) else { return Ok(Expanded::Needless) };
    let source = &wish.source;
    let mut driver = context.csi.get(&source.driver).await?;
    if !driver.expands {
        return Ok(Expanded::Needless);
    }
    let request = v1::NodeExpandVolumeRequest {
        volume_id: source.volume_handle.clone(),
        volume_path: target.display().to_string(),
        capacity_range: Some(v1::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        staging_target_path: volume::staged(context, &driver, source),
        volume_capability: Some(wish.capability(String::new())),
        secrets: volume::secrets(context, source.node_expand_secret_ref.as_ref()).await?,
    };
    match driver.client.node_expand_volume(request).await {
        Ok(_) => Ok(Expanded::Done),
        Err(status) => {
            let infeasible =
                [Code::InvalidArgument, Code::OutOfRange, Code::NotFound].contains(&status.code());
            let words = words(&source.driver, &status);
            if infeasible { Ok(Expanded::Never(words)) } else { Err(words) }
        }
    }
}

/// Looks at every claim of a pod. What fails is told by an Event, and tried again with the next look.
pub async fn run(context: &Context, pod: &Pod) {
    let all = volumes(pod).iter().filter_map(|volume| Some((volume, claim(pod, volume)?.0)));
    let all: Vec<_> = all.collect();
    if all.is_empty() || !context.csi.any() {
        return;
    }
    let Ok(dir) = place(context, pod).await else { return };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    for (volume, name) in all {
        let Some(claimed) = dir.claimed(&volume.name) else { continue };
        let Some(source) = &claimed.spec.csi else { continue };
        // Of pods that share it, the first has it grown; the others find that out.
        let _turn = context.csi.turns().take(&source.driver, &source.volume_handle).await;
        let (Some(target), Ok(Some(claim))) = (dir.volume(volume), api.get_opt(&name).await) else {
            continue;
        };
        let Some((size, bytes)) = claim.status.as_ref().and_then(|status| wanted(claimed, status)) else {
            continue;
        };
        let tell = async |body: Value| {
            let params = PatchParams::default();
            let written = api.patch_status(&name, &params, &Patch::Merge(body)).await;
            written.inspect_err(|error| tracing::info!(claim = name, %error, "its size could not be told"))
        };
        let was_begun = claim.status.iter().flat_map(|s| s.allocated_resource_statuses.iter().flatten());
        let pending = was_begun.into_iter().any(|(resource, step)| resource == STORAGE && step == PENDING);
        let claim = match pending {
            true => tell(step(&claim, BEGUN)).await,
            false => Ok(claim),
        };
        let Ok(claim) = claim else { continue };
        let what = &claimed.name;
        let failed = |why: &str| {
            let words = format!("NodeExpandVolume.NodeExpandVolume failed for volume {what:?} : {why}");
            context.recorder.pod(pod, None, true, "VolumeResizeFailed", words);
        };
        match expand(context, pod, volume, claimed, (&target, bytes)).await {
            Ok(Expanded::Done) => {
                let told = match tell(done(&claim, &size)).await {
                    // Others write to it too; the driver need not be asked anew for that.
                    Err(kube::Error::Api(status)) if status.is_conflict() => match api.get(&name).await {
                        Ok(now) => tell(done(&now, &size)).await,
                        Err(error) => Err(error),
                    },
                    told => told,
                };
                if told.is_ok() {
                    let node = &context.node_name;
                    let words = format!("MountVolume.NodeExpandVolume succeeded for volume {what:?} {node}");
                    context.recorder.pod(pod, None, false, "FileSystemResizeSuccessful", words);
                }
            }
            // Who resizes it waits for the node, which has nothing to do.
            Ok(Expanded::Needless) if pending => drop(tell(done(&claim, &size)).await),
            Ok(Expanded::Needless) => {}
            Ok(Expanded::Never(why)) => {
                failed(&why);
                let _ = tell(step(&claim, NEVER)).await;
            }
            Err(why) => failed(&why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_grows_when_its_claim_lags_behind() {
        let claimed = |size: &str, read_only| Claimed {
            spec: serde_json::from_value(json!({"capacity": {"storage": size}})).expect("a spec"),
            read_only,
            ..Claimed::default()
        };
        let claim = |status: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"resourceVersion": "7"}, "status": status}))
                .expect("a claim")
        };
        let of =
            |claimed: &Claimed, status| wanted(claimed, claim(status).status.as_ref().expect("a status"));
        let small = || json!({"capacity": {"storage": "1Gi"}});
        assert_eq!(of(&claimed("2Gi", false), small()), Some(("2Gi".into(), 2 << 30)));
        assert_eq!(of(&claimed("2Gi", true), small()), None);
        assert_eq!(of(&claimed("1024Mi", false), small()), None);
        assert_eq!(of(&claimed("2Gi", false), json!({})), None);
        for (word, ours) in
            [(PENDING, true), (BEGUN, true), (NEVER, false), ("ControllerResizeInProgress", false)]
        {
            let mut status = small();
            status["allocatedResourceStatuses"] = json!({"storage": word});
            assert_eq!(of(&claimed("2Gi", false), status).is_some(), ours, "{word}");
        }
        let before = claim(json!({"capacity": {"storage": "1Gi"}, "conditions": [
            {"type": "FileSystemResizePending", "status": "True"}, {"type": "ModifyingVolume", "status": "True"}]}));
        let patch = done(&before, "2Gi");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["status"]["capacity"], json!({"storage": "2Gi"}));
        assert_eq!(patch["status"]["conditions"], json!([{"type": "ModifyingVolume", "status": "True"}]));
        assert_eq!(patch["status"]["allocatedResourceStatuses"], json!({"storage": null}));
    }
}
