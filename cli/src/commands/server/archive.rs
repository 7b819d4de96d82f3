//! A snapshot of a cluster as one file: a line that says what it is, the length (u64, little-endian) of a JSON head, the head
//! (which cluster, its keys), the store's snapshot, and the SHA-256 of all before.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use coracle_store::{Inspection, Store};
use futures::Stream;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::encryption;
use super::membership::{Keys, Membership, read_keys};
use super::sealed::{self, Opener};
use crate::data_dir::{create_private, temporary};

const MAGIC: &[u8] = b"coracle snapshot 1\n";
const MAX_HEAD: u64 = 1 << 20;
const PIECE: usize = 256 << 10;
const SUM: u64 = 32;

/// What goes before the state.
#[derive(Serialize, Deserialize)]
pub struct Head {
    /// The cluster that it was taken of.
    pub membership: Membership,
    /// Its keys.
    pub keys: Keys,
}

/// What snapshots are taken of.
#[derive(Clone)]
pub struct Source {
    /// The state.
    pub store: Store,
    /// This server's part in the cluster.
    pub membership: Membership,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// The configuration that Secrets are sealed with, as it was read when the server started; `None`: they lie open.
    pub encryption: Option<Arc<str>>,
}

impl Source {
    /// A snapshot of all that is acknowledged by now: how many bytes, and the bytes, made while they are read.
    pub async fn snapshot(&self) -> Result<(u64, impl Stream<Item = std::io::Result<Bytes>> + Send + use<>)> {
        self.store.linearizable().await?;
        let mut keys = read_keys(&self.data_dir.join("pki"))?;
        // What seals may be a file of the user's; a restored cluster has it as its own.
        keys.extend(self.encryption.iter().map(|text| (encryption::FILE.to_owned(), text.to_string())));
        let folder = temporary(&self.data_dir)?;
        let state = folder.path().join("state");
        self.store.save_snapshot(&state).await?;
        stream(&self.membership, &keys, folder, &state).await
    }
}

/// The archive's bytes, made while they are sent, and how many. `folder` holds the state and goes with the stream.
async fn stream(
    membership: &Membership,
    keys: &Keys,
    folder: TempDir,
    state: &Path,
) -> Result<(u64, impl Stream<Item = std::io::Result<Bytes>> + Send + use<>)> {
    let head = serde_json::to_vec(&Head { membership: membership.clone(), keys: keys.clone() })?;
    let mut start = MAGIC.to_vec();
    start.extend_from_slice(&(head.len() as u64).to_le_bytes());
    start.extend_from_slice(&head);
    let file = tokio::fs::File::open(state).await?;
    let length = start.len() as u64 + file.metadata().await?.len() + SUM;
    let mut sum = Sha256::new();
    sum.update(&start);
    let pieces = futures::stream::try_unfold((Some((file, sum)), Some(start), folder), async |from| {
        let (rest, start, folder) = from;
        let Some((mut file, mut sum)) = rest else { return Ok(None) };
        if let Some(start) = start {
            return Ok(Some((Bytes::from(start), (Some((file, sum)), None, folder))));
        }
        let mut piece = vec![0; PIECE];
        let read = file.read(&mut piece).await?;
        if read == 0 {
            return Ok(Some((Bytes::from(sum.finalize().to_vec()), (None, None, folder))));
        }
        piece.truncate(read);
        sum.update(&piece);
        Ok(Some((Bytes::from(piece), (Some((file, sum)), None, folder))))
    });
    Ok((length, pieces))
}

/// Whether a passphrase is needed to open an archive.
pub fn is_sealed(archive: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    file.take(sealed::MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == sealed::MAGIC)
}

/// Checks a whole archive. Nothing of it is written anywhere.
pub fn check(archive: &Path, passphrase: Option<&str>) -> Result<Head> {
    open(archive, passphrase, |file, length| Opened::new(file).copy(length, &mut std::io::sink()))
}

/// As [`check`], and what the state in it holds.
pub fn inspect(archive: &Path, passphrase: Option<&str>) -> Result<(Head, Inspection)> {
    let head = check(archive, passphrase)?;
    let found = open(archive, passphrase, |file, length| {
        let (_, state) = Opened::new(file).start(length)?;
        Ok(Store::inspect_from(file.take(state), archive))
    })?;
    Ok((head, found?))
}

/// As [`check`], and the state that it holds into a file of its own, which its owner alone may read.
pub fn unpack(archive: &Path, state: &Path, passphrase: Option<&str>) -> Result<Head> {
    open(archive, passphrase, |file, length| {
        let mut out = std::io::BufWriter::new(create_private(state)?);
        let head = Opened::new(file).copy(length, &mut out)?;
        out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        Ok(head)
    })
}

/// Hands an archive's bytes, out of its seal, to `read`, and how many they are.
fn open<T>(
    archive: &Path,
    passphrase: Option<&str>,
    read: impl FnOnce(&mut dyn Read, u64) -> Result<T>,
) -> Result<T> {
    let needed = is_sealed(archive)?;
    let mut file = std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let length = file.metadata()?.len();
    let done = match (needed, passphrase) {
        (false, _) => read(&mut file, length),
        (true, None) => bail!("{} is encrypted: give --passphrase-file", archive.display()),
        (true, Some(passphrase)) => {
            let mut magic = [0; sealed::MAGIC.len()];
            file.read_exact(&mut magic)?;
            let opened = Opener::new(std::io::BufReader::new(file), length, passphrase);
            let inner = Opener::<std::fs::File>::opened_length(length).context("it ends too early");
            opened.context("its head").and_then(|mut opened| read(&mut opened, inner?))
        }
    };
    done.with_context(|| format!("{} is no whole snapshot", archive.display()))
}

/// An archive that is being read, and the sum of what was.
struct Opened<'a> {
    file: &'a mut dyn Read,
    sum: Sha256,
}

impl<'a> Opened<'a> {
    fn new(file: &'a mut dyn Read) -> Self {
        Self { file, sum: Sha256::new() }
    }

    /// Reads so many bytes. What a sealed archive says of its passphrase is no early end.
    fn whole(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => anyhow::anyhow!("it ends too early"),
            _ => error.into(),
        })
    }

    fn take(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.whole(bytes)?;
        self.sum.update(&bytes);
        Ok(())
    }

    /// Reads up to the state: the head, unchecked, and how many bytes the state has.
    fn start(&mut self, length: u64) -> Result<(Vec<u8>, u64)> {
        let mut magic = [0; MAGIC.len()];
        self.take(&mut magic)?;
        ensure!(magic == MAGIC, "it does not begin as a snapshot of a cluster");
        let mut size = [0; 8];
        self.take(&mut size)?;
        let size = u64::from_le_bytes(size);
        ensure!(size <= MAX_HEAD, "its head is too long");
        let mut head = vec![0; usize::try_from(size)?];
        self.take(&mut head)?;
        let start = MAGIC.len() as u64 + 8 + size;
        Ok((head, length.checked_sub(start + SUM).context("it ends too early")?))
    }

    /// Reads all of it; the state goes to `out`.
    fn copy(mut self, length: u64, out: &mut dyn Write) -> Result<Head> {
        let (head, mut left) = self.start(length)?;
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let count = left.min(PIECE as u64);
            let piece = piece.get_mut(..usize::try_from(count)?).context("piece")?;
            self.take(piece)?;
            out.write_all(piece)?;
            left -= count;
        }
        let mut expected = [0; SUM as usize];
        self.whole(&mut expected)?;
        if self.sum.finalize()[..] != expected {
            bail!("its checksum does not match");
        }
        serde_json::from_slice(&head).context("its head")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn what_was_packed_is_unpacked_and_every_flipped_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let work = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let bytes: Vec<u8> = (0..700_u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&state, &bytes).unwrap();
        let membership = Membership::first("10.96.0.0/12".parse().unwrap(), "10.0.0.0/16".parse().unwrap());
        let keys: Keys = [("ca.key".to_owned(), "secret".to_owned())].into();
        let (length, pieces) = stream(&membership, &keys, folder, &state).await.unwrap();
        let pieces: Vec<Bytes> = std::pin::pin!(pieces).try_collect().await.unwrap();
        let packed = pieces.concat();
        assert_eq!(packed.len() as u64, length);
        let (file, out) = (work.path().join("a"), work.path().join("b"));
        std::fs::write(&file, &packed).unwrap();
        // Left over, and open to all.
        std::fs::write(&out, "").unwrap();
        std::fs::set_permissions(&out, PermissionsExt::from_mode(0o644)).unwrap();
        let head = unpack(&file, &out, None).unwrap();
        assert_eq!(head.keys, keys);
        assert_eq!(std::fs::read(&out).unwrap(), bytes);
        assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        for at in (0..packed.len()).step_by(7) {
            let mut damaged = packed.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).unwrap();
            assert!(unpack(&file, &out, None).is_err(), "byte {at}");
            assert!(check(&file, None).is_err(), "byte {at}");
        }
        for cut in [0, 10, 100, packed.len() - 1] {
            std::fs::write(&file, &packed[..cut]).unwrap();
            assert!(unpack(&file, &out, None).is_err(), "cut at {cut}");
        }
    }
}
