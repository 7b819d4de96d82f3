//! `tar`, as far as `kubectl cp` needs it: `tar cf - PATH...` and `tar xmf - -C FOLDER`.

use std::{
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use cap_std::fs::Dir;

use super::{Io, Place};

/// The most entries of an archive.
const MAX_ENTRIES: usize = 1_000_000;
/// How deep folders are followed.
const MAX_DEPTH: usize = 128;

fn wrong(words: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, words.into())
}

/// What is asked for.
#[derive(Default)]
struct Asked {
    extract: bool,
    create: bool,
    dir: String,
    paths: Vec<String>,
}

fn parse(args: &[String]) -> io::Result<Asked> {
    let mut asked = Asked::default();
    let mut rest = args.iter();
    let mut first = true;
    while let Some(arg) = rest.next() {
        let letters = match arg.strip_prefix('-') {
            Some("-") => continue,
            Some(letters) if !letters.is_empty() && !letters.starts_with('-') => letters,
            None if first => arg,
            _ if arg == "--" || arg.starts_with("--no-same-") || arg == "--touch" => continue,
            _ => {
                asked.paths.push(arg.clone());
                continue;
            }
        };
        first = false;
        for letter in letters.chars() {
            match letter {
                'c' => asked.create = true,
                'x' => asked.extract = true,
                'm' | 'p' | 'o' | 'v' => {}
                'C' => asked.dir = rest.next().cloned().ok_or_else(|| wrong("-C needs a folder"))?,
                'f' => {
                    if rest.next().map(String::as_str) != Some("-") {
                        return Err(wrong("archives come and go through standard input and output: f -"));
                    }
                }
                other => return Err(wrong(format!("flag {other:?} is not known"))),
            }
        }
    }
    Ok(asked)
}

pub(super) fn tar(place: &Place, io: &mut Io, args: &[String]) -> io::Result<i32> {
    let asked = parse(args)?;
    match (asked.create, asked.extract) {
        (true, false) => create(place, io, &asked),
        (false, true) => extract(place, io, &asked),
        _ => Err(wrong("either c or x is needed")),
    }
}

fn create(place: &Place, io: &mut Io, asked: &Asked) -> io::Result<i32> {
    let mut archive = tar::Builder::new(io);
    for path in &asked.paths {
        let whole = Path::new(&asked.dir).join(path);
        let found = place.find(&whole.to_string_lossy())?;
        let name: PathBuf =
            Path::new(path).components().filter(|c| matches!(c, Component::Normal(_))).collect();
        let name = if name.as_os_str().is_empty() { PathBuf::from(".") } else { name };
        add(&mut archive, &found.volume, &found.path, &name, 0)?;
    }
    archive.into_inner()?.flush()?;
    Ok(0)
}

fn add(
    archive: &mut tar::Builder<&mut Io>,
    volume: &Dir,
    path: &Path,
    name: &Path,
    depth: usize,
) -> io::Result<()> {
    use cap_std::fs::{MetadataExt as _, PermissionsExt as _};
    if depth > MAX_DEPTH {
        return Err(wrong("the folders are too deep"));
    }
    let meta = volume.symlink_metadata(path)?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(meta.permissions().mode() & 0o7777);
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    if meta.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        archive.append_data(&mut header, name.join(""), io::empty())?;
        for entry in volume.read_dir(path)?.take(MAX_ENTRIES) {
            let entry = entry?.file_name();
            add(archive, volume, &path.join(&entry), &name.join(&entry), depth + 1)?;
        }
    } else if meta.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, name, volume.read_link_contents(path)?)?;
    } else if meta.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(meta.len());
        let file = volume.open(path)?;
        // It may grow meanwhile: the header has said how long it is.
        archive.append_data(&mut header, name, io::Read::take(file, meta.len()))?;
    }
    Ok(())
}

fn extract(place: &Place, io: &mut Io, asked: &Asked) -> io::Result<i32> {
    let found = place.find(&asked.dir)?;
    if found.read_only {
        return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the volume is read-only"));
    }
    let dir = found.volume.open_dir(&found.path)?;
    let mut archive = tar::Archive::new(&mut io.stdin);
    for (count, entry) in archive.entries()?.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(wrong("too many entries"));
        }
        let mut entry = entry?;
        let path: PathBuf = entry
            .path()?
            .components()
            .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
            .collect();
        if path.as_os_str().is_empty() {
            continue;
        }
        // `..` and links are no way out: cap-std follows nothing that leaves the folder.
        match entry.header().entry_type() {
            tar::EntryType::Directory => dir.create_dir_all(&path)?,
            tar::EntryType::Regular => {
                if let Some(above) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                    dir.create_dir_all(above)?;
                }
                let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
                let mut file = dir.create(&path)?;
                io::copy(&mut entry, &mut file)?;
                let permissions = cap_std::fs::PermissionsExt::from_mode(mode);
                file.set_permissions(permissions)?;
            }
            tar::EntryType::Symlink => {
                let to = entry.link_name()?.ok_or_else(|| wrong("a link to nothing"))?.into_owned();
                let _ = dir.remove_file(&path);
                dir.symlink(to, &path)?;
            }
            _ => {}
        }
    }
    Ok(0)
}
