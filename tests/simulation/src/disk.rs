//! A disk in memory that dies at a chosen operation and then has lost any part of what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_store::Files;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

const SECTOR: usize = 512;

/// The disk.
#[derive(Debug)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    files: BTreeMap<String, FileState>,
    /// Operations until the power fails; `None`: it does not.
    left: Option<u64>,
    dead: bool,
    /// Syncing answers success and does nothing.
    lies: bool,
    /// Counts starts, so that a handle from before a crash stays dead.
    generation: u64,
    syncs: u64,
    /// How long a sync takes.
    sync_takes: Duration,
    /// Why writes are refused.
    refuses: Option<io::ErrorKind>,
    /// Says how long writes take, up to so many microseconds.
    pace: Option<(StdRng, u64)>,
    /// What was done to a name when the power failed: it happened or did not.
    torn: Option<Naming>,
}

#[derive(Clone, Debug)]
enum Naming {
    Remove(String),
    Rename(String, String),
}

impl Inner {
    /// Does what is durable once it is answered; the power may fail at it.
    fn name(&mut self, naming: Naming) -> io::Result<()> {
        if self.dead {
            return Err(no_power());
        }
        if let Some(kind) = self.refuses {
            return Err(kind.into());
        }
        if let Some(left) = &mut self.left {
            self.dead = *left == 0;
            *left = left.saturating_sub(1);
        }
        if self.dead {
            self.torn = Some(naming);
            return Err(no_power());
        }
        self.apply(naming)
    }

    fn apply(&mut self, naming: Naming) -> io::Result<()> {
        match naming {
            Naming::Remove(name) => drop(self.files.remove(&name)),
            Naming::Rename(from, to) => {
                let file = self.files.remove(&from).ok_or(io::ErrorKind::NotFound)?;
                self.files.insert(to, file);
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct FileState {
    durable: Vec<u8>,
    /// What a reader sees: `durable` and everything since.
    view: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Disk {
    /// An empty one; one that `lies` says that it synced and did not.
    pub fn new(lies: bool) -> Self {
        let inner = Inner {
            files: BTreeMap::new(),
            left: None,
            dead: false,
            lies,
            generation: 0,
            syncs: 0,
            sync_takes: Duration::ZERO,
            refuses: None,
            pace: None,
            torn: None,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// From now on writes of a simulated store take up to so long.
    pub fn pace(&self, seed: u64, most: Duration) {
        let pace = (StdRng::seed_from_u64(seed), most.as_micros() as u64);
        self.inner.lock().unwrap().pace = Some(pace);
    }

    /// From now on each sync takes so long, of real time.
    pub fn slow_syncs(&self, takes: Duration) {
        self.inner.lock().unwrap().sync_takes = takes;
    }

    /// From now on writes fail: the disk is full, or read-only.
    pub fn refuse(&self, kind: Option<io::ErrorKind>) {
        self.inner.lock().unwrap().refuses = kind;
    }

    /// Lets the power fail at the operation after `left` more.
    pub fn fail_after(&self, left: u64) {
        self.inner.lock().unwrap().left = Some(left);
    }

    /// Cuts the power now.
    pub fn cut(&self) {
        self.inner.lock().unwrap().dead = true;
    }

    /// Whether the power failed.
    pub fn is_dead(&self) -> bool {
        self.inner.lock().unwrap().dead
    }

    /// How often it was synced.
    pub fn syncs(&self) -> u64 {
        self.inner.lock().unwrap().syncs
    }

    /// Flips a bit of what is on disk, `part` / `parts` of the way through the bytes that hold anything.
    pub fn damage(&self, name: &str, part: usize, parts: usize) {
        let mut inner = self.inner.lock().unwrap();
        let file = inner.files.get_mut(name).unwrap();
        let used: Vec<usize> = (0..file.durable.len()).filter(|at| file.durable[*at] != 0).collect();
        file.durable[used[used.len() / parts * part]] ^= 1 << (part % 8);
        file.view = file.durable.clone();
    }

    /// Power returns: of what was not synced, each sector made it to the disk or did not.
    pub fn restart(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let chance = [0.0, 0.05, 0.5, 0.95, 1.0][rng.random_range(0..5)];
        let mut inner = self.inner.lock().unwrap();
        inner.generation += 1;
        inner.dead = false;
        inner.left = None;
        if let Some(naming) = inner.torn.take().filter(|_| rng.random_bool(0.5)) {
            // What is not there any more cannot be renamed.
            let _ = inner.apply(naming);
        }
        for file in inner.files.values_mut() {
            for change in std::mem::take(&mut file.unsynced) {
                apply_some(&mut file.durable, &change, || rng.random_bool(chance));
            }
            file.view = file.durable.clone();
        }
    }
}

fn apply_some(bytes: &mut Vec<u8>, change: &Change, mut survives: impl FnMut() -> bool) {
    match change {
        Change::Length(length) if survives() => bytes.resize(*length as usize, 0),
        Change::Length(_) => {}
        Change::Write(offset, data) => {
            let mut at = *offset as usize;
            let mut data = data.as_slice();
            while !data.is_empty() {
                let (sector, rest) = data.split_at(data.len().min(SECTOR - at % SECTOR));
                if survives() {
                    bytes.resize(bytes.len().max(at + sector.len()), 0);
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
                at += sector.len();
                data = rest;
            }
        }
    }
}

impl Files for Disk {
    fn open(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let mut inner = self.inner.lock().unwrap();
        if inner.dead {
            return Err(no_power());
        }
        inner.files.entry(name.to_owned()).or_default();
        let generation = inner.generation;
        Ok(Box::new(Handle { disk: self.inner.clone(), name: name.to_owned(), generation }))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        let inner = self.inner.lock().unwrap();
        if inner.dead { Err(no_power()) } else { Ok(inner.files.contains_key(name)) }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.lock().unwrap().name(Naming::Remove(name.to_owned()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.lock().unwrap().name(Naming::Rename(from.to_owned(), to.to_owned()))
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        let inner = self.inner.lock().unwrap();
        inner.files.get(name).map(|file| file.view.len() as u64).ok_or(io::ErrorKind::NotFound.into())
    }

    fn latency(&self) -> Duration {
        let mut inner = self.inner.lock().unwrap();
        let Some((rng, most)) = &mut inner.pace else { return Duration::ZERO };
        Duration::from_micros(rng.random_range(*most / 10..=*most))
    }
}

#[derive(Debug)]
struct Handle {
    disk: Arc<Mutex<Inner>>,
    name: String,
    generation: u64,
}

fn no_power() -> io::Error {
    io::Error::other("the power failed")
}

impl Handle {
    fn with<T>(&self, counts: bool, f: impl FnOnce(&mut FileState, bool) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.disk.lock().unwrap();
        if inner.dead || inner.generation != self.generation {
            return Err(no_power());
        }
        if counts && let Some(kind) = inner.refuses {
            return Err(kind.into());
        }
        let mut dying = false;
        if counts && let Some(left) = &mut inner.left {
            dying = *left == 0;
            *left = left.saturating_sub(1);
        }
        inner.dead |= dying;
        let lies = inner.lies;
        let file = inner.files.get_mut(&self.name).unwrap();
        // What the power interrupts may have happened in part, but nobody is told that it did.
        let done = f(file, lies || dying);
        if dying { Err(no_power()) } else { done }
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(false, |file, _| Ok(file.view.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(false, |file, _| {
            let bytes = file.view.get(offset as usize..offset as usize + out.len());
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(true, |file, _| {
            file.view.resize(len as usize, 0);
            file.unsynced.push(Change::Length(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(true, |file, nothing| {
            if nothing {
                return Ok(());
            }
            for change in std::mem::take(&mut file.unsynced) {
                apply_some(&mut file.durable, &change, || true);
            }
            Ok(())
        })?;
        let takes = {
            let mut inner = self.disk.lock().unwrap();
            inner.syncs += 1;
            inner.sync_takes
        };
        std::thread::sleep(takes);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(true, |file, _| {
            let change = Change::Write(offset, data.to_vec());
            apply_some(&mut file.view, &change, || true);
            file.unsynced.push(change);
            Ok(())
        })
    }
}
