//! Unpacking layers of Linux images, one folder each, so that overlayfs can stack them.
//!
//! A layer is hostile input: entries are placed through directory handles (cap-std), so that neither `..` nor a symbolic
//! link leads out of the folder; sizes and counts are bounded. Whiteouts become overlayfs' own. Needs root: files get
//! the owners that the layer says.

use std::fs;
use std::io::{self, BufRead as _, Read};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Component, Path, PathBuf};

use cap_std::fs::Dir;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use crate::store::hex_part;
use crate::tarball::{self, Bounds};
use crate::{Error, ImageRecord, Store};

/// The most entries of a layer.
const MAX_ENTRIES: u64 = 2_000_000;
/// The most bytes that a layer may unpack to.
const MAX_BYTES: u64 = 64 << 30;
/// The longest path in a layer, in bytes.
const MAX_PATH: usize = 4096;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Store {
    /// The folders of an image's layers, lowest first; those that are missing are unpacked. Blocking.
    pub fn unpacked(&self, image: &ImageRecord) -> Result<Vec<PathBuf>, Error> {
        image.layers.iter().map(|digest| self.unpack(&image.id, digest)).collect()
    }

    fn unpack(&self, image: &str, digest: &str) -> Result<PathBuf, Error> {
        let target = self.unpacked_dir().join(hex_part(digest));
        if target.is_dir() {
            return Ok(target);
        }
        let parent = self.unpacked_dir();
        fs::create_dir_all(&parent).map_err(Error::io("creating", &parent))?;
        let beside = parent.join(format!("{}.new-{}", hex_part(digest), self.next_serial()));
        let unpacked = self.unpack_into(image, digest, &beside);
        let settled = unpacked.and_then(|()| match fs::rename(&beside, &target) {
            // Another thread was faster.
            Err(_) if target.is_dir() => Ok(()),
            other => other.map_err(Error::io("renaming to", &target)),
        });
        if beside.is_dir() {
            let _ = fs::remove_dir_all(&beside);
        }
        settled.map(|()| target)
    }

    fn unpack_into(&self, image: &str, digest: &str, dir: &Path) -> Result<(), Error> {
        fs::create_dir(dir).map_err(Error::io("creating", dir))?;
        let blob = self.blob_path(digest);
        let file = fs::File::open(&blob).map_err(Error::io("opening", &blob))?;
        layer(file, dir).map_err(|error| Error::Corrupt {
            image: image.to_owned(),
            reason: format!("layer {digest} cannot be unpacked: {error}"),
        })
    }

    fn unpacked_dir(&self) -> PathBuf {
        self.dir().join("unpacked")
    }

    /// Removes folders of layers that belong to no image and are not in use (folders of [`Store::unpacked`]).
    pub fn sweep_unpacked(&self, in_use: &std::collections::BTreeSet<PathBuf>) -> Result<(), Error> {
        let dir = self.unpacked_dir();
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(Error::io("reading", &dir))?,
        };
        let keep: std::collections::BTreeSet<String> =
            self.list().iter().flat_map(|r| r.layers.iter().map(|l| hex_part(l).to_owned())).collect();
        for entry in entries {
            let path = entry.map_err(Error::io("reading", &dir))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if !keep.contains(&name) && !in_use.contains(&path) && !name.contains(".new-") {
                fs::remove_dir_all(&path).map_err(Error::io("removing", &path))?;
            }
        }
        Ok(())
    }
}

fn wrong(words: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.into())
}

/// Unpacks a layer (tar; plain, gzip or zstd) into an empty folder.
///
/// # Errors
/// For what is no such archive, leaves the folder, or passes a bound; the folder is then half-filled.
pub fn layer(blob: impl Read, dir: &Path) -> io::Result<()> {
    let mut blob = io::BufReader::with_capacity(256 << 10, blob);
    let start = blob.fill_buf()?;
    let plain: Box<dyn Read> = if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::read::MultiGzDecoder::new(blob))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(blob)?)
    } else {
        Box::new(blob)
    };
    let root = Dir::open_ambient_dir(dir, cap_std::ambient_authority())?;
    let bounds = Bounds { entries: MAX_ENTRIES, bytes: MAX_BYTES };
    tarball::each(
        plain,
        &bounds,
        |e| e,
        |_, entry| {
            let path = entry.path()?.into_owned();
            place(&root, &path, entry).map_err(|e| wrong(format!("{}: {e}", path.display())))
        },
    )
}

/// The path below the root: no `..`.
fn inside(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(wrong("the path is too long"));
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(wrong("the path leaves the layer")),
        }
    }
    Ok(clean)
}

/// The folder that a path lies in, made if it is missing, and the path's last part.
fn parent<'a>(root: &Dir, path: &'a Path) -> io::Result<(Dir, &'a Path)> {
    let name = path.file_name().ok_or_else(|| wrong("the path has no name"))?;
    let dir = match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        None => root.try_clone()?,
        Some(above) => match root.open_dir(above) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                root.create_dir_all(above)?;
                root.open_dir(above)?
            }
            other => other?,
        },
    };
    Ok((dir, Path::new(name)))
}

fn place<R: Read>(root: &Dir, path: &Path, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
    let path = inside(path)?;
    let kind = entry.header().entry_type();
    if path.as_os_str().is_empty() {
        // The root itself: its mode and owner count.
        return if kind.is_dir() { dress(root, Path::new("."), entry, kind) } else { Err(wrong("no name")) };
    }
    let (dir, name) = parent(root, &path)?;
    let bytes = name.as_os_str().as_encoded_bytes();
    if bytes == OPAQUE {
        // The handle is one of a path only: its attributes are reached through its name below /proc.
        let dir = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        return rustix::fs::setxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(Into::into);
    }
    if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
        if hidden.is_empty() || hidden.starts_with(b".wh.") {
            return Err(wrong("no such whiteout"));
        }
        return whiteout(&dir, hidden);
    }
    if !kind.is_dir() {
        remove(&dir, name)?;
    }
    match kind {
        tar::EntryType::Directory => match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST) if dir.symlink_metadata(name)?.is_dir() => {}
            Err(rustix::io::Errno::EXIST) => {
                remove(&dir, name)?;
                rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
            }
            other => other?,
        },
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600))?;
            io::copy(entry, &mut fs::File::from(file))?;
        }
        tar::EntryType::Symlink => {
            let to = entry.link_name()?.ok_or_else(|| wrong("a symbolic link to nothing"))?;
            rustix::fs::symlinkat(&*to, &dir, name)?;
        }
        tar::EntryType::Link => {
            let to = inside(&entry.link_name()?.ok_or_else(|| wrong("a link to nothing"))?)?;
            let (from, old) = parent(root, &to)?;
            rustix::fs::linkat(&from, old, &dir, name, AtFlags::empty())?;
            // It shares the mode and owner of the file that it names.
            return Ok(());
        }
        tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
            let header = entry.header();
            let (major, minor) =
                (header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default());
            let file_type = match kind {
                tar::EntryType::Char => FileType::CharacterDevice,
                tar::EntryType::Block => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(&dir, name, file_type, Mode::from_raw_mode(0o600), device)?;
        }
        // Headers that describe the archive, not a file.
        tar::EntryType::XGlobalHeader => return Ok(()),
        other => return Err(wrong(format!("entries of type {other:?} are not supported"))),
    }
    dress(&dir, name, entry, kind)
}

fn remove(dir: &Dir, name: &Path) -> io::Result<()> {
    match dir.symlink_metadata(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(found) if found.is_dir() => dir.remove_dir_all(name),
        Ok(_) => dir.remove_file(name),
        Err(error) => Err(error),
    }
}

fn whiteout(dir: &Dir, hidden: &[u8]) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = Path::new(std::ffi::OsStr::from_bytes(hidden));
    if dir.symlink_metadata(name).is_ok() {
        // It hides what lies below this layer; what this layer has itself stays.
        return Ok(());
    }
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(Into::into)
}

/// Owner, mode, extended attributes and time, in the order in which none undoes another.
fn dress<R: Read>(
    dir: &Dir,
    name: &Path,
    entry: &mut tar::Entry<'_, R>,
    kind: tar::EntryType,
) -> io::Result<()> {
    let header = entry.header();
    let number = |n: u64, what: &str| {
        u32::try_from(n).ok().filter(|n| *n != u32::MAX).ok_or_else(|| wrong(format!("{what} {n}")))
    };
    let (uid, gid) = (number(header.uid()?, "user id")?, number(header.gid()?, "group id")?);
    let (mode, time) = (header.mode()? & 0o7777, header.mtime().unwrap_or(0));
    rustix::fs::chownat(
        dir,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if !kind.is_symlink() {
        // The name was made a moment ago by us, in a folder of ours: it is no link.
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        attributes(dir, name, entry, kind)?;
    }
    let at = Timespec { tv_sec: i64::try_from(time).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
}

/// Extended attributes that a container may have: file capabilities and its own.
fn attributes<R: Read>(
    dir: &Dir,
    name: &Path,
    entry: &mut tar::Entry<'_, R>,
    kind: tar::EntryType,
) -> io::Result<()> {
    if !matches!(kind, tar::EntryType::Regular | tar::EntryType::Directory) {
        return Ok(());
    }
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    let mut found = Vec::new();
    for extension in extensions {
        let extension = extension?;
        let Some(key) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) else { continue };
        // `trusted.*` would speak to overlayfs itself.
        if key == "security.capability" || key.starts_with("user.") {
            found.push((key.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for (key, value) in found {
        match rustix::fs::fsetxattr(&file, key.as_str(), &value, XattrFlags::empty()) {
            // A filesystem without them: the container does without.
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
