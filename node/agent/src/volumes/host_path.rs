//! `hostPath` volumes: what has to be at the path, by the volume's type, in the kubelet's words.

use std::fs::{DirBuilder, FileType, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Makes what the type says is to be made, and looks whether what is there is of that type.
///
/// # Errors
/// The words of a `FailedMount` Event, after the volume's name.
pub fn check(volume: &HostPathVolumeSource) -> Result<(), String> {
    let (path, shown) = (Path::new(&volume.path), volume.path.as_str());
    if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("hostPath {shown} must be absolute and without .."));
    }
    // A symbolic link counts as what it points to.
    let found = std::fs::metadata(path).ok().map(|m| m.file_type());
    let is = |wanted: fn(&FileType) -> bool, what: &str| match found.as_ref().is_some_and(wanted) {
        true => Ok(()),
        false => Err(format!("hostPath type check failed: {shown} is not a {what}")),
    };
    match volume.type_.as_deref().unwrap_or_default() {
        // Nothing is asked for: the runtime makes a directory where there is nothing.
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => make_directory(path),
        "Directory" | "DirectoryOrCreate" => is(FileType::is_dir, "directory"),
        "FileOrCreate" if found.is_none() => make_file(path),
        "File" | "FileOrCreate" => is(FileType::is_file, "file"),
        "Socket" => is(FileType::is_socket, "socket file"),
        "CharDevice" => is(FileType::is_char_device, "character device"),
        "BlockDevice" => is(FileType::is_block_device, "block device"),
        other => Err(format!("{other} is an invalid volume type")),
    }
}

fn make_directory(path: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|e| format!("mkdir {}: {e}", path.display()))
}

/// Its folder has to be there, as with the kubelet.
fn make_file(path: &Path) -> Result<(), String> {
    let made = OpenOptions::new().create(true).append(true).mode(0o644).open(path);
    made.map(drop).map_err(|e| format!("open {}: {e}", path.display()))
}
