//! Manifests and tags in the store: `/images/manifests/<repository>/<digest>` holds the media type, a line feed and the manifest's own
//! bytes; `/images/tags/<repository>/<tag>` holds a digest.

use bytes::Bytes;
use coracle_store::{Op, Range, Store, Txn, Value};

use crate::error::Error;

/// Where manifests lie in the store.
pub(crate) const MANIFESTS: &str = "/images/manifests/";
const TAGS: &str = "/images/tags/";
/// Most keys of one transaction that deletes tags.
const BATCH: usize = 512;

/// A manifest as it was pushed.
pub struct Manifest {
    /// Its media type.
    pub media_type: String,
    /// Its bytes, whose digest names it.
    pub bytes: Bytes,
}

/// All manifests and tags.
pub struct Manifests {
    store: Store,
}

fn manifest_key(repository: &str, digest: &str) -> Bytes {
    format!("{MANIFESTS}{repository}/{digest}").into()
}

fn tag_key(repository: &str, tag: &str) -> Bytes {
    format!("{TAGS}{repository}/{tag}").into()
}

pub(crate) fn decode(value: &Bytes) -> Option<Manifest> {
    let end = value.iter().position(|b| *b == b'\n')?;
    let media_type = std::str::from_utf8(value.get(..end)?).ok()?.to_string();
    Some(Manifest { media_type, bytes: value.slice(end + 1..) })
}

impl Manifests {
    /// Manifests of this store.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    async fn write(&self, txn: Txn) -> Result<(), Error> {
        self.store.txn(txn).await.map(|_| ()).map_err(|e| Error::internal("writing to the store", e))
    }

    /// Returns when reads see what was pushed at any member.
    pub async fn newest(&self) -> Result<(), Error> {
        self.store.linearizable().await.map_err(|e| Error::internal("reading the store", e))
    }

    /// The digest that a tag names.
    pub fn tag(&self, repository: &str, tag: &str) -> Option<String> {
        let kv = self.store.get(&tag_key(repository, tag))?;
        String::from_utf8(kv.value.json.to_vec()).ok()
    }

    /// A manifest by digest.
    pub fn get(&self, repository: &str, digest: &str) -> Option<Manifest> {
        decode(&self.store.get(&manifest_key(repository, digest))?.value.json)
    }

    /// Stores a manifest, and a tag for it.
    pub async fn put(
        &self,
        repository: &str,
        digest: &str,
        tag: Option<&str>,
        manifest: &Manifest,
    ) -> Result<(), Error> {
        let mut value = Vec::with_capacity(manifest.media_type.len() + 1 + manifest.bytes.len());
        value.extend_from_slice(manifest.media_type.as_bytes());
        value.push(b'\n');
        value.extend_from_slice(&manifest.bytes);
        let put = |key, value: Bytes| Op::Put { key, value: Value::raw(value), ttl_ms: None };
        let mut success = vec![put(manifest_key(repository, digest), value.into())];
        if let Some(tag) = tag {
            success.push(put(tag_key(repository, tag), digest.to_string().into()));
        }
        self.write(Txn { success, ..Txn::default() }).await
    }

    /// Takes a tag away; its manifest stays.
    pub async fn delete_tag(&self, repository: &str, tag: &str) -> Result<(), Error> {
        let success = vec![Op::Delete { key: tag_key(repository, tag) }];
        self.write(Txn { success, ..Txn::default() }).await
    }

    /// Takes a manifest away, and every tag that names it.
    pub async fn delete(&self, repository: &str, digest: &str) -> Result<(), Error> {
        let named =
            self.tags(repository)?.into_iter().filter(|t| self.tag(repository, t).as_deref() == Some(digest));
        let mut keys: Vec<Bytes> = named.map(|t| tag_key(repository, &t)).collect();
        keys.push(manifest_key(repository, digest));
        for batch in keys.chunks(BATCH) {
            let success = batch.iter().map(|key| Op::Delete { key: key.clone() }).collect();
            self.write(Txn { success, ..Txn::default() }).await?;
        }
        Ok(())
    }

    fn keys(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let found = self
            .store
            .range(&Range::prefix(prefix.to_string()))
            .map_err(|e| Error::internal("reading the store", e))?;
        let rest = |key: &Bytes| std::str::from_utf8(key).ok()?.strip_prefix(prefix).map(str::to_string);
        Ok(found.kvs.iter().filter_map(|kv| rest(&kv.key)).collect())
    }

    /// Tags of a repository in order.
    pub fn tags(&self, repository: &str) -> Result<Vec<String>, Error> {
        // A longer repository name may begin with this one.
        let mut tags = self.keys(&format!("{TAGS}{repository}/"))?;
        tags.retain(|t| !t.contains('/'));
        Ok(tags)
    }

    /// Whether anything was ever pushed to a repository and is still there.
    pub fn exists(&self, repository: &str) -> Result<bool, Error> {
        Ok(self.keys(&format!("{MANIFESTS}{repository}/"))?.iter().any(|d| !d.contains('/')))
    }

    /// Repositories in order.
    pub fn repositories(&self) -> Result<Vec<String>, Error> {
        let mut all: Vec<String> =
            self.keys(MANIFESTS)?.iter().filter_map(|k| Some(k.rsplit_once('/')?.0.to_string())).collect();
        all.sort();
        all.dedup();
        Ok(all)
    }
}
