//! Blobs as files: `<root>/sha256/<first two digits>/<digits>`; what is on its way lies in `<root>/uploads`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::fs::{self, File};

use crate::peers::{self, Fetch};

/// A folder of blobs. Clones share it.
#[derive(Clone)]
pub struct Blobs {
    root: Arc<PathBuf>,
    /// Asks other members for what is not here; `None`: there are none.
    fetch: Option<Fetch>,
}

impl Blobs {
    /// Makes the folders, and removes what a crash left of uploads.
    pub fn open(root: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root.join("sha256"))?;
        let uploads = root.join("uploads");
        if uploads.exists() {
            std::fs::remove_dir_all(&uploads)?;
        }
        std::fs::create_dir_all(&uploads)?;
        Ok(Self { root: Arc::new(root.to_path_buf()), fetch: None })
    }

    /// The same folder, which looks at other members for what is not here.
    pub fn with_members(&self, fetch: Fetch) -> Self {
        Self { root: self.root.clone(), fetch: Some(fetch) }
    }

    async fn fetched(&self, hex: &str) -> io::Result<bool> {
        match &self.fetch {
            Some(fetch) => Box::pin(peers::fetch(self, fetch, hex)).await,
            None => Ok(false),
        }
    }

    /// Where a blob lies. `hex` are the checked 64 digits.
    fn path(&self, hex: &str) -> PathBuf {
        self.root.join("sha256").join(hex.get(..2).unwrap_or("xx")).join(hex)
    }

    /// Where an upload lies.
    pub fn upload_path(&self, id: &str) -> PathBuf {
        self.root.join("uploads").join(id)
    }

    /// Bytes of a blob, if it is here or can be had.
    pub async fn size(&self, hex: &str) -> io::Result<Option<u64>> {
        match self.size_here(hex).await? {
            None if self.fetched(hex).await? => self.size_here(hex).await,
            found => Ok(found),
        }
    }

    async fn size_here(&self, hex: &str) -> io::Result<Option<u64>> {
        match fs::metadata(self.path(hex)).await {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A blob to read, and its bytes, if it is here or can be had.
    pub async fn open_blob(&self, hex: &str) -> io::Result<Option<(File, u64)>> {
        match self.open_here(hex).await? {
            None if self.fetched(hex).await? => self.open_here(hex).await,
            found => Ok(found),
        }
    }

    /// The same, if it is here.
    pub async fn open_here(&self, hex: &str) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path(hex)).await {
            Ok(file) => {
                let size = file.metadata().await?.len();
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a file that is written and checked the blob with these digits. On disk when it returns.
    pub async fn adopt(&self, file: File, from: &Path, hex: &str) -> io::Result<()> {
        file.sync_all().await?;
        drop(file);
        let to = self.path(hex);
        let folder = to.parent().unwrap_or(&self.root).to_path_buf();
        fs::create_dir_all(&folder).await?;
        fs::rename(from, &to).await?;
        // The name must be on disk too, and the folder's own name in the one above.
        for folder in [folder, self.root.join("sha256")] {
            File::open(folder).await?.sync_all().await?;
        }
        Ok(())
    }
}
