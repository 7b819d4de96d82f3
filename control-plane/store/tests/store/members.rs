//! Several members in one process: each with its own directory, its own certificates, and a cuttable way to each other.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_store::{Error, KeyValue, Options, PeerTls, Peering, Range, Store, Txn, Value, Versions, Way};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// An authority that signs for members.
pub struct Authority {
    cert: String,
    key: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "members");
        Self { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    pub fn issue(&self, member: u64) -> PeerTls {
        let issuer = Issuer::from_ca_cert_pem(&self.cert, KeyPair::from_pem(&self.key).unwrap()).unwrap();
        let one = || {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![PeerTls::name(member)]).unwrap();
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        PeerTls { ca_pem: self.cert.clone(), server: one(), client: one() }
    }
}

/// The highest id of a member.
const MOST: u64 = 7;

/// Which member cannot connect to which.
type Cuts = watch::Sender<BTreeSet<(u64, u64)>>;

pub struct Members {
    authority: Authority,
    cuts: Arc<Cuts>,
    /// Where a member listens now.
    ports: Arc<Mutex<HashMap<String, u16>>>,
    dirs: HashMap<u64, TempDir>,
    pub snapshot_every: u64,
    /// Revisions that each keeps.
    pub history: u64,
    /// What those speak that are opened from now on.
    pub versions: Versions,
    pub stores: HashMap<u64, Store>,
}

pub fn name(id: u64) -> String {
    format!("m{id}:1")
}

impl Members {
    pub fn new() -> Self {
        Self {
            authority: Authority::new(),
            cuts: Arc::new(watch::Sender::default()),
            ports: Arc::default(),
            dirs: HashMap::new(),
            snapshot_every: 10_000,
            history: 100_000,
            versions: Versions::default(),
            stores: HashMap::new(),
        }
    }

    /// A cluster of members 1 to `count`.
    pub async fn cluster(count: u64) -> Self {
        let mut members = Self::new();
        for id in 1..=count {
            members.open(id).await;
        }
        members
    }

    /// Certificates as a member gets them.
    pub fn issue(&self, id: u64) -> PeerTls {
        self.authority.issue(id)
    }

    /// Opens a member over its directory; a new one joins those that run.
    pub async fn open(&mut self, id: u64) {
        self.try_open(id).await.unwrap();
    }

    pub async fn try_open(&mut self, id: u64) -> Result<(), Error> {
        let dir = self.dirs.entry(id).or_insert_with(|| tempfile::tempdir().unwrap()).path().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.ports.lock().unwrap().insert(name(id), listener.local_addr().unwrap().port());
        let join = self.stores.keys().map(|id| (*id, name(*id))).collect();
        let peering = Peering {
            way: Way::Sockets { listener, tls: self.authority.issue(id), dial: Some(self.dial(id).await) },
            address: name(id),
            cluster: "test".into(),
            join,
            routes: Default::default(),
        };
        let (snapshot_every, history, versions) = (self.snapshot_every, self.history, self.versions);
        let options = Options { node_id: id, snapshot_every, history, versions, ..Options::new(dir) };
        let store = Store::open_member(options, peering).await?;
        self.stores.insert(id, store);
        Ok(())
    }

    /// The way from a member to the others: one listener for each, which ends what is cut.
    pub async fn dial(&self, from: u64) -> coracle_store::Dial {
        let mut through = HashMap::new();
        for to in 1..=MOST {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            through.insert(name(to), listener.local_addr().unwrap().to_string());
            tokio::spawn(forward(listener, (from, to), self.cuts.clone(), self.ports.clone()));
        }
        Arc::new(move |address| through[address].clone())
    }

    /// Nothing passes between a member and the others any more, in either direction.
    pub fn isolate(&self, id: u64) {
        self.cuts.send_modify(|cuts| cuts.extend((1..=MOST).flat_map(|other| [(id, other), (other, id)])));
    }

    /// Nothing passes from one member to another any more.
    pub fn cut(&self, from: u64, to: u64) {
        self.cuts.send_modify(|cuts| {
            cuts.insert((from, to));
        });
    }

    pub fn heal(&self) {
        self.cuts.send_modify(BTreeSet::clear);
    }

    pub async fn close(&mut self, id: u64) {
        self.stores.remove(&id).unwrap().shutdown().await.unwrap();
    }

    /// A member goes without a word, and its disk with it.
    pub async fn lose(&mut self, id: u64) {
        self.isolate(id);
        self.close(id).await;
        self.dirs.remove(&id);
    }

    pub async fn close_all(&mut self) {
        for id in self.stores.keys().copied().collect::<Vec<_>>() {
            self.close(id).await;
        }
    }

    pub fn store(&self, id: u64) -> &Store {
        &self.stores[&id]
    }

    /// The leader that this member knows.
    pub async fn leader(&self, of: u64) -> u64 {
        until("a leader", || self.store(of).leader().0).await
    }

    /// Waits until all that run hold the same.
    pub async fn agree(&self) {
        until("all members hold the same", || {
            let mut dumps = self.stores.values().map(dump);
            let first = dumps.next().unwrap();
            dumps.all(|other| other == first).then_some(())
        })
        .await;
    }
}

async fn forward(
    listener: TcpListener,
    way: (u64, u64),
    cuts: Arc<Cuts>,
    ports: Arc<Mutex<HashMap<String, u16>>>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (mut cut, ports) = (cuts.subscribe(), ports.clone());
        tokio::spawn(async move {
            let port = ports.lock().unwrap().get(&name(way.1)).copied();
            let is_cut = cut.wait_for(|cuts| cuts.contains(&way));
            let copy = async {
                let mut other = TcpStream::connect(("127.0.0.1", port?)).await.ok()?;
                tokio::io::copy_bidirectional(&mut stream, &mut other).await.ok()
            };
            tokio::select! {
                biased;
                _ = is_cut => {}
                _ = copy => {}
            }
        });
    }
}

/// Waits for something, with a bound.
pub async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    until_asked(what, async || found()).await
}

/// As [`until`], for what has to be asked for.
pub async fn until_asked<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = async {
        loop {
            match found().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"))
}

pub fn dump(store: &Store) -> Vec<KeyValue> {
    store.range(&Range::prefix("")).unwrap().kvs.iter().map(|kv| (**kv).clone()).collect()
}

pub async fn put(store: &Store, key: &str, value: &str) -> Result<u64, coracle_store::Error> {
    let txn = Txn::put(key.to_owned().into(), Value::raw(value.to_owned()));
    store.txn(txn).await.map(|response| response.revision)
}

/// The value of a metric.
pub fn metric(store: &Store, name: &str) -> u64 {
    let text = store.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is not in\n{text}"))
}
