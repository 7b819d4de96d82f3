//! `log.wal`: entries on their way into `log.redb`. To sync them here is to write one place of the disk; a commit of the
//! database writes pages all over its file.
//!
//! Batches lie one behind the other, each from a sector of its own on, under a generation and a number. The database names the
//! generation that counts. Once it holds what the journal holds it names the next one, and the journal begins anew.
//!
//! A batch that does not match its checksums is the end: the power failed before it was synced. Unless there is a later one,
//! which was only written once it was: then the file is damaged.

use std::io;

use redb::StorageBackend;

use super::Entry;
use super::database::{Mark, decode, encode};
use crate::Error;
use crate::disk::{Place, io_error};

const NAME: &str = "log.wal";
const MAGIC: [u8; 4] = *b"CWAL";
const SECTOR: usize = 512;
/// It grows by so much at a time: what overwrites itself is synced without a word to the file system's own journal.
const GROW: u64 = 256 << 10;
/// The buffer of a batch keeps no more than this.
const KEEP: usize = 1 << 20;

pub(super) struct Journal {
    file: Box<dyn StorageBackend>,
    generation: u64,
    /// The number of the next batch, and where it goes.
    number: u64,
    end: u64,
    length: u64,
    /// With so many bytes it is full.
    most: u64,
    /// With so many it is worth emptying when most of its entries are not needed any more.
    much: u64,
    /// The batch that is being written.
    bytes: Vec<u8>,
}

/// What goes before a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    generation: u64,
    number: u64,
    /// Bytes of the entries, and their CRC-32.
    length: u32,
    sum: u32,
}

const HEAD: usize = 32;

impl Head {
    /// CRC-32 of what follows, magic, the fields; all little-endian.
    fn write(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let fields = MAGIC
            .into_iter()
            .chain(self.generation.to_le_bytes())
            .chain(self.number.to_le_bytes())
            .chain(self.length.to_le_bytes())
            .chain(self.sum.to_le_bytes());
        let (sum, rest) = bytes.split_at_mut(4);
        rest.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        sum.copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (sum, rest) = bytes.get(..HEAD)?.split_first_chunk()?;
        let (magic, fields) = rest.split_first_chunk()?;
        if *magic != MAGIC || u32::from_le_bytes(*sum) != crc32fast::hash(rest) {
            return None;
        }
        let (generation, fields) = fields.split_first_chunk()?;
        let (number, fields) = fields.split_first_chunk()?;
        let (length, sum) = fields.split_first_chunk()?;
        Some(Self {
            generation: u64::from_le_bytes(*generation),
            number: u64::from_le_bytes(*number),
            length: u32::from_le_bytes(*length),
            sum: u32::from_le_bytes(*sum.first_chunk()?),
        })
    }
}

impl Journal {
    /// Opens the journal, or makes it where the database has never known one. Returns the entries that count.
    pub fn open(place: &Place, mark: Option<Mark>) -> Result<(Self, Vec<Entry>), Error> {
        let failed = io_error("opening the store's files");
        let Mark { generation, counts } = mark.unwrap_or(Mark { generation: 1, counts: false });
        let exists = place.files.exists(NAME).map_err(&failed)?;
        if counts && !exists {
            return Err(place.corrupt(NAME, "it is missing, and the log counts on it"));
        }
        if !exists {
            make(place).map_err(io_error("making the store's files"))?;
        }
        let file = place.files.open(NAME).map_err(&failed)?;
        let length = file.len().map_err(&failed)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read(0, &mut bytes).map_err(io_error("reading the store's files"))?;
        let found = known(&bytes, generation, counts).and_then(|()| match counts {
            true => replay(&bytes, generation),
            false => Ok(Vec::new()),
        });
        let entries = found.map_err(|detail| place.corrupt(NAME, &detail))?;
        let (most, much) = (place.log_bytes / 8 * 3, place.log_bytes / 8);
        let (number, end, bytes) = (0, 0, Vec::new());
        Ok((Self { file, generation, number, end, length, most, much, bytes }, entries))
    }

    /// The generation of the batches that are written.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether nothing was written in this generation.
    pub fn is_empty(&self) -> bool {
        self.number == 0
    }

    /// Whether the database has to take over, or may well do so, for entries were just purged.
    pub fn is_due(&self, purged: bool) -> bool {
        self.end >= if purged { self.much } else { self.most }
    }

    /// Writes entries and syncs them. False where they are too much for it: nothing was written then.
    pub fn append<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> Result<bool, redb::Error> {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP);
        self.bytes.extend_from_slice(&[0; HEAD]);
        for entry in entries {
            let at = self.bytes.len();
            self.bytes.extend_from_slice(&[0; 4]);
            encode(entry, &mut self.bytes)?;
            let length = (self.bytes.len() - at).saturating_sub(4) as u32;
            if let Some(field) = self.bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
                *field = length.to_le_bytes();
            }
            if self.bytes.len() as u64 > self.most {
                return Ok(false);
            }
        }
        let body = self.bytes.get(HEAD..).unwrap_or_default();
        let (length, sum) = (body.len() as u32, crc32fast::hash(body));
        let head = Head { generation: self.generation, number: self.number, length, sum };
        if let Some(to) = self.bytes.first_chunk_mut() {
            *to = head.write();
        }
        self.write()?;
        Ok(true)
    }

    fn write(&mut self) -> io::Result<()> {
        let end = self.end + self.bytes.len() as u64;
        if end > self.length {
            let length = end.next_multiple_of(GROW);
            self.file.set_len(length)?;
            self.file.write(end, &vec![0; usize::try_from(length - end).unwrap_or_default()])?;
            self.length = length;
        }
        self.file.write(self.end, &self.bytes)?;
        self.file.sync_data()?;
        (self.end, self.number) = (end.next_multiple_of(SECTOR as u64), self.number + 1);
        Ok(())
    }

    /// Begins anew, for the database says that this generation is the one that counts.
    pub fn restart(&mut self, generation: u64) {
        (self.generation, self.number, self.end) = (generation, 0, 0);
    }

    /// Gives room back to the disk, where nothing in it counts.
    pub fn shrink(&mut self) -> io::Result<()> {
        if self.is_empty() && self.length > GROW {
            self.file.set_len(GROW)?;
            self.length = GROW;
        }
        Ok(())
    }
}

/// Under another name first, and for good when it bears this one.
fn make(place: &Place) -> io::Result<()> {
    let unfinished = format!("{NAME}.new");
    place.files.remove(&unfinished)?;
    let file = place.files.open(&unfinished)?;
    file.set_len(GROW)?;
    file.write(0, &vec![0; GROW as usize])?;
    file.sync_data()?;
    file.close()?;
    drop(file);
    place.files.rename(&unfinished, NAME)
}

/// Batches are written once the database knows of their generation: where it does not, it is not the one that it was.
///
/// Only the place of a generation's first batch is looked at: elsewhere may lie what a client wrote to look like one.
fn known(bytes: &[u8], generation: u64, counts: bool) -> Result<(), String> {
    match Head::read(bytes) {
        Some(Head { generation: newest, .. }) if newest >= generation.saturating_add(u64::from(counts)) => {
            Err(format!(
                "it holds entries of generation {newest}, of which log.redb does not know: that file is older, or was missing"
            ))
        }
        _ => Ok(()),
    }
}

/// The entries of a generation, in order.
fn replay(bytes: &[u8], generation: u64) -> Result<Vec<Entry>, String> {
    let (mut entries, mut at, mut number) = (Vec::new(), 0_usize, 0);
    let read = |at: usize| Head::read(bytes.get(at..)?).filter(|head| head.generation == generation);
    while let Some(head) = read(at).filter(|head| head.number == number) {
        let end = at.saturating_add(HEAD).saturating_add(head.length as usize);
        let body = bytes.get(at + HEAD..end).filter(|body| crc32fast::hash(body) == head.sum);
        let Some(body) = body else { break };
        take(body, &mut entries)?;
        (at, number) = (end.next_multiple_of(SECTOR), number + 1);
    }
    let later = (at..bytes.len()).step_by(SECTOR).filter_map(read).any(|head| head.number > number);
    if later { Err(format!("batch {number} does not match its checksum")) } else { Ok(entries) }
}

/// Reads the entries of a batch.
fn take(mut body: &[u8], entries: &mut Vec<Entry>) -> Result<(), String> {
    while let Some((length, rest)) = body.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let (entry, rest) = rest.split_at_checked(length).ok_or("an entry is too long")?;
        entries.push(decode(entry)?);
        body = rest;
    }
    if body.is_empty() { Ok(()) } else { Err("a batch is too long".into()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::EntryPayload;
    use openraft::entry::RaftEntry;

    use super::super::{LogId, Vote};
    use super::*;
    use crate::disk::{Directory, NEWEST};
    use crate::mvcc::Command;
    use crate::raft::Request;
    use crate::{Txn, Value};

    fn entry(index: u64, size: usize) -> Entry {
        let command = Command::Txn { now_ms: 17, txn: Txn::put("/k".into(), Value::raw("v".repeat(size))) };
        let log_id = LogId::new(*Vote::new_committed(3, 1).leader_id(), index);
        Entry::new(log_id, EntryPayload::Normal(Request(Arc::new(command))))
    }

    fn mark(generation: u64) -> Option<Mark> {
        Some(Mark { generation, counts: true })
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.log_id.index).collect()
    }

    /// Three batches of generation 5 over what is left of generation 4, and the bytes of the file.
    fn written(dir: &tempfile::TempDir) -> (Place, Vec<u8>) {
        let files = Arc::new(Directory::new(dir.path()).unwrap());
        let place = Place {
            dir: dir.path().into(),
            files,
            node_id: 1,
            threads: true,
            newest: NEWEST,
            log_bytes: 80_000,
            stats: Arc::default(),
        };
        let (mut journal, found) = Journal::open(&place, None).unwrap();
        assert!(found.is_empty());
        journal.restart(4);
        for index in 1..=9 {
            assert!(journal.append([&entry(index, 700)].into_iter()).unwrap());
        }
        journal.restart(5);
        assert!(journal.append([&entry(10, 300), &entry(11, 900)].into_iter()).unwrap());
        assert!(journal.append([&entry(12, 0)].into_iter()).unwrap());
        assert!(journal.append([&entry(13, 1500)].into_iter()).unwrap());
        let bytes = std::fs::read(dir.path().join(NAME)).unwrap();
        (place, bytes)
    }

    #[test]
    fn what_was_written_is_found_and_older_generations_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (place, bytes) = written(&dir);
        let (_, found) = Journal::open(&place, mark(5)).unwrap();
        assert_eq!(indexes(&found), [10, 11, 12, 13]);
        assert_eq!(format!("{:?}", found[3]), format!("{:?}", entry(13, 1500)));
        assert!(Journal::open(&place, mark(6)).unwrap().1.is_empty());
        // A database of before, which a rotten page or a hand brought back, and one made anew.
        let older = [(4, true), (5, false)].map(|(generation, counts)| Some(Mark { generation, counts }));
        for older in older.into_iter().chain([None]) {
            let refused = Journal::open(&place, older).map(drop).unwrap_err().to_string();
            assert!(refused.contains("entries of generation 5"), "{refused}");
        }
        assert!(replay(&bytes, 4).is_err(), "its first batches are gone");
        let too_much = entry(14, 30_000);
        let mut journal = Journal::open(&place, mark(6)).unwrap().0;
        assert!(!journal.append([&too_much].into_iter()).unwrap());
        assert!(journal.is_empty());
        std::fs::remove_file(dir.path().join(NAME)).unwrap();
        assert!(matches!(Journal::open(&place, mark(6)), Err(Error::Corrupt { .. })));
    }

    /// A client writes what looks like a batch of a generation to come, wherever in the file it lies.
    #[test]
    fn a_value_that_looks_like_a_batch_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (place, _) = written(&dir);
        let forged = "ABLvCWALZpIRYDOxw98mJjPuQqUgDcsM";
        assert!(Head::read(forged.as_bytes()).is_some_and(|head| head.generation > 1 << 60));
        // Each piece moves it by a byte against the sectors.
        let value = format!("{}x", forged.repeat(20)).repeat(32);
        let command = Command::Txn { now_ms: 17, txn: Txn::put("/k".into(), Value::raw(value)) };
        let entry = Entry::new(entry(14, 0).log_id, EntryPayload::Normal(Request(Arc::new(command))));
        let (mut journal, _) = Journal::open(&place, mark(6)).unwrap();
        assert!(journal.append([&entry].into_iter()).unwrap());
        drop(journal);
        assert_eq!(indexes(&Journal::open(&place, mark(6)).unwrap().1), [14]);
        assert!(Journal::open(&place, mark(7)).unwrap().1.is_empty());
    }

    /// Any flipped bit of a batch that another follows is found; one of the last batch ends the journal before it.
    #[test]
    fn every_flipped_bit_is_found_or_ends_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let (_, bytes) = written(&dir);
        // Where the batches lie, and which entries are before each.
        let starts: Vec<usize> = (0..bytes.len())
            .step_by(SECTOR)
            .filter(|at| Head::read(&bytes[*at..]).is_some_and(|head| head.generation == 5))
            .collect();
        assert_eq!(starts.len(), 3);
        for (number, start) in starts.iter().enumerate() {
            let length = HEAD + Head::read(&bytes[*start..]).unwrap().length as usize;
            for bit in start * 8..(start + length) * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                match replay(&damaged, 5) {
                    Err(_) => assert!(number < 2, "bit {bit} of the last batch"),
                    Ok(found) => assert_eq!((number, indexes(&found)), (2, vec![10, 11, 12]), "bit {bit}"),
                }
            }
        }
    }
}
