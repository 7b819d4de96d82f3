//! Bytes that a passphrase opens: AES-256-GCM in chunks, with a key made of the passphrase by PBKDF2 (SHA-256).
//!
//! A line that says what it is, the salt, the number of rounds (u32, little-endian), then chunks of at most 64 KiB and 16
//! bytes of tag each. A chunk's nonce is its number; the last one says so, so that none can be left out, moved or added.

use std::io::{self, Read, Write};
use std::num::NonZeroU32;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::pbkdf2;

/// How what is sealed begins.
pub const MAGIC: &[u8] = b"coracle sealed snapshot 1\n";
const SALT: usize = 16;
const CHUNK: usize = 64 << 10;
const TAG: usize = 16;
const HEAD: u64 = (MAGIC.len() + SALT + 4) as u64;
/// Rounds for a new file; a file says how many it took.
const ROUNDS: u32 = if cfg!(test) { 1000 } else { 600_000 };
/// A file that asks for more is refused: it would take minutes to find out that it is wrong.
const MOST_ROUNDS: u32 = 10_000_000;

struct Key {
    key: LessSafeKey,
    next: u64,
}

impl Key {
    fn new(passphrase: &str, salt: &[u8], rounds: u32) -> io::Result<Self> {
        let rounds = NonZeroU32::new(rounds).filter(|rounds| rounds.get() <= MOST_ROUNDS);
        let rounds = rounds.ok_or_else(|| io::Error::other("its number of rounds makes no sense"))?;
        let mut bytes = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, passphrase.as_bytes(), &mut bytes);
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| io::Error::other("key"))?;
        Ok(Self { key: LessSafeKey::new(key), next: 0 })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.next.to_be_bytes());
        self.next += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, chunk: &mut Vec<u8>, last: bool) -> io::Result<()> {
        let nonce = self.nonce();
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::from([u8::from(last)]), chunk);
        sealed.map_err(|_| io::Error::other("sealing failed"))
    }

    fn open(&mut self, chunk: &mut Vec<u8>, last: bool) -> io::Result<()> {
        let nonce = self.nonce();
        let opened = self.key.open_in_place(nonce, Aad::from([u8::from(last)]), chunk);
        let length =
            opened.map_err(|_| io::Error::other("the passphrase is another, or it is damaged"))?.len();
        chunk.truncate(length);
        Ok(())
    }
}

/// Seals what is written to it. Without [`Self::finish`] it is not whole.
pub struct Sealer<W> {
    inner: W,
    key: Key,
    chunk: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Begins.
    pub fn new(mut inner: W, passphrase: &str) -> io::Result<Self> {
        let salt: [u8; SALT] = rand::random();
        inner.write_all(MAGIC)?;
        inner.write_all(&salt)?;
        inner.write_all(&ROUNDS.to_le_bytes())?;
        Ok(Self { inner, key: Key::new(passphrase, &salt, ROUNDS)?, chunk: Vec::new() })
    }

    /// Writes the last chunk.
    pub fn finish(mut self) -> io::Result<W> {
        self.key.seal(&mut self.chunk, true)?;
        self.inner.write_all(&self.chunk)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk waits until it is known not to be the last.
        if self.chunk.len() == CHUNK {
            self.key.seal(&mut self.chunk, false)?;
            self.inner.write_all(&self.chunk)?;
            self.chunk.clear();
        }
        let taken = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens what was sealed, chunk by chunk.
pub struct Opener<R> {
    inner: R,
    key: Key,
    chunk: io::Cursor<Vec<u8>>,
    /// Bytes of chunks that were not read yet.
    left: u64,
}

impl<R: Read> Opener<R> {
    /// Begins behind [`MAGIC`]; `length` is that of the whole file.
    pub fn new(mut inner: R, length: u64, passphrase: &str) -> io::Result<Self> {
        let (mut salt, mut rounds) = ([0; SALT], [0; 4]);
        inner.read_exact(&mut salt)?;
        inner.read_exact(&mut rounds)?;
        let key = Key::new(passphrase, &salt, u32::from_le_bytes(rounds))?;
        let left = length.checked_sub(HEAD).filter(|left| *left >= TAG as u64);
        let left = left.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Self { inner, key, chunk: io::Cursor::default(), left })
    }

    /// How many bytes come out of a file of this length.
    pub fn opened_length(length: u64) -> Option<u64> {
        let sealed = length.checked_sub(HEAD)?;
        sealed.checked_sub(sealed.div_ceil((CHUNK + TAG) as u64) * TAG as u64)
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.chunk.read(out)?;
        if read > 0 || out.is_empty() || self.left == 0 {
            return Ok(read);
        }
        let length = self.left.min((CHUNK + TAG) as u64);
        self.left -= length;
        let mut chunk = vec![0; length as usize];
        self.inner.read_exact(&mut chunk)?;
        self.key.open(&mut chunk, self.left == 0)?;
        self.chunk = io::Cursor::new(chunk);
        self.chunk.read(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(sealed: &[u8], passphrase: &str) -> io::Result<Vec<u8>> {
        let rest = sealed.strip_prefix(MAGIC).ok_or_else(|| io::Error::other("magic"))?;
        let mut out = Vec::new();
        Opener::new(rest, sealed.len() as u64, passphrase)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn only_the_passphrase_opens_and_every_change_is_found() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17] {
            let plain: Vec<u8> = (0..length).map(|n| (n * 7) as u8).collect();
            let mut sealer = Sealer::new(Vec::new(), "open sesame").unwrap();
            sealer.write_all(&plain).unwrap();
            let sealed = sealer.finish().unwrap();
            assert_eq!(Opener::<&[u8]>::opened_length(sealed.len() as u64), Some(length as u64));
            assert_eq!(open(&sealed, "open sesame").unwrap(), plain);
            assert!(open(&sealed, "open sesam").is_err());
            for at in (MAGIC.len()..sealed.len()).step_by(sealed.len() / 40 + 1) {
                let mut damaged = sealed.clone();
                damaged[at] ^= 1;
                // The number of rounds may become one that takes for ever; it is part of the key all the same.
                if !(MAGIC.len() + SALT..MAGIC.len() + SALT + 4).contains(&at) {
                    assert!(open(&damaged, "open sesame").is_err(), "byte {at} of {length}");
                }
            }
            for cut in [1, TAG, CHUNK + TAG] {
                if let Some(short) = sealed.len().checked_sub(cut).filter(|short| *short as u64 >= HEAD) {
                    assert!(open(&sealed[..short], "open sesame").is_err(), "{cut} bytes less of {length}");
                }
            }
        }
    }
}
