//! A snapshot: one file with all rows and what they are the state of.
//!
//! `CORACLE\0`, format (u32), then blocks of `<length u32><bytes>`: the [`Applied`] in postcard, since format 2 the leases (id and
//! milliseconds) in postcard, then key and value of
//! each row in turn, an empty block, and the CRC-32 of everything before it. Numbers are little-endian.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use redb::ReadableTable;

use super::io_error;
use super::state::{Applied, View};
use crate::{Error, MAX_KEY_BYTES, MAX_TXN_BYTES};

const MAGIC: &[u8; 8] = b"CORACLE\0";
/// No block is longer.
const MOST_BLOCK: usize = MAX_TXN_BYTES + MAX_KEY_BYTES + 1024;

/// A snapshot that raft hands around: a view of this member's rows, or a file that arrived.
pub(crate) enum SnapshotData {
    View(Box<View>),
    File(PathBuf),
}

/// A row of a snapshot, as it lies on disk.
pub(crate) type RawRow = Result<(Vec<u8>, Vec<u8>), redb::Error>;

impl View {
    /// All rows, in order of revision.
    pub fn raw_rows(&self) -> Result<impl Iterator<Item = RawRow>, redb::Error> {
        let rows = self.rows.iter()?;
        Ok(rows.map(|row| row.map(|(k, v)| (k.value().to_vec(), v.value().to_vec())).map_err(Into::into)))
    }

    /// Writes what a snapshot file holds.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut out = Summed { inner: out, sum: crc32fast::Hasher::new() };
        out.write_all(MAGIC)?;
        let format = u32::try_from(self.format).map_err(io::Error::other)?;
        out.write_all(&format.to_le_bytes())?;
        out.block(&postcard::to_stdvec(&self.applied).map_err(io::Error::other)?)?;
        if self.format >= 2 {
            out.block(&postcard::to_stdvec(&self.leases).map_err(io::Error::other)?)?;
        }
        for row in self.raw_rows().map_err(io::Error::other)? {
            let (key, value) = row.map_err(io::Error::other)?;
            out.block(&key)?;
            out.block(&value)?;
        }
        out.block(&[])?;
        let sum = out.sum.clone().finalize();
        out.inner.write_all(&sum.to_le_bytes())
    }

    /// Writes the file: beside its place first, so that a half-written one never bears the name.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let part = path.with_extension("part");
        let write = || -> io::Result<()> {
            let mut out = BufWriter::new(private_file(&part)?);
            self.write(&mut out)?;
            out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
            std::fs::rename(&part, path)?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(io_error("writing a snapshot"))
    }
}

/// An empty file that its owner alone may read. One that is left over may be open to others: it goes first.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    remove_left(path)?;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Removes a file that may be left over.
pub(crate) fn remove_left(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// A snapshot file that is being read.
pub(crate) struct Reader<R = File> {
    input: Summed<BufReader<R>>,
    path: PathBuf,
    pub format: u64,
    pub applied: Applied,
    pub leases: Vec<(u64, u64)>,
}

impl Reader {
    /// Checks the whole file, which is of this format at most, then opens it for reading its rows.
    pub fn open(path: &Path, newest: u64) -> Result<Self, Error> {
        let file = || File::open(path).map_err(io_error("opening a snapshot"));
        let mut check = Self::start(file()?, path, newest)?;
        while check.row().map_err(|error| check.damaged(&error))?.is_some() {}
        Self::start(file()?, path, newest)
    }
}

impl<R: Read> Reader<R> {
    /// Begins to read; whether all of it is whole is known after the last row.
    pub fn start(file: R, path: &Path, newest: u64) -> Result<Self, Error> {
        let input = Summed { inner: BufReader::new(file), sum: crc32fast::Hasher::new() };
        let mut reader =
            Self { input, path: path.to_owned(), format: 0, applied: Applied::default(), leases: Vec::new() };
        let format = reader.read_format().map_err(|error| reader.damaged(&error))?;
        reader.format = format;
        if format > newest {
            let file = path.display().to_string();
            return Err(Error::FormatTooNew { file, found: format, supported: newest });
        }
        let applied = reader.input.read_block().map_err(|error| reader.damaged(&error))?;
        let applied = postcard::from_bytes(&applied).map_err(io::Error::other);
        reader.applied = applied.map_err(|error| reader.damaged(&error))?;
        if format >= 2 {
            let leases = reader.input.read_block().map_err(|error| reader.damaged(&error))?;
            let leases = postcard::from_bytes(&leases).map_err(io::Error::other);
            reader.leases = leases.map_err(|error| reader.damaged(&error))?;
        }
        Ok(reader)
    }

    fn read_format(&mut self) -> io::Result<u64> {
        if self.input.array::<8>()? != *MAGIC {
            return Err(io::Error::other("this is not a snapshot"));
        }
        Ok(u32::from_le_bytes(self.input.array()?).into())
    }

    fn damaged(&self, error: &io::Error) -> Error {
        Error::Corrupt { file: self.path.display().to_string(), detail: error.to_string() }
    }

    /// The next row; `None` after the last one, when the sum was right.
    fn row(&mut self) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let key = self.input.read_block()?;
        if !key.is_empty() {
            return Ok(Some((key, self.input.read_block()?)));
        }
        let expected = self.input.sum.clone().finalize();
        match u32::from_le_bytes(self.input.array()?) == expected {
            true => Ok(None),
            false => Err(io::Error::other("checksum does not match")),
        }
    }

    /// All rows.
    pub fn rows(mut self) -> impl Iterator<Item = RawRow> {
        std::iter::from_fn(move || self.row().map_err(redb::Error::Io).transpose())
    }
}

/// Counts a checksum of what passes.
struct Summed<T> {
    inner: T,
    sum: crc32fast::Hasher,
}

impl<T: Write> Summed<T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }

    fn block(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.write_all(&length.to_le_bytes())?;
        self.write_all(bytes)
    }
}

impl<T: Read> Summed<T> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn read_block(&mut self) -> io::Result<Vec<u8>> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        if length > MOST_BLOCK {
            return Err(io::Error::other(format!("a block of {length} bytes is too long")));
        }
        let mut bytes = vec![0; length];
        self.inner.read_exact(&mut bytes)?;
        self.sum.update(&bytes);
        Ok(bytes)
    }
}
