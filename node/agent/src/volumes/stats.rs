//! How full volumes of claims are: as their drivers say, or the kernel of what the node has mounted.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Volume};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::claims::{Claimed, claim};
use super::{PodDir, mounting, volumes};
use crate::context::Context;
use crate::csi;
use crate::eviction::signals;
use crate::pods::steps::volumes::place;

/// How long what was measured counts, as with the kubelet (`volumeStatsAggPeriod`).
const FRESH: Duration = Duration::from_secs(60);
/// The same where something could not be measured.
const AGAIN: Duration = Duration::from_secs(5);
/// How long all volumes of a pod may take.
const LONGEST: Duration = Duration::from_secs(10);
/// Pods that are measured at the same time.
const AT_ONCE: usize = 8;

/// Of one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// What can still be had.
    pub available: u64,
    /// All there is.
    pub capacity: u64,
    /// What is taken.
    pub used: u64,
}

/// One volume of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// The name of the pod's volume.
    pub volume: String,
    /// The claim's namespace and name.
    pub claim: (String, String),
    /// Bytes.
    pub bytes: Option<Amount>,
    /// Files.
    pub inodes: Option<Amount>,
}

/// What was measured last, and until when that counts, by the pods' uids.
pub type Measured = Mutex<HashMap<String, (Instant, Arc<Vec<Stats>>)>>;

impl Stats {
    /// In the words of the kubelet's summary.
    pub fn summary(&self, time: &str) -> Value {
        let (namespace, name) = &self.claim;
        let mut all =
            json!({"name": self.volume, "time": time, "pvcRef": {"namespace": namespace, "name": name}});
        if let Some(bytes) = self.bytes {
            all["availableBytes"] = json!(bytes.available);
            all["capacityBytes"] = json!(bytes.capacity);
            all["usedBytes"] = json!(bytes.used);
        }
        if let Some(inodes) = self.inodes {
            all["inodesFree"] = json!(inodes.available);
            all["inodes"] = json!(inodes.capacity);
            all["inodesUsed"] = json!(inodes.used);
        }
        all
    }
}

fn of_driver(usage: &[csi::v1::VolumeUsage], unit: csi::v1::volume_usage::Unit) -> Option<Amount> {
    let one = usage.iter().find(|one| one.unit() == unit)?;
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    Some(Amount { available: number(one.available), capacity: number(one.total), used: number(one.used) })
}

/// Of the filesystem that a directory is on.
fn of_kernel(path: &Path) -> Option<(Amount, Amount)> {
    let amount = |reading: signals::Reading| Amount {
        available: reading.available,
        capacity: reading.capacity,
        used: reading.capacity.saturating_sub(reading.available),
    };
    signals::filesystem(path).map(|(space, files)| (amount(space), amount(files)))
}

/// Bytes and files of a volume, where they are counted at all.
async fn measure(
    context: &Context,
    dir: &PodDir,
    volume: &Volume,
    claimed: &Claimed,
) -> Result<Option<[Option<Amount>; 2]>, String> {
    use csi::v1::volume_usage::Unit;
    let path = dir.volume(volume).ok_or("it has no place on this node")?;
    if let Some(source) = &claimed.spec.csi {
        let usage = csi::usage::read(context, source, &path).await?;
        let amounts = [Unit::Bytes, Unit::Inodes].map(|unit| of_driver(&usage, unit));
        return Ok(amounts.iter().any(Option::is_some).then_some(amounts));
    }
    // A directory of the host is no volume of its own.
    if claimed.spec.host_path.is_some() || claimed.is_block() {
        return Ok(None);
    }
    // Before it is mounted, its directory is one of the node's own disk.
    let is_there = claimed.spec.nfs.is_none() || mounting::is_mounted(&path);
    let counted = tokio::task::spawn_blocking(move || of_kernel(&path).filter(|_| is_there)).await;
    let counted = counted.map_err(|e| e.to_string())?;
    let (bytes, inodes) = counted.ok_or("it is not mounted")?;
    Ok(Some([Some(bytes), Some(inodes)]))
}

/// What of a pod could be measured, and whether that is all.
async fn pod(context: &Context, pod: &Pod) -> Option<(Vec<Stats>, bool)> {
    let dir = place(context, pod).await.ok()?;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let (mut all, mut complete) = (Vec::new(), true);
    for volume in volumes(pod) {
        let (Some((claim, _)), Some(claimed)) = (claim(pod, volume), dir.claimed(&volume.name)) else {
            continue;
        };
        match measure(context, &dir, volume, claimed).await {
            Ok(Some([bytes, inodes])) => {
                let (volume, claim) = (volume.name.clone(), (namespace.clone(), claim));
                all.push(Stats { volume, claim, bytes, inodes });
            }
            Ok(None) => {}
            Err(why) => {
                tracing::debug!(volume = claimed.name, why, "how full a volume is is not known");
                complete = false;
            }
        }
    }
    Some((all, complete))
}

/// Whether a pod has volumes of claims here: not before anything of it is, nor when it has ended.
fn is_counted(root: &Path, pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let has_claims = volumes(pod).iter().any(|volume| claim(pod, volume).is_some());
    let dir = || PodDir::new(root, pod.metadata.uid.as_deref().unwrap_or_default());
    has_claims && !matches!(phase, Some("Succeeded" | "Failed")) && dir().is_some_and(|dir| dir.path.is_dir())
}

/// The volumes of claims of these pods, by the pods' uids. What cannot be measured now is as it was last.
pub async fn claimed(context: &Context, pods: &[Arc<Pod>]) -> HashMap<String, Arc<Vec<Stats>>> {
    let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
    let counted = pods.iter().filter(|one| is_counted(&context.root, one));
    let mine: HashMap<String, Arc<Pod>> = counted.map(|one| (uid(one), one.clone())).collect();
    let stale: Vec<(String, Arc<Pod>)> = {
        let mut measured = context.volume_stats.lock();
        measured.retain(|uid, _| mine.contains_key(uid));
        let fresh = |uid: &String| measured.get(uid).is_some_and(|(until, _)| Instant::now() < *until);
        mine.into_iter().filter(|(uid, _)| !fresh(uid)).collect()
    };
    let measured = futures::stream::iter(stale).map(|(uid, one): (String, Arc<Pod>)| async move {
        let stats = tokio::time::timeout(LONGEST, pod(context, &one)).await.ok().flatten();
        (uid, stats)
    });
    let mut measured = measured.buffer_unordered(AT_ONCE);
    while let Some((uid, stats)) = measured.next().await {
        let mut all = context.volume_stats.lock();
        let last = || all.get(&uid).map(|(_, stats)| stats.clone()).unwrap_or_default();
        let (stats, counts) = match stats {
            Some((stats, true)) => (Arc::new(stats), FRESH),
            Some((stats, false)) => (Arc::new(stats), AGAIN),
            None => (last(), AGAIN),
        };
        all.insert(uid, (Instant::now() + counts, stats));
    }
    context.volume_stats.lock().iter().map(|(uid, (_, stats))| (uid.clone(), stats.clone())).collect()
}

/// A family of metrics: its name, what it says, its value.
type Family = (&'static str, &'static str, fn(&Stats) -> Option<u64>);

const FAMILIES: [Family; 6] = [
    ("available_bytes", "Number of available bytes in the volume", |s| Some(s.bytes?.available)),
    ("capacity_bytes", "Capacity in bytes of the volume", |s| Some(s.bytes?.capacity)),
    ("inodes", "Maximum number of inodes in the volume", |s| Some(s.inodes?.capacity)),
    ("inodes_free", "Number of free inodes in the volume", |s| Some(s.inodes?.available)),
    ("inodes_used", "Number of used inodes in the volume", |s| Some(s.inodes?.used)),
    ("used_bytes", "Number of used bytes in the volume", |s| Some(s.bytes?.used)),
];

/// The metrics `kubelet_volume_stats_*`: each claim once, however many pods have it.
pub fn metrics(all: &HashMap<String, Arc<Vec<Stats>>>) -> String {
    let claims: std::collections::BTreeMap<&(String, String), &Stats> =
        all.values().flat_map(|stats| stats.iter()).map(|stats| (&stats.claim, stats)).collect();
    let mut text = String::new();
    for (name, help, value) in FAMILIES.iter().filter(|_| !claims.is_empty()) {
        let name = format!("kubelet_volume_stats_{name}");
        text += &format!("# HELP {name} [ALPHA] {help}\n# TYPE {name} gauge\n");
        for ((namespace, claim), stats) in &claims {
            if let Some(value) = value(stats) {
                text +=
                    &format!("{name}{{namespace={namespace:?},persistentvolumeclaim={claim:?}}} {value}\n");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use csi::v1::{VolumeUsage, volume_usage::Unit};

    #[test]
    fn what_a_driver_counts_is_told() {
        let usage = [
            VolumeUsage { available: 6, total: 10, used: 4, unit: Unit::Bytes.into() },
            VolumeUsage { available: -1, total: 3, used: 3, unit: Unit::Inodes.into() },
        ];
        let stats = Stats {
            volume: "v".into(),
            claim: ("ns".into(), "data".into()),
            bytes: of_driver(&usage, Unit::Bytes),
            inodes: of_driver(&usage, Unit::Inodes),
        };
        let expected = json!({"name": "v", "time": "t", "pvcRef": {"namespace": "ns", "name": "data"},
            "availableBytes": 6, "capacityBytes": 10, "usedBytes": 4, "inodesFree": 0, "inodes": 3, "inodesUsed": 3});
        assert_eq!(stats.summary("t"), expected);
        assert_eq!(of_driver(&usage[..1], Unit::Inodes), None);
        // Two pods have the claim: it is told once.
        let both = HashMap::from(["a", "b"].map(|uid| (uid.to_owned(), Arc::new(vec![stats.clone()]))));
        let text = metrics(&both);
        let line = "kubelet_volume_stats_used_bytes{namespace=\"ns\",persistentvolumeclaim=\"data\"} 4";
        assert_eq!(text.lines().filter(|l| *l == line).count(), 1, "{text}");
        assert!(
            text.contains(
                "# HELP kubelet_volume_stats_inodes_free [ALPHA] Number of free inodes in the volume"
            )
        );
        assert_eq!(metrics(&HashMap::new()), "");
    }

    #[test]
    fn the_kernel_counts_what_is_mounted() {
        let (bytes, inodes) =
            of_kernel(Path::new("/dev/shm")).or_else(|| of_kernel(Path::new("/"))).expect("a filesystem");
        assert!(bytes.capacity > 0 && bytes.used <= bytes.capacity && inodes.used <= inodes.capacity);
        assert_eq!(of_kernel(Path::new("/none/such")), None);
    }

    #[test]
    fn volumes_are_counted_while_their_pod_is_there() {
        let root = tempfile::tempdir().expect("a directory");
        let pod = |phase: &str, volume: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "status": {"phase": phase},
                "spec": {"containers": [], "volumes": [volume]}}))
            .expect("a Pod")
        };
        let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        assert!(!is_counted(root.path(), &pod("Pending", claim.clone())), "nothing of it is here");
        std::fs::create_dir_all(root.path().join("pods/u")).expect("a directory");
        for (phase, counts) in [("Pending", true), ("Running", true), ("Succeeded", false), ("Failed", false)]
        {
            assert_eq!(is_counted(root.path(), &pod(phase, claim.clone())), counts, "{phase}");
        }
        assert!(!is_counted(root.path(), &pod("Running", json!({"name": "v", "emptyDir": {}}))));
    }
}
