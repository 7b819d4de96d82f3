//! What a running container is, in one file: the processes as CRIU writes them for the OCI runtime, what it was made of,
//! and what it changed of its image. The entries have the names that other runtimes give them.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::runtime::Runtime;

/// A folder for one checkpoint, gone with it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes a checkpoint of the container whose bundle is in `dir` to `location`; the container runs on.
///
/// # Errors
/// What the OCI runtime and CRIU say when they cannot; no file is left then.
pub async fn write(runtime: &Runtime, id: &str, dir: &Path, location: &Path) -> anyhow::Result<()> {
    if !location.is_absolute() {
        bail!("the location {:?} of the checkpoint is not absolute", location.display());
    }
    let scratch = Scratch(dir.join("checkpoint"));
    std::fs::create_dir(&scratch.0).context("another checkpoint of it is being written")?;
    let (images, work) = (scratch.0.join("checkpoint"), scratch.0.join("work"));
    let (images_of, work_of) = (images.as_os_str(), work.as_os_str());
    let args = ["checkpoint".as_ref(), "--image-path".as_ref(), images_of, "--work-path".as_ref(), work_of];
    let args = args.into_iter().chain(["--leave-running".as_ref(), "--file-locks".as_ref(), id.as_ref()]);
    runtime.run(args).await.context("checkpoint")?;
    let (dir, location) = (dir.to_owned(), location.to_owned());
    let packed = tokio::task::spawn_blocking(move || {
        let packed = pack(&dir, &images, &location);
        if packed.is_err() {
            let _ = std::fs::remove_file(&location);
        }
        packed.with_context(|| format!("write {}", location.display()))
    });
    packed.await?
}

fn pack(dir: &Path, images: &Path, location: &Path) -> io::Result<()> {
    // It holds the container's memory.
    let file = File::options().write(true).create_new(true).mode(0o600).open(location)?;
    let mut archive = tar::Builder::new(file);
    archive.follow_symlinks(false);
    archive.append_dir_all("checkpoint", images)?;
    archive.append_path_with_name(dir.join("config.json"), "spec.dump")?;
    archive.append_path_with_name(dir.join(crate::shim::file::CONFIG), "config.dump")?;
    let mut changes = tar::Builder::new(Vec::new());
    changes.follow_symlinks(false);
    changes.append_dir_all(".", dir.join("upper"))?;
    let changes = changes.into_inner()?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(changes.len() as u64);
    archive.append_data(&mut header, "rootfs-diff.tar", changes.as_slice())?;
    archive.into_inner()?.sync_all()
}
