//! Uploads under way: each is a file and a running digest. Bounded in number, in size and in idle time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use futures::StreamExt;
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

use crate::blobs::Blobs;
use crate::error::Error;
use crate::names;

/// Most bytes of one blob: 4 GiB.
pub const BLOB_MAX: u64 = 4 << 30;
/// Most uploads at a time.
pub const SESSIONS_MAX: usize = 256;
/// How long an upload may lie idle.
pub const SESSION_IDLE: Duration = Duration::from_secs(15 * 60);

/// One upload.
pub struct Session {
    repository: String,
    path: PathBuf,
    file: File,
    digest: Sha256,
    size: u64,
    touched: Instant,
}

impl Session {
    /// Bytes received.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a body. `start` is where the client says it begins.
    ///
    /// # Errors
    /// 416 where it does not begin at the end of what is here, 413 where the blob gets too large.
    pub async fn append(&mut self, body: Body, start: Option<u64>) -> Result<(), Error> {
        if let Some(start) = start
            && start != self.size
        {
            return Err(Error::range(format!(
                "the chunk starts at {start}, but {} bytes are here",
                self.size
            )));
        }
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| Error::upload_invalid(format!("reading the body: {e}")))?;
            let size = self.size + chunk.len() as u64;
            if size > BLOB_MAX {
                return Err(Error::too_large(format!("a blob may have {BLOB_MAX} bytes at most")));
            }
            self.file.write_all(&chunk).await.map_err(|e| Error::internal("writing an upload", e))?;
            self.digest.update(&chunk);
            self.size = size;
            self.touched = Instant::now();
        }
        self.file.flush().await.map_err(|e| Error::internal("writing an upload", e))
    }
}

/// All uploads.
pub struct Uploads {
    blobs: Blobs,
    sessions: Mutex<HashMap<String, Arc<Mutex<Option<Session>>>>>,
}

impl Uploads {
    /// No uploads yet.
    pub fn new(blobs: Blobs) -> Self {
        Self { blobs, sessions: Mutex::new(HashMap::new()) }
    }

    /// Begins an upload; answers its id.
    ///
    /// # Errors
    /// 429 when there are too many.
    pub async fn begin(&self, repository: &str) -> Result<String, Error> {
        let mut sessions = self.sessions.lock().await;
        self.expire(&mut sessions).await;
        if sessions.len() >= SESSIONS_MAX {
            return Err(Error::too_many(format!("{SESSIONS_MAX} uploads are under way")));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let path = self.blobs.upload_path(&id);
        let file = File::create_new(&path).await.map_err(|e| Error::internal("beginning an upload", e))?;
        let session = Session {
            repository: repository.into(),
            path,
            file,
            digest: Sha256::new(),
            size: 0,
            touched: Instant::now(),
        };
        sessions.insert(id.clone(), Arc::new(Mutex::new(Some(session))));
        Ok(id)
    }

    async fn expire(&self, sessions: &mut HashMap<String, Arc<Mutex<Option<Session>>>>) {
        let mut old = Vec::new();
        for (id, session) in sessions.iter() {
            // One that is locked is being written.
            let Ok(session) = session.try_lock() else { continue };
            if session.as_ref().is_none_or(|s| s.touched.elapsed() > SESSION_IDLE) {
                old.push(id.clone());
            }
        }
        for id in old {
            sessions.remove(&id);
            let _ = tokio::fs::remove_file(self.blobs.upload_path(&id)).await;
        }
    }

    async fn find(&self, repository: &str, id: &str) -> Result<Arc<Mutex<Option<Session>>>, Error> {
        let found = self.sessions.lock().await.get(id).cloned().ok_or_else(|| Error::upload_unknown(id))?;
        let own = found.lock().await.as_ref().is_some_and(|s| s.repository == repository);
        if own { Ok(found) } else { Err(Error::upload_unknown(id)) }
    }

    /// Appends a body to an upload; answers how many bytes it has. A chunk that breaks off counts as far as it came.
    pub async fn append(
        &self,
        repository: &str,
        id: &str,
        body: Body,
        start: Option<u64>,
    ) -> Result<u64, Error> {
        let found = self.find(repository, id).await?;
        let mut slot = found.lock().await;
        let session = slot.as_mut().ok_or_else(|| Error::upload_unknown(id))?;
        session.append(body, start).await?;
        Ok(session.size())
    }

    /// How many bytes an upload has.
    pub async fn size(&self, repository: &str, id: &str) -> Result<u64, Error> {
        let found = self.find(repository, id).await?;
        let slot = found.lock().await;
        slot.as_ref().map(Session::size).ok_or_else(|| Error::upload_unknown(id))
    }

    /// Ends an upload: appends a last body, checks the digest, and makes it a blob.
    pub async fn finish(
        &self,
        repository: &str,
        id: &str,
        body: Body,
        start: Option<u64>,
        digest: &str,
    ) -> Result<(), Error> {
        let hex = names::sha256(digest)?;
        let found = self.find(repository, id).await?;
        let mut slot = found.lock().await;
        slot.as_mut().ok_or_else(|| Error::upload_unknown(id))?.append(body, start).await?;
        let session = slot.take().ok_or_else(|| Error::upload_unknown(id))?;
        self.sessions.lock().await.remove(id);
        let actual = hex::encode(session.digest.finalize());
        if actual != hex {
            let _ = tokio::fs::remove_file(&session.path).await;
            return Err(Error::digest_invalid(format!("the content is sha256:{actual}, not {digest}")));
        }
        let adopted = self.blobs.adopt(session.file, &session.path, hex).await;
        if adopted.is_err() {
            let _ = tokio::fs::remove_file(&session.path).await;
        }
        adopted.map_err(|e| Error::internal("storing a blob", e))
    }

    /// Gives an upload up.
    pub async fn cancel(&self, repository: &str, id: &str) -> Result<(), Error> {
        let found = self.find(repository, id).await?;
        found.lock().await.take();
        self.sessions.lock().await.remove(id);
        let _ = tokio::fs::remove_file(self.blobs.upload_path(id)).await;
        Ok(())
    }
}

/// Reads a whole body of at most `most` bytes.
pub async fn read(body: Body, most: usize) -> Result<bytes::Bytes, Error> {
    match http_body_util::Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => {
            Err(Error::too_large(format!("a manifest may have {most} bytes at most")))
        }
        Err(e) => Err(Error::manifest_invalid(format!("reading the body: {e}"))),
    }
}
