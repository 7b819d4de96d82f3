//! What Linux containers have written to their own files: counted aside and now and then, for that takes as long as there
//! are files.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_cri_api::v1;
use coracle_oci::rootfs::{Written, written};
use parking_lot::Mutex;

use super::value;

/// How long a count serves.
const FRESH: Duration = Duration::from_secs(10);
/// How long a container that was never counted is waited for.
const FIRST: Duration = Duration::from_millis(500);

/// The counts, by container. Clones share them.
#[derive(Clone, Default)]
pub struct Layers {
    known: Arc<Mutex<HashMap<String, Counted>>>,
    /// One count at a time.
    turn: Arc<Mutex<()>>,
}

#[derive(Clone)]
struct Counted {
    at: Instant,
    timestamp_ns: i64,
    folder: PathBuf,
    written: Written,
}

impl Layers {
    /// Has these containers' folders counted, where that was long ago: what is known meanwhile serves. One that was never
    /// counted is waited for, shortly. Containers that are not named are forgotten.
    pub async fn refresh(&self, folders: HashMap<String, PathBuf>) {
        let (stale, first) = {
            let mut known = self.known.lock();
            known.retain(|id, _| folders.contains_key(id));
            let first = folders.keys().any(|id| !known.contains_key(id));
            let stale = |id: &String| known.get(id).is_none_or(|counted| counted.at.elapsed() >= FRESH);
            let stale: Vec<_> = folders.into_iter().filter(|(id, _)| stale(id)).collect();
            (stale, first)
        };
        if stale.is_empty() {
            return;
        }
        let own = self.clone();
        let counting = tokio::task::spawn_blocking(move || own.count(stale));
        if first {
            let _ = tokio::time::timeout(FIRST, counting).await;
        }
    }

    /// Leaves it to who counts already, if somebody does.
    fn count(&self, folders: Vec<(String, PathBuf)>) {
        let Some(_turn) = self.turn.try_lock() else { return };
        for (id, folder) in folders {
            let written = written(&folder);
            let (at, timestamp_ns) = (Instant::now(), crate::record::now_ns());
            self.known.lock().insert(id, Counted { at, timestamp_ns, folder, written });
        }
    }

    /// What a container had written when it was last counted.
    pub fn of(&self, id: &str) -> Option<v1::FilesystemUsage> {
        let counted = self.known.lock().get(id).cloned()?;
        let mountpoint = counted.folder.to_string_lossy().into_owned();
        Some(v1::FilesystemUsage {
            timestamp: counted.timestamp_ns,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
            used_bytes: value(counted.written.bytes),
            inodes_used: value(counted.written.files),
        })
    }
}
