//! Further shared hosts. A process has only so many memory mappings and open files, and each pod takes some: beyond a threshold the
//! shared host gets no more pods, and another host process is started beside it, which ends with its last pod. The
//! listeners of Services stay with the first one.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{HANDLER, PATIENCE};
use crate::host::Host;
use crate::record::SandboxRecord;
use crate::service::Service;

/// What the host's command line ends with.
pub(super) const FLAG: &str = "--further";
/// The folder of all of them.
pub(super) const FOLDER: &str = "further";
/// The most of them; beyond, pods go into the first host.
const MAX_HOSTS: usize = 63;
/// How long an answer about mappings and files counts: counting many takes the host a while.
const FRESH: Duration = Duration::from_secs(1);
/// What a host may come to need for each of its pods, once their containers run.
const FILES_A_POD: u64 = 4;
/// As [`FILES_A_POD`]: an instance has about six, and as many are there before the first pod.
const MAPPINGS_A_POD: u64 = 12;
/// How long a new host may take until it answers.
const START: Duration = Duration::from_secs(30);

/// Which further hosts there are, and how many sandboxes each has.
#[derive(Default)]
pub struct Further {
    /// Beyond so many mappings a host gets no more sandboxes.
    threshold: std::sync::OnceLock<Option<u64>>,
    used: Mutex<Used>,
    /// One sandbox at a time is given its place.
    turn: tokio::sync::Mutex<HashMap<u32, (Instant, bool)>>,
}

#[derive(Default)]
struct Used {
    sandboxes: BTreeMap<u32, Sandboxes>,
    /// Numbers are not used again, so that a host that is being ended is in nobody's way.
    last: u32,
}

/// Those of one host.
struct Sandboxes {
    count: usize,
    /// When the host was asked for, if by this process.
    since: Option<Instant>,
}

/// What a further host is known by.
pub(super) fn key(number: u32) -> String {
    format!("{FOLDER}-{number}")
}

/// The folder of a further host.
pub(super) fn folder(state_dir: &Path, number: u32) -> PathBuf {
    state_dir.join(FOLDER).join(number.to_string())
}

impl Further {
    /// What the records say that there is.
    pub(super) fn restore(&self, threshold: Option<u64>, sandboxes: &[SandboxRecord]) {
        let _ = self.threshold.set(threshold);
        let mut used = self.used.lock();
        for sandbox in sandboxes.iter().filter(|s| s.host != 0) {
            let none = Sandboxes { count: 0, since: None };
            used.sandboxes.entry(sandbox.host).or_insert(none).count += 1;
            used.last = used.last.max(sandbox.host);
        }
    }

    fn numbers(&self) -> Vec<u32> {
        self.used.lock().sandboxes.keys().copied().collect()
    }

    /// One more sandbox in this host, unless it is being ended.
    fn enter(&self, number: u32) -> bool {
        match self.used.lock().sandboxes.get_mut(&number) {
            Some(sandboxes) => {
                sandboxes.count += 1;
                true
            }
            None => number == 0,
        }
    }

    /// A number for another host, with one sandbox; `None`: there are enough.
    fn another(&self) -> Option<u32> {
        let mut used = self.used.lock();
        if used.sandboxes.len() >= MAX_HOSTS {
            return None;
        }
        let next = used.last.checked_add(1)?;
        used.last = next;
        used.sandboxes.insert(next, Sandboxes { count: 1, since: Some(Instant::now()) });
        Some(next)
    }

    /// Whether a host may still be on its way.
    fn is_new(&self, number: u32) -> bool {
        let used = self.used.lock();
        let since = used.sandboxes.get(&number).and_then(|sandboxes| sandboxes.since);
        since.is_some_and(|since| since.elapsed() < START)
    }

    /// One sandbox less; true: it was the last one, and the host ends.
    fn left(&self, number: u32) -> bool {
        let mut used = self.used.lock();
        let Some(sandboxes) = used.sandboxes.get_mut(&number) else { return false };
        sandboxes.count = sandboxes.count.saturating_sub(1);
        let last = sandboxes.count == 0;
        if last {
            used.sandboxes.remove(&number);
        }
        last
    }
}

impl Service {
    /// The number of the shared host that a new sandbox of this handler goes into; counted from now on.
    pub async fn place(&self, handler: &str) -> u32 {
        if handler == HANDLER {
            return 0;
        }
        let further = &self.isolated.further;
        let mut known = further.turn.lock().await;
        let hosts = std::iter::once(0).chain(further.numbers());
        for number in hosts {
            let full = match known.get(&number) {
                Some((asked, full)) if asked.elapsed() < FRESH => *full,
                _ => {
                    let full = self.is_full(number).await;
                    known.insert(number, (Instant::now(), full));
                    full
                }
            };
            if !full && further.enter(number) {
                return number;
            }
        }
        match further.another() {
            Some(number) => {
                tracing::info!(
                    number,
                    "the wasm host processes have many memory mappings or open files: starting another one"
                );
                known.retain(|number, _| *number == 0 || further.used.lock().sandboxes.contains_key(number));
                number
            }
            None => 0,
        }
    }

    /// Whether a host has so many mappings or open files that it gets no more sandboxes. The first one gets them where it does not answer:
    /// then the call fails with the reason.
    async fn is_full(&self, number: u32) -> bool {
        let host: Option<Host> = match number {
            0 => Some(self.host.clone()),
            number => self.isolated.get(&key(number)),
        };
        if number != 0 && !host.as_ref().is_some_and(Host::is_attached) {
            // One that is being started has room: nobody waits for it here, or starts yet another one.
            return !self.isolated.further.is_new(number);
        }
        let asked = async {
            let client = host?.client().await.ok()?;
            client.inspect().await.ok()
        };
        let Ok(Some(info)) = tokio::time::timeout(PATIENCE, asked).await else { return number != 0 };
        let threshold = self.isolated.further.threshold.get().copied().flatten();
        // Of many sandboxes that are made at once no container runs yet: they count as if they did.
        let pods = self.state.on_host(number);
        info.mappings > threshold.unwrap_or(info.max_mappings / 4 * 3)
            || pods >= info.max_mappings / MAPPINGS_A_POD
            || files(info.pid).is_some_and(|(open, most)| open > most / 4 * 3 || pods >= most / FILES_A_POD)
    }

    /// A sandbox has left its host: one of its own, or a further one that had no other, ends.
    pub async fn leave(&self, record: &SandboxRecord) {
        let last = record.host != 0 && self.isolated.further.left(record.host);
        if last || super::is_isolated(record) {
            self.end_own(record).await;
        }
    }
}

/// How many files a process has open, and may have; `None`: it cannot be seen.
fn files(pid: u32) -> Option<(u64, u64)> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let open = std::fs::read_dir(process.join("fd")).ok()?.count() as u64;
    let limits = std::fs::read_to_string(process.join("limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let most = line.split_whitespace().next()?;
    Some((open, most.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_counted() {
        let (before, most) = files(std::process::id()).expect("our own");
        let more = [(); 20].map(|()| std::fs::File::open("/dev/null").expect("a file"));
        let (after, _) = files(std::process::id()).expect("our own");
        assert!(after >= before + 15, "{before} {after}: others close theirs meanwhile, but not so many");
        assert!(most >= after, "{most}");
        drop(more);
        assert_eq!(files(u32::MAX), None);
    }

    #[test]
    fn a_host_that_was_asked_for_a_moment_ago_is_on_its_way() {
        let further = Further::default();
        let restored = SandboxRecord {
            host: 3,
            id: "a".into(),
            config: Default::default(),
            runtime_handler: String::new(),
            ready: true,
            created_at_ns: 0,
            ip: std::net::Ipv4Addr::LOCALHOST,
            linux: false,
            host_network: false,
        };
        further.restore(None, &[restored]);
        assert_eq!(further.another(), Some(4));
        assert_eq!([3, 4, 5].map(|number| further.is_new(number)), [false, true, false]);
        assert!(further.left(4) && !further.is_new(4));
    }

    #[test]
    fn a_host_ends_with_its_last_sandbox_and_its_number_is_not_used_again() {
        let further = Further::default();
        assert_eq!((further.another(), further.enter(1), further.enter(2)), (Some(1), true, false));
        assert!(further.enter(0), "the first one is always there");
        assert_eq!((further.left(1), further.left(1), further.left(1)), (false, true, false));
        assert_eq!((further.enter(1), further.another(), further.numbers()), (false, Some(2), vec![2]));
        let many = (0..100).filter(|_| further.another().is_some()).count();
        assert_eq!(many, MAX_HOSTS - 1);
    }
}
