//! Names of what was ever made in some folders, however short it lasted.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

/// The kernel keeps so many events by itself (16,384, unless it is told otherwise); what comes beyond is missed.
pub struct Seen {
    events: OwnedFd,
    names: Mutex<BTreeSet<String>>,
}

impl Seen {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the kernel gives no more watchers.
    pub fn new() -> Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).context("watch folders")?;
        Ok(Self { events, names: Mutex::default() })
    }

    /// Watches a folder from now on, and takes up what is in it. Again is fine; one that is not there is passed over.
    ///
    /// # Errors
    /// When the folder cannot be watched.
    pub fn watch(&self, folder: &Path) -> Result<()> {
        match inotify::add_watch(&self.events, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            other => other.with_context(|| format!("watch {}", folder.display()))?,
        };
        let there = std::fs::read_dir(folder)?.flatten().filter_map(|e| e.file_name().into_string().ok());
        self.add(there);
        Ok(())
    }

    fn add(&self, names: impl Iterator<Item = String>) {
        let mut all = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.extend(names.map(|name| stem(&name).to_owned()));
    }

    /// The names until now, without their extensions.
    pub fn names(&self) -> BTreeSet<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.events, &mut buffer);
        let mut new = Vec::new();
        while let Ok(event) = reader.next() {
            new.extend(event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned));
        }
        self.add(new.into_iter());
        self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// A name up to its first dot.
pub fn stem(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_went_was_seen() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("before"), "").unwrap();
        let seen = Seen::new().unwrap();
        seen.watch(&folder.path().join("missing")).unwrap();
        seen.watch(folder.path()).unwrap();
        std::fs::create_dir(folder.path().join("short")).unwrap();
        std::fs::remove_dir(folder.path().join("short")).unwrap();
        std::fs::write(folder.path().join("one.tmp"), "").unwrap();
        std::fs::rename(folder.path().join("one.tmp"), folder.path().join("two.json")).unwrap();
        let all: Vec<_> = seen.names().into_iter().collect();
        assert_eq!(all, ["before", "one", "short", "two"]);
    }
}
