//! The images of this node on disk: blobs by digest, and one record an image.
//!
//! `blobs/sha256/<hex>` (checked against their digest before they get that name), `records/<hex>.json`, `incoming/` for
//! what is still arriving. Everything is written beside, synced and renamed, so that a crash leaves either the old or the
//! new. Removing an image removes its record first; blobs without a record are swept.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::manifest::Wanted;
use crate::{Error, Reference};

/// An image that is on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// `sha256:<hex>` of its manifest.
    pub id: String,
    /// Whole names with a tag.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Whole names with a digest (of the manifest, and of the index that it was found in).
    #[serde(default)]
    pub digests: BTreeSet<String>,
    /// Digest of the configuration blob.
    pub config: String,
    /// Digest of the component; empty for a Linux image.
    pub layer: String,
    /// Digests of the layers of a Linux image, lowest first; empty for a component.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Further components beside [`ImageRecord::layer`], by the name under which they are run: their digests.
    #[serde(default)]
    pub commands: BTreeMap<String, String>,
    #[serde(default)]
    pub platform: Platform,
    /// Manifest, configuration and content together, in bytes.
    pub size: u64,
    /// Nanoseconds since the Unix epoch.
    pub pulled_at_ns: i64,
    /// The registry that it came from, as `host:port`.
    #[serde(default)]
    pub source: String,
}

/// What an image runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// A component: runs in a wasm host.
    #[default]
    Wasm,
    /// A root filesystem: runs through an OCI runtime.
    Linux,
}

impl ImageRecord {
    /// Digests of the blobs that hold its content.
    pub fn blobs(&self) -> impl Iterator<Item = &String> {
        let component = [&self.layer].into_iter().filter(|l| !l.is_empty());
        self.layers.iter().chain(component).chain(self.commands.values())
    }
}

/// What the store takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// The content store. Methods block on the disk.
pub struct Store {
    dir: PathBuf,
    records: Mutex<BTreeMap<String, ImageRecord>>,
    /// Blobs that a pull under way has written or relies on: not to be swept.
    held: Mutex<BTreeMap<String, usize>>,
    serial: AtomicU64,
}

impl Store {
    /// Opens the store in `dir`, making it if needed; what a crash left half-done is removed.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        for sub in ["blobs/sha256", "records"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(Error::io("creating", &path))?;
        }
        let incoming = dir.join("incoming");
        if let Err(error) = fs::remove_dir_all(&incoming)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::io("clearing", &incoming)(error));
        }
        fs::create_dir_all(&incoming).map_err(Error::io("creating", &incoming))?;
        let store = Self {
            records: Mutex::new(load_records(&dir.join("records"))?),
            dir: dir.to_owned(),
            held: Mutex::default(),
            serial: AtomicU64::new(0),
        };
        store.drop_incomplete();
        store.sweep()?;
        Ok(store)
    }

    /// Records whose blobs are gone (removed by hand) are forgotten: the image has to be pulled again.
    fn drop_incomplete(&self) {
        let incomplete: Vec<ImageRecord> =
            self.list().into_iter().filter(|r| !r.blobs().all(|b| self.has(b)) || !self.has(&r.id)).collect();
        for record in incomplete {
            tracing::warn!(image = record.id, "an image's content is missing; it has to be pulled again");
            lock(&self.records).remove(&record.id);
            let _ = fs::remove_file(self.record_path(&record.id));
        }
    }

    /// The folder of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every image, by id.
    pub fn list(&self) -> Vec<ImageRecord> {
        lock(&self.records).values().cloned().collect()
    }

    /// The image of this id, id without `sha256:`, or name; `Err` for a text that is none of these. Of a component and
    /// a Linux image of one name, the component.
    pub fn find(&self, text: &str) -> Result<Option<ImageRecord>, Error> {
        self.find_as(text, Wanted::WasmFirst)
    }

    /// As [`Store::find`], of one platform; an id names one whatever is wanted.
    pub fn find_as(&self, text: &str, wanted: Wanted) -> Result<Option<ImageRecord>, Error> {
        let records = lock(&self.records);
        if let Some(record) = records.get(text) {
            return Ok(Some(record.clone()));
        }
        if text.len() == 64
            && let Some(record) = records.get(&format!("sha256:{text}"))
        {
            return Ok(Some(record.clone()));
        }
        if crate::reference::is_digest(text) {
            return Ok(None);
        }
        let mut name: Reference = text.parse()?;
        if name.digest.is_some() {
            name.tag = None;
        }
        let name = name.to_string();
        let named = || records.values().filter(|r| r.tags.contains(&name) || r.digests.contains(&name));
        let of = |platform| named().find(|r| r.platform == platform);
        let found = match wanted {
            Wanted::WasmFirst => of(Platform::Wasm).or_else(|| of(Platform::Linux)),
            Wanted::Linux => of(Platform::Linux),
        };
        Ok(found.cloned())
    }

    /// Where a blob lies.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(hex_part(digest))
    }

    /// Whether a blob is here. (Its content was checked when it came.)
    pub fn has(&self, digest: &str) -> bool {
        crate::reference::is_digest(digest) && self.blob_path(digest).is_file()
    }

    /// Reads a small blob.
    pub fn read(&self, digest: &str) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        fs::read(&path).map_err(Error::io("reading", &path))
    }

    /// Keeps a blob from being swept until the guard is dropped.
    pub fn hold(&self, digest: &str) -> Hold<'_> {
        *lock(&self.held).entry(digest.to_owned()).or_default() += 1;
        Hold { store: self, digest: digest.to_owned() }
    }

    /// Stores bytes that are in memory under the digest that they must have.
    pub fn put_blob(&self, image: &str, digest: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut incoming = self.incoming(image, digest)?;
        incoming.write(bytes)?;
        incoming.commit()
    }

    /// A blob that arrives in pieces.
    pub fn incoming(&self, image: &str, digest: &str) -> Result<Incoming<'_>, Error> {
        if !crate::reference::is_digest(digest) {
            return Err(Error::Corrupt {
                image: image.to_owned(),
                reason: format!("the digest {digest:?} is not sha256:<64 lower-case hex digits>"),
            });
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("incoming").join(serial.to_string());
        let file = fs::File::create(&path).map_err(Error::io("creating", &path))?;
        Ok(Incoming {
            store: self,
            file,
            path,
            hasher: Sha256::new(),
            image: image.to_owned(),
            digest: digest.to_owned(),
        })
    }

    /// Adds an image, or what is new about it; its tags leave the image of its platform that had them.
    pub fn put(&self, mut record: ImageRecord) -> Result<ImageRecord, Error> {
        let mut records = lock(&self.records);
        let mut robbed = Vec::new();
        for other in records.values().filter(|r| r.id != record.id && r.platform == record.platform) {
            if !other.tags.is_disjoint(&record.tags) {
                let mut other = other.clone();
                other.tags.retain(|t| !record.tags.contains(t));
                robbed.push(other);
            }
        }
        if let Some(before) = records.get(&record.id) {
            record.tags.extend(before.tags.iter().cloned());
            record.digests.extend(before.digests.iter().cloned());
            record.pulled_at_ns = before.pulled_at_ns;
        }
        for changed in robbed.into_iter().chain([record.clone()]) {
            self.write_record(&changed)?;
            records.insert(changed.id.clone(), changed);
        }
        Ok(record)
    }

    /// Removes an image by id or name; false when there was none.
    pub fn remove(&self, text: &str) -> Result<bool, Error> {
        let Some(record) = self.find(text)? else { return Ok(false) };
        let path = self.record_path(&record.id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("removing", &path)(error));
            }
            _ => {}
        }
        lock(&self.records).remove(&record.id);
        self.sweep()?;
        Ok(true)
    }

    /// Removes blobs that belong to no image and no pull under way; answers how many.
    pub fn sweep(&self) -> Result<usize, Error> {
        let dir = self.dir.join("blobs/sha256");
        let mut swept = 0;
        // The lock is held throughout: a pull holds its blobs before it writes them.
        let held = lock(&self.held);
        let mut keep: HashSet<String> = held.keys().map(|d| hex_part(d).to_owned()).collect();
        for record in lock(&self.records).values() {
            keep.extend([&record.id, &record.config].map(|d| hex_part(d).to_owned()));
            keep.extend(record.blobs().map(|d| hex_part(d).to_owned()));
        }
        for entry in fs::read_dir(&dir).map_err(Error::io("reading", &dir))? {
            let entry = entry.map_err(Error::io("reading", &dir))?;
            if !keep.contains(&*entry.file_name().to_string_lossy()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(Error::io("removing", &path))?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// What the blobs and records take.
    pub fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for sub in ["blobs/sha256", "records", "incoming"] {
            let dir = self.dir.join(sub);
            for entry in fs::read_dir(&dir).map_err(Error::io("reading", &dir))? {
                // A file that was removed meanwhile counts no more.
                let Ok(meta) = entry.and_then(|e| e.metadata()) else { continue };
                usage.bytes += meta.len();
                usage.inodes += 1;
            }
        }
        Ok(usage)
    }

    /// A number that this process uses once.
    pub(crate) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.dir.join("records").join(format!("{}.json", hex_part(id)))
    }

    fn write_record(&self, record: &ImageRecord) -> Result<(), Error> {
        let path = self.record_path(&record.id);
        let mut bytes = serde_json::to_vec_pretty(record)
            .map_err(|e| Error::io("encoding", &path)(std::io::Error::other(e)))?;
        bytes.push(b'\n');
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let beside = self.dir.join("incoming").join(serial.to_string());
        let mut file = fs::File::create(&beside).map_err(Error::io("creating", &beside))?;
        file.write_all(&bytes).map_err(Error::io("writing", &beside))?;
        file.sync_all().map_err(Error::io("syncing", &beside))?;
        settle(&beside, &path)
    }
}

/// Keeps a blob from being swept.
pub struct Hold<'a> {
    store: &'a Store,
    digest: String,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.store.held);
        if let Some(count) = held.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.digest);
            }
        }
    }
}

/// A blob on its way into the store. Dropped without [`Incoming::commit`], it leaves nothing.
pub struct Incoming<'a> {
    store: &'a Store,
    file: fs::File,
    path: PathBuf,
    hasher: Sha256,
    image: String,
    digest: String,
}

impl Incoming<'_> {
    /// The next piece.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(Error::io("writing", &self.path))
    }

    /// Checks the digest, syncs, and gives the blob its name.
    pub fn commit(mut self) -> Result<(), Error> {
        let found = format!("sha256:{}", hex::encode(std::mem::take(&mut self.hasher).finalize()));
        if found != self.digest {
            return Err(Error::Corrupt {
                image: self.image.clone(),
                reason: format!("content with digest {found} came for {}", self.digest),
            });
        }
        self.file.sync_all().map_err(Error::io("syncing", &self.path))?;
        settle(&self.path, &self.store.blob_path(&self.digest))
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        // After a commit the file has another name, and this finds nothing.
        let _ = fs::remove_file(&self.path);
    }
}

fn settle(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io("renaming to", to))?;
    let dir = to.parent().unwrap_or(to);
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("syncing", dir))
}

fn load_records(dir: &Path) -> Result<BTreeMap<String, ImageRecord>, Error> {
    let mut records = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(Error::io("reading", dir))? {
        let path = entry.map_err(Error::io("reading", dir))?.path();
        let bytes = fs::read(&path).map_err(Error::io("reading", &path))?;
        match serde_json::from_slice::<ImageRecord>(&bytes) {
            Ok(record) if crate::reference::is_digest(&record.id) => {
                records.insert(record.id.clone(), record);
            }
            // The image can be pulled again; one bad file must not keep the node down.
            _ => tracing::warn!(path = %path.display(), "an image record cannot be read; it is ignored"),
        }
    }
    Ok(records)
}

pub(crate) fn hex_part(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
