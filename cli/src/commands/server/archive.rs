//! A snapshot of a cluster as one file: a line that says what it is, the length (u64, little-endian) of a JSON head, the head
//! (which cluster, its keys), the store's snapshot, and the SHA-256 of all before.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::Stream;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::membership::{Keys, Membership};
use super::sealed::{self, Opener};

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

/// The archive's bytes, made while they are sent, and how many. `folder` holds the state and goes with the stream.
pub async fn stream(
    membership: &Membership,
    keys: &Keys,
    folder: TempDir,
    state: &Path,
) -> Result<(u64, impl Stream<Item = std::io::Result<Bytes>> + Send + 'static)> {
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

/// Checks a whole archive, and writes the state that it holds into a file of its own.
pub fn unpack(archive: &Path, state: &Path, passphrase: Option<&str>) -> Result<Head> {
    let needed = is_sealed(archive)?;
    let mut file = std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let length = file.metadata()?.len();
    let unpacked = match (needed, passphrase) {
        (false, _) => unpack_from(&mut file, length, state),
        (true, None) => bail!("{} is encrypted: give --passphrase-file", archive.display()),
        (true, Some(passphrase)) => {
            let mut magic = [0; sealed::MAGIC.len()];
            file.read_exact(&mut magic)?;
            let opened = Opener::new(std::io::BufReader::new(file), length, passphrase);
            let inner = Opener::<std::fs::File>::opened_length(length).context("it ends too early");
            opened.context("its head").and_then(|mut opened| unpack_from(&mut opened, inner?, state))
        }
    };
    unpacked.with_context(|| format!("{} is no whole snapshot", archive.display()))
}

/// Reads so many bytes. What a sealed archive says of its passphrase is no early end.
fn whole(file: &mut dyn Read, bytes: &mut [u8]) -> Result<()> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => anyhow::anyhow!("it ends too early"),
        _ => error.into(),
    })
}

fn unpack_from(file: &mut impl Read, length: u64, state: &Path) -> Result<Head> {
    let mut sum = Sha256::new();
    let mut take = |file: &mut dyn Read, bytes: &mut [u8]| -> Result<()> {
        whole(file, bytes)?;
        sum.update(&bytes);
        Ok(())
    };
    let mut magic = [0; MAGIC.len()];
    take(file, &mut magic)?;
    ensure!(magic == MAGIC, "it does not begin as a snapshot of a cluster");
    let mut size = [0; 8];
    take(file, &mut size)?;
    let size = u64::from_le_bytes(size);
    ensure!(size <= MAX_HEAD, "its head is too long");
    let mut head = vec![0; usize::try_from(size)?];
    take(file, &mut head)?;
    let start = MAGIC.len() as u64 + 8 + size;
    let mut left = length.checked_sub(start + SUM).context("it ends too early")?;
    let mut out = std::io::BufWriter::new(std::fs::File::create(state)?);
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let count = left.min(PIECE as u64);
        let piece = piece.get_mut(..usize::try_from(count)?).context("piece")?;
        take(file, piece)?;
        out.write_all(piece)?;
        left -= count;
    }
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    let mut expected = [0; SUM as usize];
    whole(file, &mut expected)?;
    if sum.finalize()[..] != expected {
        bail!("its checksum does not match");
    }
    serde_json::from_slice(&head).context("its head")
}

#[cfg(test)]
mod tests {
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
        let head = unpack(&file, &out, None).unwrap();
        assert_eq!(head.keys, keys);
        assert_eq!(std::fs::read(&out).unwrap(), bytes);
        for at in (0..packed.len()).step_by(7) {
            let mut damaged = packed.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, &damaged).unwrap();
            assert!(unpack(&file, &out, None).is_err(), "byte {at}");
        }
        for cut in [0, 10, 100, packed.len() - 1] {
            std::fs::write(&file, &packed[..cut]).unwrap();
            assert!(unpack(&file, &out, None).is_err(), "cut at {cut}");
        }
    }
}
