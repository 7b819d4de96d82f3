//! What a running container is, in one file: the processes as CRIU writes them for the OCI runtime, what it was made of,
//! and what it changed of its image. The entries have the names that other runtimes give them.

mod archive;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use crate::runtime::Runtime;
use archive::{Archive, pack};

/// A container's folder for the one checkpoint of it that is being written; gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn path(dir: &Path) -> PathBuf {
        dir.join("checkpoint")
    }

    fn make(dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(dir);
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("another checkpoint of it is being written")
            }
            Err(error) => Err(error).with_context(|| format!("create {}", path.display())),
        }
    }

    fn images(&self) -> PathBuf {
        self.0.join("checkpoint")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes what a service that ended meanwhile left of a checkpoint in a container's folder.
pub fn forget(dir: &Path) {
    let _ = std::fs::remove_dir_all(Scratch::path(dir));
}

/// Writes a checkpoint of the container whose bundle is in `dir` to `location`; the container runs on. Dropped before its
/// end, it ends the OCI runtime's call and leaves no file.
///
/// # Errors
/// When `location` is there already, and what the OCI runtime and CRIU say when they cannot; no file is left then.
pub async fn write(runtime: &Runtime, id: &str, dir: &Path, location: &Path) -> anyhow::Result<()> {
    if !location.is_absolute() {
        bail!("the location {:?} of the checkpoint is not absolute", location.display());
    }
    let scratch = Scratch::make(dir)?;
    let failed = format!("write {}", location.display());
    let (archive, file) = Archive::create(location).context(failed.clone())?;
    let mut command = runtime.command();
    // CRIU notices, and lets the container go on.
    command.kill_on_drop(true).arg("checkpoint");
    command.arg("--image-path").arg(scratch.images()).arg("--work-path").arg(scratch.0.join("work"));
    command.args(["--leave-running", "--file-locks", id]);
    runtime.complete(command).await.context("checkpoint")?;
    let (dir, stopped) = (dir.to_owned(), CancellationToken::new());
    let stop = stopped.clone().drop_guard();
    let packed = tokio::task::spawn_blocking(move || {
        pack(&dir, &scratch.images(), &scratch.0.join("changes"), archive::Output { file, stopped })?;
        io::Result::Ok(archive)
    });
    let archive = packed.await?.context(failed)?;
    archive.keep();
    drop(stop);
    Ok(())
}
