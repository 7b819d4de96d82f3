//! Reading tars that others have made, within bounds. Members that describe the next one (long names, PAX records, the
//! extents of sparse files) are read into memory by the library before it hands out an entry, whatever their size: here
//! a reader in front of it counts what it takes between two entries.

use std::cell::Cell;
use std::io::{self, Read};

/// The most bytes that describe an entry, its header included.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// What an archive may have.
pub struct Bounds {
    pub entries: u64,
    /// Both of the archive itself and of what it unpacks to.
    pub bytes: u64,
}

/// The reader in front of the library.
pub struct Counted<'a, R> {
    inner: R,
    /// What it may still take; `None` while an entry is read.
    left: &'a Cell<Option<u64>>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(left) = self.left.get() {
            let Some(left) = left.checked_sub(read as u64) else {
                return Err(wrong(format!("an entry is described in more than {MAX_DESCRIPTION} bytes")));
            };
            self.left.set(Some(left));
        }
        Ok(read)
    }
}

/// Takes each entry of an archive (not compressed) in turn, with its number.
///
/// # Errors
/// What `take` answers; `unreadable` of what is no such archive, or passes a bound.
pub fn each<R: Read, E>(
    plain: R,
    bounds: &Bounds,
    unreadable: impl Fn(io::Error) -> E,
    mut take: impl FnMut(u64, &mut tar::Entry<'_, Counted<'_, io::Take<R>>>) -> Result<(), E>,
) -> Result<(), E> {
    let left = Cell::new(None);
    let mut archive = tar::Archive::new(Counted { inner: plain.take(bounds.bytes), left: &left });
    let mut entries = archive.entries().map_err(&unreadable)?;
    let mut total = 0_u64;
    for serial in 0.. {
        left.set(Some(MAX_DESCRIPTION));
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(&unreadable)?;
        left.set(None);
        if serial >= bounds.entries {
            return Err(unreadable(wrong(format!("it has more than {} entries", bounds.entries))));
        }
        // Of a sparse file what it unpacks to, zeros included.
        total = total.saturating_add(entry.size());
        if total >= bounds.bytes {
            return Err(unreadable(wrong(format!("it has more than {} bytes", bounds.bytes))));
        }
        take(serial, &mut entry)?;
        // What was not read is no description of the next one.
        io::copy(&mut entry, &mut io::sink()).map_err(&unreadable)?;
    }
    Ok(())
}

fn wrong(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &[u8], bytes: u64) -> Result<Vec<String>, String> {
        let mut names = Vec::new();
        let bounds = Bounds { entries: 3, bytes };
        each(
            archive,
            &bounds,
            |e| e.to_string(),
            |_, entry| {
                names.push(String::from_utf8_lossy(&entry.path_bytes()).into_owned());
                Ok(())
            },
        )?;
        Ok(names)
    }

    fn member(kind: tar::EntryType, size: usize) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("plain").unwrap();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(512 + size.next_multiple_of(512), b'x');
        bytes
    }

    #[test]
    fn descriptions_are_bounded_and_contents_are_not() {
        let file = |size| member(tar::EntryType::Regular, size);
        let long = member(tar::EntryType::GNULongName, 600);
        // Nobody reads the first one: it is passed over, however long it is.
        let good = [file(3 << 20), long, file(9)].concat();
        assert_eq!(names(&good, 1 << 30).unwrap(), ["plain".to_owned(), "x".repeat(600)]);
        for kind in [tar::EntryType::GNULongName, tar::EntryType::GNULongLink, tar::EntryType::XHeader] {
            let bad = [file(1), member(kind, 2 << 20), file(9)].concat();
            let error = names(&bad, 1 << 30).unwrap_err();
            assert!(error.contains("described in more than"), "{kind:?}: {error}");
        }
        assert!(names(&good, 2 << 20).unwrap_err().contains("more than 2097152 bytes"));
        assert!(names(&file(1).repeat(4), 1 << 30).unwrap_err().contains("more than 3 entries"));
    }
}
