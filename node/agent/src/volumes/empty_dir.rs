//! emptyDir volumes: on the disk, in memory or of huge pages. One that is there is whole, whenever an agent ended before:
//! any user of the pod may write there, and it is the pod's `fsGroup`'s.

use std::path::Path;

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};

use super::{PodDir, huge_pages, is_memory, memory, mounting, own, ownership};

/// Makes the volume at its place, if it is not there.
///
/// # Errors
/// What cannot be made or mounted.
pub fn set_up(
    pod: &Pod,
    volume: &Volume,
    source: &EmptyDirVolumeSource,
    dir: &PodDir,
    path: &Path,
) -> Result<(), String> {
    if is_memory(volume) && memory::directory(&dir.root, &dir.uid).is_some_and(|own| path.starts_with(own)) {
        return memory::make(path).map_err(|e| format!("make {}: {e}", path.display()));
    }
    let group = ownership::group(pod, false);
    if let Some(medium) = huge_pages::medium(volume) {
        let size = huge_pages::page_size(medium, pod)?;
        create(path)?;
        let mounted = mounting::huge_pages(path, size, group)?;
        return if mounted { own(pod, path) } else { Ok(()) };
    }
    // After a stop, or the machine's restart, the directory is there and its memory is not.
    if is_memory(volume) && nix::unistd::geteuid().is_root() {
        let limit = source.size_limit.as_ref().and_then(|q| Quantity::parse(&q.0).ok());
        let limit = limit.and_then(|q| u64::try_from(q.value()).ok()).filter(|bytes| *bytes > 0);
        create(path)?;
        return mounting::memory(path, limit, group).map(drop);
    }
    on_disk(pod, path)
}

fn create(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|e| format!("create {}: {e}", path.display()))
}

/// It has its name when it is as it should be: what the pod makes of it then is the pod's.
fn on_disk(pod: &Pod, path: &Path) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No name of a volume begins so.
    let half = path.with_file_name(format!(".{name}.half"));
    create(&half)?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&half, open).map_err(|e| format!("open {} to all: {e}", half.display()))?;
    own(pod, &half)?;
    std::fs::rename(&half, path).map_err(|e| format!("name {}: {e}", path.display()))
}
