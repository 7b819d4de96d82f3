//! Clients and watchers of the simulated cluster, and what they write down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_history::Seen;
use coracle_history::calls::{Answer, Call, History, List, Op, Val};
use coracle_store::{Compare, Error, EventKind, KeyValue, OpResult, Range, Store, Txn, Value};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};

use crate::cluster::Cluster;
use crate::run::Plant;

/// Few, so that clients meet.
const KEYS: usize = 5;
/// What clients work on.
const PREFIX: &str = "/k";
/// A call without an answer for so long is given up.
const TIMEOUT: Duration = Duration::from_secs(4);

/// What clients share.
pub struct Shared {
    pub cluster: Arc<Cluster>,
    /// Orders what happens: only one thing does at a time.
    moments: AtomicU64,
    pub acknowledged: AtomicU64,
    pub stop: AtomicBool,
    pub plant: Option<Plant>,
}

impl Shared {
    pub fn new(cluster: Arc<Cluster>, plant: Option<Plant>) -> Arc<Self> {
        let (moments, acknowledged, stop) = Default::default();
        Arc::new(Self { cluster, moments, acknowledged, stop, plant })
    }

    fn now(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::Relaxed)
    }

    pub fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Keys with their values and revisions.
pub type Items = BTreeMap<String, (Val, u64)>;

/// The value and revision of a key.
pub fn read(kv: &KeyValue) -> Result<(Val, u64)> {
    let value = std::str::from_utf8(&kv.value.json)?.parse().context("a value that nobody wrote")?;
    Ok((value, kv.mod_revision))
}

/// The keys of a store as clients name them.
pub fn items(store: &Store) -> Result<(u64, Items)> {
    let range = store.range(&Range::prefix(PREFIX))?;
    let one = |kv: &Arc<KeyValue>| Ok((String::from_utf8(kv.key.to_vec())?, read(kv)?));
    Ok((range.revision, range.kvs.iter().map(one).collect::<Result<_>>()?))
}

/// One client.
pub struct Client {
    number: usize,
    shared: Arc<Shared>,
    rng: StdRng,
    known: BTreeMap<String, (Val, u64)>,
    serial: u64,
    history: History,
}

impl Client {
    pub fn new(number: usize, shared: Arc<Shared>, rng: StdRng) -> Self {
        let (known, history) = Default::default();
        Self { number, shared, rng, known, serial: 0, history }
    }

    /// Works until the run is over.
    pub async fn run(mut self) -> Result<History> {
        let mut server = self.number as u64 % 3 + 1;
        while !self.shared.over() {
            let well = match self.shared.cluster.store(server) {
                Some(store) if self.rng.random_bool(0.06) => self.list(&store).await?,
                Some(store) => self.call(&store).await?,
                None => false,
            };
            if !well || self.rng.random_bool(0.02) {
                let ids = self.shared.cluster.ids();
                server = ids[self.rng.random_range(0..ids.len())];
            }
            sleep(Duration::from_millis(self.rng.random_range(2..60))).await;
        }
        Ok(self.history)
    }

    fn choose(&mut self, key: &str) -> Op {
        self.serial += 1;
        let new = (self.number as u64 + 1) * 1_000_000_000 + self.serial;
        match (self.rng.random_range(0..100), self.known.get(key)) {
            (0..15, _) => Op::Create(new),
            (15..35, _) => Op::Put(new),
            (35..55, Some((old, _))) => Op::Cas(*old, new),
            (55..63, _) => Op::Delete,
            _ => Op::Get,
        }
    }

    async fn call(&mut self, store: &Store) -> Result<bool> {
        let key = format!("{PREFIX}{}", self.rng.random_range(0..KEYS));
        let op = self.choose(&key);
        let revision = self.known.get(&key).map(|(_, revision)| *revision);
        let began = self.shared.now();
        let lazy = self.shared.plant == Some(Plant::StaleReads);
        let answer = match timeout(TIMEOUT, ask(store, &key, op, revision, lazy)).await {
            Ok(answer) => answer?,
            Err(_) => Answer::Unknown,
        };
        let ended = self.shared.now();
        match (op, answer) {
            (_, Answer::Read(value, revision)) => drop(self.known.insert(key.clone(), (value, revision))),
            (_, Answer::Done(Some(revision))) if op != Op::Delete => {
                if let Some(value) = op.value() {
                    self.known.insert(key.clone(), (value, revision));
                }
            }
            (_, Answer::Done(_) | Answer::Missing) => drop(self.known.remove(&key)),
            _ => {}
        }
        if matches!(answer, Answer::Done(_)) {
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        let call = Call { client: self.number, began, ended, op, answer };
        self.history.calls.entry(key).or_default().push(call);
        Ok(!matches!(answer, Answer::Unknown | Answer::Refused))
    }

    async fn list(&mut self, store: &Store) -> Result<bool> {
        let began = self.shared.now();
        if !matches!(timeout(TIMEOUT, store.linearizable()).await, Ok(Ok(()))) {
            return Ok(false);
        }
        let (revision, items) = items(store)?;
        self.history.lists.push(List { began, ended: self.shared.now(), revision, items });
        Ok(true)
    }
}

async fn ask(store: &Store, key: &str, op: Op, revision: Option<u64>, lazy: bool) -> Result<Answer> {
    use coracle_store::Op as Do;
    let at = || bytes::Bytes::copy_from_slice(key.as_bytes());
    let put = |value: Val| Do::Put { key: at(), value: Value::raw(value.to_string()), ttl_ms: None };
    let (compares, success) = match op {
        Op::Get => {
            let read_now = match lazy {
                true => Ok(()),
                false => store.linearizable().await,
            };
            return Ok(match read_now.map(|()| store.get(key.as_bytes())) {
                Ok(Some(kv)) => {
                    let (value, revision) = read(&kv)?;
                    Answer::Read(value, revision)
                }
                Ok(None) => Answer::Missing,
                Err(_) => Answer::Refused,
            });
        }
        Op::Create(new) => (vec![Compare::Absent(at())], vec![put(new)]),
        Op::Put(new) => (vec![Compare::Exists(at())], vec![put(new)]),
        Op::Cas(_, new) => (vec![Compare::ModRevision(at(), revision.unwrap_or(0))], vec![put(new)]),
        Op::Delete => (vec![Compare::Exists(at())], vec![Do::Delete { key: at() }]),
    };
    let txn = Txn { compares, success, failure: vec![Do::Get { key: at() }] };
    let response = match store.txn(txn).await {
        Ok(response) => response,
        Err(Error::Unavailable(_) | Error::NotLeader { .. }) => return Ok(Answer::Refused),
        Err(Error::Timeout(_) | Error::Stopped(_)) => return Ok(Answer::Unknown),
        Err(error) => bail!("{op:?} of {key}: {error}"),
    };
    if response.succeeded {
        return Ok(Answer::Done((op != Op::Delete).then_some(response.revision)));
    }
    let there = matches!(response.results.first(), Some(OpResult::Get(Some(_))));
    Ok(match (op, there) {
        (Op::Create(_), true) => Answer::Exists,
        (Op::Cas(..), true) => Answer::Conflict,
        (Op::Create(_), false) | (_, true) => bail!("{op:?} of {key} was refused without a reason"),
        (_, false) => Answer::Missing,
    })
}

/// Watches at one member from the beginning on until the run is over, wherever its process was meanwhile.
pub async fn watch(shared: Arc<Shared>, member: u64, progress: Arc<AtomicU64>) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    let mut revision = 1;
    while !shared.over() {
        let ids = shared.cluster.ids();
        // Of a member that was put out: at whoever is there.
        let at = if ids.contains(&member) { member } else { ids[member as usize % ids.len()] };
        let Some(store) = shared.cluster.store(at) else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut watch = match store.watch(PREFIX.into(), revision) {
            Ok(watch) => watch,
            Err(Error::Stopped(_)) => {
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(error) => bail!("watch from {revision} at member {at}: {error}"),
        };
        drop(store);
        while !shared.over() {
            let event = match timeout(Duration::from_millis(500), watch.next()).await {
                Ok(Ok(event)) => event,
                Ok(Err(Error::Stopped(_))) => break,
                Ok(Err(error)) => bail!("a watch from {revision} at member {at} ended: {error}"),
                Err(_) => {
                    revision = revision.max(watch.progress_revision());
                    progress.store(revision, Ordering::Relaxed);
                    continue;
                }
            };
            let key = String::from_utf8(event.kv.key.to_vec())?;
            let gone = event.kind == EventKind::Delete;
            let (value, _) = read(&event.kv)?;
            let added = !gone && event.kv.version == 1;
            seen.push(Seen { revision: event.revision, key, value: (!gone).then_some(value), added });
            revision = event.revision;
            progress.store(revision, Ordering::Relaxed);
        }
    }
    Ok(seen)
}
