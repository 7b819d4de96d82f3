//! Ranges and the events after a revision, in slices short enough to hold a lock for.

use super::*;

/// A range read that goes on slice by slice.
#[derive(Debug)]
pub(crate) struct Page {
    /// Where the next slice starts.
    next: Bound<Bytes>,
    end: Option<Bytes>,
    limit: usize,
    /// The revision that is read, the same for all slices.
    pub revision: u64,
    pub kvs: Vec<Arc<KeyValue>>,
    pub count: u64,
}

impl Page {
    pub fn new(range: &crate::Range, revision: u64) -> Self {
        Self {
            next: Bound::Included(range.start.clone()),
            end: range.end.clone(),
            limit: if range.limit == 0 { usize::MAX } else { range.limit },
            revision,
            kvs: Vec::new(),
            count: 0,
        }
    }
}

impl Mvcc {
    /// The revision that a read asks for, refused where it is outside the window.
    pub fn check_revision(&self, asked: Option<u64>) -> Result<u64, Error> {
        match asked {
            None => Ok(self.revision),
            Some(requested) if requested > self.revision => {
                Err(Error::FutureRevision { requested, current: self.revision })
            }
            Some(requested) if requested < self.compacted => {
                Err(Error::Compacted { compact_revision: self.compacted })
            }
            Some(requested) => Ok(requested),
        }
    }

    /// Reads up to `most` keys of the page; `true` when it is complete.
    pub fn read_slice(&self, page: &mut Page, most: usize) -> bool {
        let start = match &page.next {
            Bound::Included(key) | Bound::Excluded(key) => key.clone(),
            Bound::Unbounded => Bytes::new(),
        };
        if page.end.as_ref().is_some_and(|end| *end <= start) {
            return true;
        }
        let end = page.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let keys = self.keys.range::<[u8], _>((page.next.as_ref().map(|key| key.as_ref()), end));
        let mut last = None;
        for (visited, (key, versions)) in keys.enumerate() {
            if visited == most {
                break;
            }
            last = Some((visited + 1, key));
            if let Some(kv) = versions.at(page.revision) {
                page.count += 1;
                if page.kvs.len() < page.limit {
                    page.kvs.push(kv.clone());
                }
            }
        }
        match last {
            Some((visited, key)) if visited == most => {
                page.next = Bound::Excluded(key.clone());
                false
            }
            _ => true,
        }
    }

    /// Events under `prefix` after revision `after` and up to `until`, whole revisions only: at least `most`
    /// of them where there are as many, and the revision up to which they are complete.
    pub fn events_after(
        &self,
        prefix: &[u8],
        after: u64,
        until: u64,
        most: usize,
        out: &mut VecDeque<Arc<Event>>,
    ) -> Result<u64, Error> {
        /// Looking at an event that does not match costs next to nothing, but not nothing.
        const MOST_VISITED: usize = 16_384;
        if after < self.compacted {
            return Err(Error::Compacted { compact_revision: self.compacted });
        }
        let start = self.ring.partition_point(|event| event.revision <= after);
        let mut complete = after;
        for (visited, event) in self.ring.range(start..).enumerate() {
            if event.revision > until {
                break;
            }
            if event.revision != complete && (out.len() >= most || visited >= MOST_VISITED) {
                return Ok(complete);
            }
            complete = event.revision;
            if event.kv.key.starts_with(prefix) {
                out.push_back(event.clone());
            }
        }
        Ok(until.max(after))
    }
}
