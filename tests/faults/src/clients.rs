//! Clients that work on a few keys (ConfigMaps) through all servers, and write down what they were told.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use coracle_history::calls::{Answer, Call, History, List, Op, Val};

/// How many keys there are: few, so that clients meet.
pub const KEYS: usize = 6;
/// A call without an answer for so long is given up: nobody knows what became of it.
const TIMEOUT: Duration = Duration::from_secs(4);
const NAMESPACE: &str = "default";
/// What the objects of a run are labelled with.
pub const LABEL: &str = "coracle-faults=1";

/// What all clients share.
pub struct Shared {
    /// When the run began.
    pub began: Instant,
    /// Set when it is over.
    pub stop: AtomicBool,
    /// Writes that were acknowledged so far.
    pub acknowledged: AtomicU64,
}

impl Shared {
    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether it is over.
    pub fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Connects with a kubeconfig.
///
/// # Errors
/// When it cannot be read.
pub async fn config_maps(kubeconfig: &Path) -> Result<Api<ConfigMap>> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(1));
    // What was answered that nobody knows must not be asked again behind the back of who writes it down.
    config.default_retry = false;
    Ok(Api::namespaced(Client::try_from(config)?, NAMESPACE))
}

/// The value and revision of an object.
pub fn read(map: &ConfigMap) -> Option<(Val, u64)> {
    let value = map.data.as_ref()?.get("value")?.parse().ok()?;
    Some((value, map.metadata.resource_version.as_ref()?.parse().ok()?))
}

fn object(key: &str, value: Val, revision: Option<u64>) -> Result<ConfigMap> {
    Ok(serde_json::from_value(serde_json::json!({
        "metadata": {"name": key, "labels": {"coracle-faults": "1"}, "resourceVersion": revision.map(|r| r.to_string())},
        "data": {"value": value.to_string()},
    }))?)
}

/// One client.
pub struct Worker {
    number: usize,
    /// The same objects, by way of each server.
    servers: Vec<Api<ConfigMap>>,
    shared: Arc<Shared>,
    rng: StdRng,
    /// Value and revision of a key as it was last seen.
    known: BTreeMap<String, (Val, u64)>,
    serial: u64,
    history: History,
}

impl Worker {
    /// A client that begins at the server of its number.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn new(
        number: usize,
        kubeconfigs: &[impl AsRef<Path>],
        shared: Arc<Shared>,
        seed: u64,
    ) -> Result<Self> {
        let mut servers = Vec::new();
        for path in kubeconfigs {
            servers.push(config_maps(path.as_ref()).await?);
        }
        let rng = StdRng::seed_from_u64(seed ^ (number as u64) << 32);
        let (known, history) = (BTreeMap::new(), History::default());
        Ok(Self { number, servers, shared, rng, known, serial: 0, history })
    }

    /// Works until the run is over; returns what it saw.
    ///
    /// # Errors
    /// An answer that no fault explains.
    pub async fn run(mut self) -> Result<History> {
        let mut server = self.number;
        while !self.shared.over() {
            let maps = self.servers.get(server % self.servers.len()).context("no server")?.clone();
            let well =
                if self.rng.random_bool(0.06) { self.list(&maps).await? } else { self.call(&maps).await? };
            if !well || self.rng.random_bool(0.02) {
                server += 1;
            }
            let pause = self.rng.random_range(5..40);
            tokio::time::sleep(Duration::from_millis(pause)).await;
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

    /// One call. Whether it had an answer.
    async fn call(&mut self, maps: &Api<ConfigMap>) -> Result<bool> {
        let key = format!("k{}", self.rng.random_range(0..KEYS));
        let op = self.choose(&key);
        let revision = self.known.get(&key).map(|(_, revision)| *revision);
        let began = self.shared.now();
        let asked = tokio::time::timeout(TIMEOUT, ask(maps, &key, op, revision)).await;
        let answer = match asked {
            Ok(answer) => answer?,
            Err(_) => Answer::Unknown,
        };
        let ended = self.shared.now();
        match (op, answer) {
            (_, Answer::Read(value, revision)) => drop(self.known.insert(key.clone(), (value, revision))),
            (_, Answer::Done(Some(revision))) => {
                if let Some(value) = op.value() {
                    self.known.insert(key.clone(), (value, revision));
                }
            }
            (_, Answer::Done(None) | Answer::Missing) => drop(self.known.remove(&key)),
            _ => {}
        }
        if matches!(answer, Answer::Done(_)) {
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        let call = Call { client: self.number, began, ended, op, answer };
        self.history.calls.entry(key).or_default().push(call);
        Ok(!matches!(answer, Answer::Unknown | Answer::Refused))
    }

    async fn list(&mut self, maps: &Api<ConfigMap>) -> Result<bool> {
        let began = self.shared.now();
        let params = ListParams::default().labels(LABEL);
        let Ok(Ok(list)) = tokio::time::timeout(TIMEOUT, maps.list(&params)).await else { return Ok(false) };
        let revision = list.metadata.resource_version.context("a list without a revision")?.parse()?;
        let items = list.items.iter().filter_map(|map| Some((map.metadata.name.clone()?, read(map)?)));
        let list = List { began, ended: self.shared.now(), revision, items: items.collect() };
        self.history.lists.push(list);
        Ok(true)
    }
}

async fn ask(maps: &Api<ConfigMap>, key: &str, op: Op, revision: Option<u64>) -> Result<Answer> {
    let post = PostParams::default();
    let written = match op {
        Op::Get => {
            return Ok(match maps.get_opt(key).await {
                Ok(Some(map)) => {
                    let (value, revision) = read(&map).context("an object without value or revision")?;
                    Answer::Read(value, revision)
                }
                Ok(None) => Answer::Missing,
                Err(error) => failed(&error),
            });
        }
        Op::Delete => {
            return Ok(match maps.delete(key, &DeleteParams::default()).await {
                Ok(_) => Answer::Done(None),
                Err(kube::Error::Api(status)) if status.code == 404 => Answer::Missing,
                Err(error) => failed(&error),
            });
        }
        Op::Create(new) => maps.create(&post, &object(key, new, None)?).await,
        Op::Put(new) => maps.replace(key, &post, &object(key, new, None)?).await,
        Op::Cas(_, new) => maps.replace(key, &post, &object(key, new, revision)?).await,
    };
    Ok(match written {
        Ok(map) => {
            let (value, revision) = read(&map).context("an object without value or revision")?;
            anyhow::ensure!(op.value() == Some(value), "{key}: {op:?} was answered with value {value}");
            Answer::Done(Some(revision))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Answer::Missing,
        Err(kube::Error::Api(status)) if status.code == 409 => match op {
            Op::Create(_) if status.reason == "AlreadyExists" => Answer::Exists,
            Op::Cas(..) => Answer::Conflict,
            _ => Answer::Refused,
        },
        Err(error) => failed(&error),
    })
}

/// What an error says: that nothing was done, or nothing at all.
fn failed(error: &kube::Error) -> Answer {
    match error {
        // The store says for sure that it wrote nothing.
        kube::Error::Api(status) if status.code == 503 && status.message.contains("store is unavailable") => {
            Answer::Refused
        }
        kube::Error::Api(status) if status.code < 500 => Answer::Refused,
        kube::Error::Api(_) => Answer::Unknown,
        other if never_sent(other) => Answer::Refused,
        _ => Answer::Unknown,
    }
}

fn never_sent(error: &kube::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            return error.is_connect();
        }
        next = error.source();
    }
    false
}
