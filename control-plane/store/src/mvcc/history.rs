//! The window: what is remembered, and what is let go.

use super::*;

/// The newest events keep the line that a reader encoded; older ones let go of it.
pub(crate) const HOT_EVENTS: usize = 1024;

impl Mvcc {
    /// Appends an event to the window.
    pub(super) fn remember(&mut self, event: Arc<Event>) {
        self.ring_bytes += weight(&event);
        self.ring.push_back(event);
        let cooled = self.ring.len().checked_sub(HOT_EVENTS + 1);
        if let Some(event) = cooled.and_then(|at| self.ring.get_mut(at))
            && event.encoded.get().is_some()
        {
            *event = Arc::new(event.stripped());
        }
    }

    /// Events up to this revision have lost their encoded line.
    pub fn hot_floor(&self) -> u64 {
        let cooled = self.ring.len().checked_sub(HOT_EVENTS + 1);
        cooled.and_then(|at| self.ring.get(at)).map_or(0, |event| event.revision)
    }

    /// Brings the window back within its bounds.
    pub(super) fn trim(&mut self, effects: &mut Effects) {
        while let Some(oldest) = self.ring.front().map(|event| event.revision) {
            let too_old = self.revision.saturating_sub(oldest) >= self.window.revisions;
            // The newest revision always stays, however large it is.
            if !too_old && (self.ring_bytes <= self.window.bytes || oldest == self.revision) {
                break;
            }
            self.compact(oldest, effects);
        }
    }

    /// Forgets what is only needed for reads and watches before `revision`.
    pub(super) fn compact(&mut self, revision: u64, effects: &mut Effects) {
        while let Some(event) = self.ring.pop_front_if(|event| event.revision <= revision) {
            self.ring_bytes = self.ring_bytes.saturating_sub(weight(&event));
            self.forget(&event, effects);
        }
        self.compacted = self.compacted.max(revision);
    }

    /// Drops the versions that `event` superseded, and its tombstone.
    fn forget(&mut self, event: &Event, effects: &mut Effects) {
        let Some(versions) = self.keys.get_mut(&event.kv.key) else { return };
        let gone = |revision: u64, kv: &Option<Arc<KeyValue>>| {
            revision < event.revision || (revision == event.revision && kv.is_none())
        };
        let key = &event.kv.key;
        let mut drop_row = |revision| effects.changes.push(Change::Forget { key: key.clone(), revision });
        versions.older.retain(|(revision, kv)| {
            let gone = gone(*revision, kv);
            if gone {
                drop_row(*revision);
            }
            !gone
        });
        if versions.older.is_empty() {
            versions.older.shrink_to_fit();
        }
        if versions.current.is_none() && versions.older.is_empty() && versions.revision <= event.revision {
            drop_row(versions.revision);
            self.keys.remove(key);
        }
    }

    /// Takes a row from disk. Rows arrive in order of revision.
    pub fn restore(&mut self, key: Bytes, revision: u64, kv: Option<Arc<KeyValue>>) {
        let prev = self.get(&key).cloned();
        let event = match (&kv, prev) {
            (Some(kv), prev) => Some(Event::put(kv.clone(), prev)),
            (None, Some(prev)) => Some(Event::delete(prev, revision)),
            (None, None) => None,
        };
        self.revision = self.revision.max(revision);
        match event.filter(|event| event.revision > self.compacted) {
            Some(event) => {
                self.set(key, revision, kv);
                self.remember(Arc::new(event));
            }
            // Before the window there is one version of a key, the one that was current then.
            None => {
                let had = self.keys.remove(&key).and_then(|versions| versions.current?.lease);
                self.attach(&key, had, None);
                if kv.is_some() {
                    self.set(key, revision, kv);
                }
            }
        }
    }

    /// Sets what is known beside the rows, before the first [`Self::restore`].
    pub fn resume(&mut self, revision: u64, compacted: u64) {
        self.revision = self.revision.max(revision);
        self.compacted = self.compacted.max(compacted);
    }

    /// Trims after a restore; the window may have become smaller.
    pub fn restored(&mut self, effects: &mut Effects) {
        self.trim(effects);
    }
}

fn weight(event: &Event) -> usize {
    match event.kind {
        crate::EventKind::Put => event.kv.weight(),
        // Shares the value with the version that it deleted.
        crate::EventKind::Delete => event.kv.key.len() + 320,
    }
}
