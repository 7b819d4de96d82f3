//! The file of a checkpoint, a tar archive.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

/// A file that was made here, and is removed unless it is kept.
pub struct Archive(Option<PathBuf>);

impl Archive {
    /// A new file for what nobody but root may see: a container's memory.
    ///
    /// # Errors
    /// When something is there.
    pub fn create(path: &Path) -> io::Result<(Self, File)> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok((Self(Some(path.to_owned())), file))
    }

    /// It stays.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A file that takes no more when it is `stopped`.
pub struct Output {
    pub file: File,
    pub stopped: CancellationToken,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stopped.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody waits for it any more"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a container's folder `dir` and CRIU's `images` to `output`, by way of a file for what it changed.
///
/// # Errors
/// Those of files, and that the output was stopped.
pub fn pack(dir: &Path, images: &Path, changes: &Path, output: Output) -> io::Result<()> {
    let stopped = output.stopped.clone();
    let mut archive = tar::Builder::new(output);
    archive.follow_symlinks(false);
    archive.append_dir_all("checkpoint", images)?;
    archive.append_path_with_name(dir.join("config.json"), "spec.dump")?;
    archive.append_path_with_name(dir.join(crate::shim::file::CONFIG), "config.dump")?;
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(changes)?;
    let mut inner = tar::Builder::new(Output { file, stopped });
    append_tree(&mut inner, &dir.join("upper"))?;
    let mut file = inner.into_inner()?.file;
    file.rewind()?;
    archive.append_file("rootfs-diff.tar", &mut file)?;
    archive.into_inner()?.file.sync_all()
}

/// Appends what is below a folder, which may change meanwhile. Sockets are of their processes and not of the tree.
fn append_tree(archive: &mut tar::Builder<Output>, root: &Path) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Some(entries) = unless_gone(std::fs::read_dir(root.join(&folder)))? else { continue };
        for entry in entries {
            let name = folder.join(entry?.file_name());
            let path = root.join(&name);
            let Some(is) = unless_gone(std::fs::symlink_metadata(&path))? else { continue };
            if is.file_type().is_socket() {
                continue;
            }
            unless_gone(append(archive, &path, &name, &is))?;
            if is.is_dir() {
                folders.push(name);
            }
        }
    }
    Ok(())
}

fn append(archive: &mut tar::Builder<Output>, path: &Path, name: &Path, is: &Metadata) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(is);
    if is.is_file() {
        let mut file = File::open(path)?;
        let size = is.len();
        if is.blocks().saturating_mul(512) < size {
            // With its holes.
            return archive.append_file(name, &mut file);
        }
        // As long as the header says, whatever is written to it meanwhile.
        return archive.append_data(&mut header, name, file.chain(io::repeat(0)).take(size));
    }
    if is.is_symlink() {
        return archive.append_link(&mut header, name, std::fs::read_link(path)?);
    }
    // Overlays have devices for what was removed of the image.
    let kind = is.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        header.set_device_major(rustix::fs::major(is.rdev()))?;
        header.set_device_minor(rustix::fs::minor(is.rdev()))?;
    }
    archive.append_data(&mut header, name, io::empty())
}

/// What goes between two looks was not there.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
