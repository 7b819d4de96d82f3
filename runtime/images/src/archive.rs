//! Archives of images: an OCI image layout in a tar, or what `docker save` writes (a docker-archive).
//!
//! An archive is hostile input: nothing is written where it says, only under names that we make; counts and sizes are
//! bounded; and every blob is measured against the digest by which it is named before anyone sees it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, BufRead as _, Read, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::tarball::{self, Bounds};
use crate::{Error, Reference};

/// The most entries of an archive.
const MAX_ENTRIES: usize = 65_536;
/// The longest name of an entry, in bytes.
const MAX_NAME: usize = 4096;
/// The most bytes that an archive may unpack to.
const MAX_BYTES: u64 = 64 << 30;
/// The longest manifest, index or configuration, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;
/// The most manifests and indexes of an archive.
const MAX_MANIFESTS: usize = 1024;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Where a layout says how an image is called: the whole name, and what may be only the tag.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An image of an archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// What the archive calls it; may be a whole name, only a tag, or nothing.
    pub name: Option<String>,
    /// Its entry in the layout's index: `mediaType`, `digest`, `size`.
    pub entry: Value,
}

/// Unpacks an archive (tar; plain, gzip or zstd) into the empty folder `dir` as an OCI image layout with one index, and
/// answers its images. `called` is the archive's name in errors. Blocking.
pub fn unpack(called: &str, archive: impl Read, dir: &Path) -> Result<Vec<Named>, Error> {
    let mut files = Files { called: called.to_owned(), dir: dir.to_owned(), found: HashMap::new() };
    for sub in ["incoming", "blobs/sha256"] {
        let path = dir.join(sub);
        fs::create_dir_all(&path).map_err(Error::io("creating", &path))?;
    }
    files.read(archive)?;
    let images = if files.found.contains_key("index.json") { files.layout()? } else { files.docker()? };
    if images.is_empty() {
        return Err(files.corrupt("has no image"));
    }
    let incoming = dir.join("incoming");
    fs::remove_dir_all(&incoming).map_err(Error::io("removing", &incoming))?;
    let entries: Vec<&Value> = images.iter().map(|i| &i.entry).collect();
    write_layout(dir, &entries)?;
    Ok(images)
}

/// Writes the two files that make a folder with blobs an OCI image layout.
pub fn write_layout(dir: &Path, entries: &[&Value]) -> Result<(), Error> {
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    for (name, text) in [("index.json", index.to_string()), ("oci-layout", OCI_LAYOUT.to_owned())] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(Error::io("writing", &path))?;
    }
    Ok(())
}

const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Packs the layout in `dir` into a tar; the same layout always gives the same bytes. Blocking.
pub fn pack(dir: &Path, out: impl io::Write) -> Result<(), Error> {
    let mut names = vec![PathBuf::from("oci-layout"), PathBuf::from("index.json")];
    // What `docker load` of older versions reads.
    names.extend(Some(PathBuf::from("manifest.json")).filter(|n| dir.join(n).is_file()));
    let blobs = dir.join("blobs/sha256");
    let entries = fs::read_dir(&blobs).map_err(Error::io("reading", &blobs))?;
    let found = entries.take(MAX_ENTRIES + 1).map(|entry| entry.map(|e| e.file_name()));
    let mut found = found.collect::<Result<Vec<_>, _>>().map_err(Error::io("reading", &blobs))?;
    if found.len() > MAX_ENTRIES {
        let many = io::Error::other(format!("there are more than {MAX_ENTRIES} files"));
        return Err(Error::io("packing", &blobs)(many));
    }
    found.sort();
    names.extend(found.into_iter().map(|name| Path::new("blobs/sha256").join(name)));
    let mut tar = tar::Builder::new(out);
    for name in names {
        let path = dir.join(&name);
        let file = fs::File::open(&path).map_err(Error::io("opening", &path))?;
        let mut header = tar::Header::new_gnu();
        header.set_size(file.metadata().map_err(Error::io("reading", &path))?.len());
        header.set_mode(0o644);
        tar.append_data(&mut header, &name, file).map_err(Error::io("packing", &path))?;
    }
    let done = tar.into_inner().and_then(|mut out| out.flush());
    done.map_err(Error::io("packing", dir))
}

/// The files of an archive, by the path in it.
struct Files {
    called: String,
    dir: PathBuf,
    found: HashMap<String, Found>,
}

enum Found {
    File { path: PathBuf, sha256: String, size: u64 },
    Link(String),
}

/// Where an entry stands, which says what it may be.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// In the layout's index: an image, or an index of its platforms.
    Top,
    InIndex,
    /// Below a manifest: a layer or a configuration, whatever its type is called.
    Content,
}

/// Compressed layers that were looked into: images share them.
struct Layers {
    /// The digests of what they hold, in hex, by their files.
    plain: HashMap<PathBuf, String>,
    /// How many bytes may still be unpacked.
    left: u64,
}

impl Files {
    fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::Corrupt { image: self.called.clone(), reason: reason.into() }
    }

    fn read(&mut self, archive: impl Read) -> Result<(), Error> {
        let called = self.called.clone();
        let unreadable = |e: io::Error| Error::Corrupt {
            image: called.clone(),
            reason: format!("is no archive that can be read: {e}"),
        };
        let plain = decompressed(archive).map_err(unreadable)?;
        let bounds = Bounds { entries: MAX_ENTRIES as u64, bytes: MAX_BYTES };
        tarball::each(plain, &bounds, unreadable, |serial, entry| {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            if entry.path_bytes().len().max(target.len()) > MAX_NAME {
                return Err(self.corrupt(format!("has a name of more than {MAX_NAME} bytes")));
            }
            let name = plain_path(&entry.path_bytes());
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let base = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                let base = if kind.is_hard_link() { "" } else { base };
                let target = plain_path(format!("{base}/{}", String::from_utf8_lossy(&target)).as_bytes());
                self.found.insert(name, Found::Link(target));
            } else if kind.is_file() {
                let path = self.dir.join("incoming").join(serial.to_string());
                let (sha256, size) = store(entry, &path).map_err(Error::io("unpacking to", &path))?;
                self.found.insert(name, Found::File { path, sha256, size });
            }
            Ok(())
        })
    }

    /// A file, also through a few links.
    fn file(&self, name: &str) -> Option<(&Path, &str, u64)> {
        let mut name = name.to_owned();
        for _ in 0..8 {
            match self.found.get(&name)? {
                Found::File { path, sha256, size } => return Some((path, sha256, *size)),
                Found::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    fn document(&self, name: &str) -> Result<Value, Error> {
        let (path, _, size) = self.file(name).ok_or_else(|| self.corrupt(format!("has no {name}")))?;
        if size > MAX_DOCUMENT {
            return Err(self.corrupt(format!("has a {name} of {size} bytes; {MAX_DOCUMENT} is the most")));
        }
        let bytes = fs::read(path).map_err(Error::io("reading", path))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| self.corrupt(format!("has a {name} that is not JSON: {e}")))
    }

    /// Gives a file the name of its digest in the layout.
    fn settle(&self, from: &Path, sha256: &str) -> Result<(), Error> {
        let to = self.dir.join("blobs/sha256").join(sha256);
        match fs::hard_link(from, &to) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("linking", &to)(error))
            }
            _ => Ok(()),
        }
    }

    /// The images of an OCI image layout.
    fn layout(&self) -> Result<Vec<Named>, Error> {
        let index = self.document("index.json")?;
        let entries = index["manifests"].as_array().cloned().unwrap_or_default();
        let mut left = MAX_MANIFESTS;
        let mut images = Vec::new();
        for mut entry in entries {
            let name = NAMES.iter().find_map(|key| entry["annotations"][*key].as_str().map(str::to_owned));
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("annotations");
            }
            let Some(entry) = self.blob(entry, Place::Top, &mut left)? else {
                return Err(self.corrupt("lacks an image that its index names"));
            };
            images.push(Named { name, entry });
        }
        Ok(images)
    }

    /// Checks what an entry names, and all below; `None`: it is not in the archive.
    fn blob(&self, entry: Value, place: Place, left: &mut usize) -> Result<Option<Value>, Error> {
        let digest = entry["digest"].as_str().unwrap_or_default();
        if !crate::reference::is_digest(digest) {
            return Err(self.corrupt(format!("has an entry with the digest {digest:?}")));
        }
        let hex = crate::store::hex_part(digest).to_owned();
        let name = format!("blobs/sha256/{hex}");
        let Some((path, sha256, size)) = self.file(&name) else { return Ok(None) };
        if sha256 != hex || entry["size"].as_u64() != Some(size) {
            return Err(self.corrupt(format!(
                "has content with digest sha256:{sha256} and {size} bytes for {digest} with {}",
                entry["size"]
            )));
        }
        self.settle(path, sha256)?;
        let kind = entry["mediaType"].as_str().unwrap_or_default();
        if place == Place::Content || !(kind.contains("manifest") || kind.contains("image.index")) {
            return Ok(Some(entry));
        }
        *left = left
            .checked_sub(1)
            .ok_or_else(|| self.corrupt(format!("has more than {MAX_MANIFESTS} manifests")))?;
        let document = self.document(&name)?;
        match document["manifests"].as_array() {
            Some(_) if place == Place::InIndex => Err(self.corrupt("has an index inside an index")),
            Some(inner) => self.index(entry, &document, inner.clone(), left),
            None => {
                let layers = document["layers"].as_array().cloned().unwrap_or_default();
                for inner in layers.into_iter().chain(document.get("config").cloned()) {
                    let digest = inner["digest"].to_string();
                    if self.blob(inner, Place::Content, left)?.is_none() {
                        return Err(self.corrupt(format!("lacks {digest}, which a manifest names")));
                    }
                }
                Ok(Some(entry))
            }
        }
    }

    /// An index within the layout. Tools that export one platform leave the entries of the others: what remains of it
    /// counts then.
    fn index(
        &self,
        entry: Value,
        document: &Value,
        inner: Vec<Value>,
        left: &mut usize,
    ) -> Result<Option<Value>, Error> {
        let all = inner.len();
        let mut here = Vec::new();
        for entry in inner {
            here.extend(self.blob(entry, Place::InIndex, left)?);
        }
        match here.len() {
            0 => Ok(None),
            n if n == all => Ok(Some(entry)),
            1 => Ok(here.pop()),
            _ => {
                let mut document = document.clone();
                document["manifests"] = here.into();
                let kind = entry["mediaType"].as_str().unwrap_or(OCI_INDEX).to_owned();
                self.add(document.to_string().as_bytes(), &kind).map(Some)
            }
        }
    }

    /// Adds a document of our own, and answers its entry.
    fn add(&self, bytes: &[u8], kind: &str) -> Result<Value, Error> {
        let sha256 = hex::encode(Sha256::digest(bytes));
        let path = self.dir.join("blobs/sha256").join(&sha256);
        fs::write(&path, bytes).map_err(Error::io("writing", &path))?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{sha256}"), "size": bytes.len()}))
    }

    /// The images of a docker-archive.
    fn docker(&self) -> Result<Vec<Named>, Error> {
        if !self.found.contains_key("manifest.json") {
            return Err(self.corrupt(
                "is neither an OCI image layout (index.json) nor a docker-archive (manifest.json)",
            ));
        }
        let images = self.document("manifest.json")?.as_array().cloned().unwrap_or_default();
        if images.len() > MAX_MANIFESTS {
            return Err(self.corrupt(format!("has more than {MAX_MANIFESTS} images")));
        }
        let mut named = Vec::new();
        let mut layers = Layers { plain: HashMap::new(), left: MAX_BYTES };
        for image in &images {
            let entry = self.docker_image(image, &mut layers)?;
            let tags: Vec<_> =
                image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            named
                .extend(tags.iter().map(|tag| Named { name: Some((*tag).to_owned()), entry: entry.clone() }));
            if tags.is_empty() {
                named.push(Named { name: None, entry });
            }
        }
        Ok(named)
    }

    fn docker_image(&self, image: &Value, known: &mut Layers) -> Result<Value, Error> {
        let config_name = image["Config"].as_str().unwrap_or_default();
        let config = self.document(config_name)?;
        let Some((path, sha256, size)) = self.file(config_name) else {
            return Err(self.corrupt(format!("has no {config_name}")));
        };
        // The file is called by its digest; that name is what other tools believe.
        let called = config_name.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if called.len() == 64 && called != sha256 {
            return Err(self.corrupt(format!("has a configuration with digest sha256:{sha256} for {called}")));
        }
        self.settle(path, sha256)?;
        let config_entry =
            json!({"mediaType": OCI_CONFIG, "digest": format!("sha256:{sha256}"), "size": size});
        let layers = image["Layers"].as_array().cloned().unwrap_or_default();
        let wanted = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
        if layers.len() != wanted.len() {
            let words = format!("has {} layers where its configuration names {}", layers.len(), wanted.len());
            return Err(self.corrupt(words));
        }
        let mut entries = Vec::new();
        for (layer, wanted) in layers.iter().zip(&wanted) {
            entries.push(self.docker_layer(layer.as_str().unwrap_or_default(), wanted, known)?);
        }
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config_entry, "layers": entries});
        self.add(manifest.to_string().as_bytes(), OCI_MANIFEST)
    }

    /// A layer, whose digest before compression is what the configuration says.
    fn docker_layer(&self, name: &str, wanted: &Value, known: &mut Layers) -> Result<Value, Error> {
        let Some((path, sha256, size)) = self.file(name) else {
            return Err(self.corrupt(format!("has no {name}")));
        };
        let open = || fs::File::open(path).map_err(Error::io("opening", path));
        let mut first = [0; 4];
        let read = open()?.read(&mut first).map_err(Error::io("reading", path))?;
        let packed = match compression(first.get(..read).unwrap_or_default()) {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        let plain = match known.plain.get(path) {
            Some(plain) => plain.clone(),
            None if packed.is_empty() => sha256.to_owned(),
            None => {
                let mut hasher = Hashing(Sha256::new());
                let unpacked =
                    decompressed(open()?).and_then(|r| io::copy(&mut r.take(known.left), &mut hasher));
                let size = unpacked
                    .map_err(|e| self.corrupt(format!("has a layer {name} that cannot be unpacked: {e}")))?;
                known.left -= size;
                if known.left == 0 {
                    return Err(self.corrupt(format!("has layers of more than {MAX_BYTES} bytes")));
                }
                let plain = hex::encode(hasher.0.finalize());
                known.plain.insert(path.to_owned(), plain.clone());
                plain
            }
        };
        if wanted.as_str() != Some(&format!("sha256:{plain}")) {
            return Err(self.corrupt(format!("has a layer {name} with digest sha256:{plain} for {wanted}")));
        }
        self.settle(path, sha256)?;
        Ok(
            json!({"mediaType": format!("{OCI_LAYER}{packed}"), "digest": format!("sha256:{sha256}"), "size": size}),
        )
    }
}

struct Hashing(Sha256);

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes an entry to a file of ours; its digest and size.
fn store(entry: &mut impl Read, path: &Path) -> io::Result<(String, u64)> {
    let mut file = fs::File::create_new(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        let read = entry.read(&mut buffer)?;
        let piece = buffer.get(..read).unwrap_or_default();
        if piece.is_empty() {
            return Ok((hex::encode(hasher.finalize()), size));
        }
        hasher.update(piece);
        file.write_all(piece)?;
        size += piece.len() as u64;
    }
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

fn compression(first: &[u8]) -> Compression {
    match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

fn decompressed<'a>(from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut from = io::BufReader::with_capacity(256 << 10, from);
    Ok(match compression(from.fill_buf()?) {
        Compression::None => Box::new(from),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(from)?),
    })
}

/// A path of an archive without `.`, `..` and slashes in front; only used to look entries up.
fn plain_path(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// `manifest.json` of a docker-archive for a Linux image in a layout, so that `docker load` takes it.
pub fn docker_manifest(name: &Reference, manifest: &Value) -> Option<Value> {
    let path = |digest: &Value| Some(format!("blobs/sha256/{}", digest.as_str()?.strip_prefix("sha256:")?));
    let layers = manifest["layers"].as_array()?;
    if !layers.iter().all(|l| l["mediaType"].as_str().is_some_and(|m| m.contains("tar"))) {
        return None;
    }
    let layers: Option<Vec<String>> = layers.iter().map(|l| path(&l["digest"])).collect();
    let config = path(&manifest["config"]["digest"])?;
    let repository = match name.is_default_registry() {
        true => name.mirror_repository().to_owned(),
        false => name.repository_name(),
    };
    let tags: Vec<String> = name.tag.iter().map(|tag| format!("{repository}:{tag}")).collect();
    let image: BTreeMap<&str, Value> =
        [("Config", json!(config)), ("RepoTags", json!(tags)), ("Layers", json!(layers?))].into();
    Some(json!([image]))
}

#[cfg(test)]
mod tests;
