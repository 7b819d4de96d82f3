//! Writes a set of files so that a reader sees all of the old or all of the new: a fresh directory, and then one rename
//! of the link `..data` that every visible name goes through.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};

use super::ownership::{self, Group};
use super::sources::Files;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Brings a volume to `files`, which are `group`'s where there is one. Returns false when it already was so.
pub fn write(volume: &Dir, files: &Files, group: Option<Group>) -> io::Result<bool> {
    let current = volume.read_link_contents(DATA).ok();
    if let Some(current) = &current
        && is_same(volume, current, files, group)
    {
        return Ok(false);
    }
    let fresh = fresh_dir(volume)?;
    let filled = volume.open_dir(&fresh)?;
    fill(&filled, files)?;
    // Before anybody sees it: who reads by the group alone reads all of the old or all of the new too.
    if let Some(group) = group {
        ownership::give(&filled, group)?;
        ownership::give_directory(volume, group)?;
    }
    let _ = volume.remove_file(DATA_NEW);
    volume.symlink_contents(&fresh, DATA_NEW)?;
    volume.rename(DATA_NEW, volume, DATA)?;
    link_names(volume, files)?;
    // What the old directory held is gone for new opens; open files stay readable.
    for entry in volume.entries()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("..") && name != DATA && name != fresh {
            let _ = volume.remove_dir_all(&name);
        }
    }
    Ok(true)
}

fn fresh_dir(volume: &Dir) -> io::Result<String> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    for _ in 0..100 {
        let now = k8s_openapi::jiff::Timestamp::now().as_microsecond();
        let name = format!("..{now}.{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let mut builder = DirBuilder::new();
        builder.mode(0o755);
        match volume.create_dir_with(&name, &builder) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no free name for a new version of the volume"))
}

fn fill(dir: &Dir, files: &Files) -> io::Result<()> {
    for (path, file) in files {
        if let Some(parent) = Path::new(path).parent()
            && !parent.as_os_str().is_empty()
        {
            dir.create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut target = dir.open_with(path, &options)?;
        target.write_all(&file.data)?;
        // After the write: a mode without write permission must not stop it, nor the umask weaken it.
        target.set_permissions(Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

fn is_same(volume: &Dir, current: &Path, files: &Files, group: Option<Group>) -> bool {
    let Ok(dir) = volume.open_dir(current) else { return false };
    let mut found = BTreeSet::new();
    if list(&dir, "", &mut found, 0).is_err() || found.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        let mode = dir.metadata(path).map(|m| m.permissions().mode() & 0o777).ok();
        let wanted = group.map_or(file.mode, |group| group.file(file.mode));
        mode == Some(wanted) && dir.read(path).is_ok_and(|data| data == file.data)
    })
}

fn list(dir: &Dir, prefix: &str, found: &mut BTreeSet<String>, depth: usize) -> io::Result<()> {
    if depth > 64 || found.len() > 100_000 {
        return Err(io::Error::other("too deep or too many"));
    }
    for entry in dir.entries()? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.open_dir()?, &format!("{name}/"), found, depth + 1)?;
        } else {
            found.insert(name);
        }
    }
    Ok(())
}

/// The names that a container sees: links through `..data`, one for each first component.
fn link_names(volume: &Dir, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        if volume.symlink_metadata(name).is_err() {
            volume.symlink_contents(format!("{DATA}/{name}"), name)?;
        }
    }
    for entry in volume.entries()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) {
            volume.remove_file(&name)?;
        }
    }
    Ok(())
}
