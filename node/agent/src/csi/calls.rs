//! What a driver is asked for one volume of a pod, in its order, with the record beside it: nothing is asked that no record
//! tells of, and the record outlives all that was asked. Of one volume, one thing at a time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use super::record::{Record, is_published, is_used, make, remove, write};
use super::{Driver, v1, words};

/// By the driver and the handle of a volume.
type ByVolume = HashMap<(String, String), Weak<tokio::sync::Mutex<()>>>;

/// Of one volume, one pod at a time stages it, has it grown or gives it back: a pod that ends does not take away what another
/// is about to have, and of two that end one takes it away. Cheap to clone.
#[derive(Clone, Default)]
pub struct Turns(Arc<Mutex<ByVolume>>);

impl Turns {
    /// Waits for the turn, which lasts as long as the answer is held.
    pub async fn take(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        let volume = (driver.to_owned(), handle.to_owned());
        let turn = {
            let mut all = self.0.lock();
            all.retain(|_, turn| turn.strong_count() > 0);
            let known = all.get(&volume).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                all.insert(volume, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

/// What a driver is asked for one volume.
#[derive(Clone)]
pub struct Asked {
    /// Empty: its volumes are not staged.
    pub stage: Option<v1::NodeStageVolumeRequest>,
    /// Once staged.
    pub publish: v1::NodePublishVolumeRequest,
}

/// Has a volume staged and published; one that is published already is published again, and not staged.
///
/// # Errors
/// In the driver's words, or why the record cannot be written.
pub async fn publish(
    driver: &mut Driver,
    turns: &Turns,
    home: &Path,
    record: &Record,
    asked: Asked,
) -> Result<(), String> {
    let Asked { stage, publish } = asked;
    let again = is_published(home, Path::new(&publish.target_path));
    match stage.filter(|_| !again) {
        Some(request) => {
            let _turn = turns.take(&record.driver_name, &record.volume_handle).await;
            make(Path::new(&request.staging_target_path))?;
            // First, so that what is half done is undone too.
            write(home, record)?;
            driver.client.node_stage_volume(request).await.map_err(|e| words(&driver.name, &e))?;
        }
        None => write(home, record)?,
    }
    let published = driver.client.node_publish_volume(publish).await;
    published.map(drop).map_err(|e| words(&driver.name, &e))
}

/// Gives a volume back: it is unstaged with its last pod of this node. Whatever was done of it before is done again.
///
/// # Errors
/// In the driver's words, or what cannot be removed: the record stays, for another try.
pub async fn give_back(
    driver: &mut Driver,
    turns: &Turns,
    root: &Path,
    (home, target): (&Path, &Path),
    record: &Record,
) -> anyhow::Result<()> {
    unpublish(driver, record, target).await?;
    let _turn = turns.take(&record.driver_name, &record.volume_handle).await;
    if !record.staged.is_empty() && !is_used(root, record, home) {
        unstage(driver, record).await?;
    }
    remove(home).with_context(|| format!("remove the record of {}", home.display()))
}

async fn unpublish(driver: &mut Driver, record: &Record, target: &Path) -> anyhow::Result<()> {
    let request = v1::NodeUnpublishVolumeRequest {
        volume_id: record.volume_handle.clone(),
        target_path: target.display().to_string(),
    };
    let done = driver.client.node_unpublish_volume(request).await;
    done.map_err(|e| anyhow::anyhow!(words(&driver.name, &e)))?;
    // The driver removes its target; a directory that it left has to be empty.
    let is_folder = std::fs::symlink_metadata(target).is_ok_and(|found| found.is_dir());
    match if is_folder { std::fs::remove_dir(target) } else { std::fs::remove_file(target) } {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow::Error::new(error).context(format!("remove {}", target.display())))
        }
        _ => Ok(()),
    }
}

async fn unstage(driver: &mut Driver, record: &Record) -> anyhow::Result<()> {
    let request = v1::NodeUnstageVolumeRequest {
        volume_id: record.volume_handle.clone(),
        staging_target_path: record.staged.clone(),
    };
    let done = driver.client.node_unstage_volume(request).await;
    done.map_err(|e| anyhow::anyhow!(words(&driver.name, &e)))?;
    // What a driver leaves in it is not the agent's to delete.
    let _ = std::fs::remove_dir(&record.staged);
    let _ = Path::new(&record.staged).parent().map(std::fs::remove_dir);
    Ok(())
}

#[cfg(test)]
mod tests;
