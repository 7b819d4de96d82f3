//! What a driver was asked to publish, written beside it before it is asked: so that another agent can give it back, and
//! tell what is there from what was only begun.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::volume::PLUGIN;
use crate::volumes::mounting;

const RECORD: &str = "vol_data.json";

/// What was published; the kubelet writes the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub driver_name: String,
    pub volume_handle: String,
    pub spec_vol_id: String,
    pub node_name: String,
    pub volume_lifecycle_mode: String,
    /// Where it was staged; empty: it was not.
    #[serde(default)]
    pub staged: String,
    /// It is attached to this node from outside.
    #[serde(default)]
    pub attached: bool,
    /// Whether its driver mounts it; nothing: the driver has not said yet that it is published.
    #[serde(default)]
    pub mounted: Option<bool>,
    /// Its driver is to be asked again and again (`requiresRepublish`): tokens and secrets end.
    #[serde(default)]
    pub again: bool,
}

/// The names of attached volumes that pods of this node have, as the Node's status says them: those that must not be detached.
pub fn in_use(root: &Path) -> Vec<String> {
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let records = pods.flat_map(|pod| recorded(&pod.path()).into_values());
    let names = records.filter(|r| r.attached);
    let names = names.map(|r| format!("kubernetes.io/csi/{}^{}", r.driver_name, r.volume_handle));
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Whether the driver has published a volume, and it is still there: a restart of the machine takes mounts away, and what
/// were written then would go to the directory below.
pub fn is_published(home: &Path, target: &Path) -> bool {
    match read(home).and_then(|record| record.mounted) {
        Some(true) => mounting::is_mounted(target),
        Some(false) => target.exists(),
        None => false,
    }
}

/// Whether the driver is to be asked for a volume: it is not published, or is to be again and again.
pub fn is_due(home: &Path, target: &Path) -> bool {
    !is_published(home, target) || read(home).is_some_and(|record| record.again)
}

/// Whether a driver wants to be asked again and again for a volume of a pod.
pub fn republishes(pod_dir: &Path) -> bool {
    recorded(pod_dir).values().any(|record| record.again)
}

pub fn make(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|e| format!("create {}: {e}", path.display()))
}

pub fn write(home: &Path, record: &Record) -> Result<(), String> {
    make(home)?;
    let text = serde_json::to_vec(record).map_err(|e| e.to_string())?;
    let (path, half) = (home.join(RECORD), home.join(format!("{RECORD}.tmp")));
    // What is half written would never be given back.
    let written = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&half)?;
        std::io::Write::write_all(&mut file, &text)?;
        file.sync_all()?;
        std::fs::rename(&half, &path)
    };
    written().map_err(|e| format!("write {}: {e}", path.display()))
}

pub fn read(home: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(home.join(RECORD)).ok()?).ok()
}

/// What is recorded in a pod's directory, by the volume's own directory.
pub fn recorded(pod_dir: &Path) -> BTreeMap<PathBuf, Record> {
    let Ok(entries) = std::fs::read_dir(pod_dir.join("volumes").join(PLUGIN)) else { return BTreeMap::new() };
    let homes = entries.take(10_000).flatten().map(|entry| entry.path());
    homes.filter_map(|home| read(&home).map(|record| (home, record))).collect()
}

/// Once it was given back.
pub fn remove(home: &Path) -> std::io::Result<()> {
    std::fs::remove_file(home.join(RECORD))
}

/// Whether another pod of this node has the volume than the one whose record lies in `home`.
pub fn is_used(root: &Path, record: &Record, home: &Path) -> bool {
    let Ok(pods) = std::fs::read_dir(root.join("pods")) else { return false };
    let same = |(place, other): (PathBuf, Record)| {
        place != home
            && other.driver_name == record.driver_name
            && other.volume_handle == record.volume_handle
    };
    pods.flatten().any(|pod| recorded(&pod.path()).into_iter().any(same))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_counts_as_published_when_its_driver_has_said_so_and_it_is_there() {
        let root = tempfile::tempdir().expect("a directory");
        let (home, target) = (root.path().join("v"), root.path().join("v").join("mount"));
        assert!(!is_published(&home, &target));
        let record = |mounted| Record {
            driver_name: "d".into(),
            volume_handle: "h".into(),
            spec_vol_id: "v".into(),
            node_name: "n".into(),
            volume_lifecycle_mode: "Persistent".into(),
            staged: String::new(),
            attached: false,
            mounted,
            again: false,
        };
        std::fs::create_dir_all(&target).expect("a target");
        // Written before the driver is asked, so that it is given back whatever comes of it.
        write(&home, &record(None)).expect("written");
        assert!(!is_published(&home, &target), "the driver has not answered");
        write(&home, &record(Some(false))).expect("written");
        assert!(is_published(&home, &target), "a directory is all that this driver makes");
        write(&home, &record(Some(true))).expect("written");
        assert!(
            !is_published(&home, &target),
            "the machine has restarted: the directory is there, the mount is not"
        );
        assert!(is_published(&home, Path::new("/proc")), "it is mounted");
        assert_eq!(read(&home), Some(record(Some(true))));
    }
}
