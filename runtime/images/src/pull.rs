//! Pulling an image: ask the sources in order, check everything, then record it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use oci_spec::image::Descriptor;

use crate::manifest::{self, Content, Document, Wanted};
use crate::progress::{Board, Pulling};
use crate::registry::{Client, Pool, Refusal, Source, sources};
use crate::signature;
use crate::store::{Incoming, Platform};
use crate::{Attempt, Credentials, Error, ImageRecord, Progress, Reference, RegistryConfig, Store};

/// How many layers of an image are fetched at once.
const AT_ONCE: usize = 3;
/// How often a fetch goes on where it broke off, before it fails.
const RESUMES: u32 = 5;
/// Bytes after which it has all of them before it again.
const HEADWAY: u64 = 1 << 20;
/// How long the first of them waits; each further one twice as long.
const PAUSE: Duration = Duration::from_millis(100);

/// Pulls images into a store; pulls of one name go one after another.
#[derive(Clone)]
pub struct Puller {
    store: Arc<Store>,
    config: Arc<RegistryConfig>,
    pool: Arc<Pool>,
    board: Arc<Board>,
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Puller {
    /// A puller into `store`.
    pub fn new(store: Arc<Store>, config: RegistryConfig) -> Self {
        Self {
            store,
            config: Arc::new(config),
            pool: Arc::default(),
            board: Arc::default(),
            turns: Arc::default(),
        }
    }

    /// Where the images go.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// How far the pull of a name is, while one is under way and its size is known.
    pub fn progress(&self, name: &str) -> Option<Progress> {
        let reference: Reference = name.parse().ok()?;
        self.board.get(&reference.to_string())
    }

    /// Pulls `name`. `given` are credentials for the registry that the name says. A name with a digest that is already
    /// here is answered without asking anyone.
    pub async fn pull(&self, name: &str, wanted: Wanted, given: &Credentials) -> Result<ImageRecord, Error> {
        let reference: Reference = name.parse()?;
        let whole = reference.to_string();
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(whole.clone()).or_default().clone()
        };
        let _turn = turn.lock().await;
        if reference.digest.is_some()
            && let Some(record) = self.store.find_as(&whole, wanted)?
        {
            return Ok(record);
        }
        self.try_sources(name, &reference, wanted, given).await
    }

    async fn try_sources(
        &self,
        name: &str,
        reference: &Reference,
        wanted: Wanted,
        given: &Credentials,
    ) -> Result<ImageRecord, Error> {
        let mut refusals = Vec::new();
        if reference.is_default_registry()
            && self.config.mirrors.is_empty()
            && self.config.default_registry.is_none()
        {
            let reason = "no registry is configured for names without one".to_owned();
            refusals.push((reference.registry.clone(), Refusal::Unreachable(reason)));
        }
        let (sources, wrong) = sources(reference, &self.config, given);
        for source in sources {
            match self.try_source(name, reference, wanted, &source).await {
                Ok(record) => return Ok(record),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Next(refusal)) => {
                    if matches!(refusal, Refusal::Unauthorized(_)) {
                        self.pool.forget(&source.registry);
                    }
                    refusals.push((source.registry, refusal));
                }
            }
        }
        refusals.extend(wrong.map(|reason| (reference.registry.clone(), Refusal::Unreachable(reason))));
        Err(verdict(name, refusals))
    }

    async fn try_source(
        &self,
        name: &str,
        reference: &Reference,
        wanted: Wanted,
        source: &Source,
    ) -> Result<ImageRecord, Failure> {
        let client = Client::new(source, &self.pool, Duration::from_secs(self.config.limits.idle_seconds))?;
        let (bytes, top) = client.manifest(None).await?;
        self.check_size(name, "the manifest", bytes.len() as u64, self.config.limits.manifest_bytes)?;
        let (bytes, id, image) = match manifest::parse(name, &bytes)? {
            Document::Image(image) => (bytes, top.clone(), image),
            Document::Index(index) => {
                let entry = manifest::choose(name, &index, wanted)?.digest().to_string();
                let (bytes, id) = client.manifest(Some(&entry)).await?;
                self.check_size(name, "the manifest", bytes.len() as u64, self.config.limits.manifest_bytes)?;
                match manifest::parse(name, &bytes)? {
                    Document::Image(image) => (bytes, id, image),
                    Document::Index(_) => {
                        return Err(Failure::Final(Error::Unsupported {
                            image: name.to_owned(),
                            reason: "has an index inside an index".into(),
                        }));
                    }
                }
            }
        };
        self.verify(name, reference, &client, [&top, &id]).await?;
        let mut commands = BTreeMap::new();
        let (platform, layers): (_, Vec<Descriptor>) = match manifest::content(name, &image)? {
            Content::Wasm(layer, _) if wanted == Wanted::Linux => {
                return Err(Failure::Final(Error::Unsupported {
                    image: name.to_owned(),
                    reason: format!("is a wasm component ({}), not a Linux image", layer.media_type()),
                }));
            }
            Content::Wasm(layer, named) => {
                commands =
                    named.iter().map(|(name, layer)| (name.clone(), layer.digest().to_string())).collect();
                let all = [layer].into_iter().chain(named.into_values());
                (Platform::Wasm, all.cloned().collect())
            }
            Content::Linux(layers) => (Platform::Linux, layers.to_vec()),
        };
        let config = image.config().clone();
        let blobs = [id.clone(), config.digest().to_string()].into_iter();
        let blobs: Vec<String> = blobs.chain(layers.iter().map(|l| l.digest().to_string())).collect();
        let _held: Vec<_> = blobs.iter().map(|d| self.store.hold(d)).collect();

        let size = config.size() + layers.iter().map(Descriptor::size).sum::<u64>();
        let pulling = self.board.begin(&reference.to_string(), size);
        let small = self.config.limits.manifest_bytes;
        self.fetch(name, &client, (&config, "the configuration"), small, &pulling).await?;
        let (what, limit) = match platform {
            Platform::Wasm => ("the component", self.config.limits.layer_bytes),
            Platform::Linux => ("a layer", self.config.limits.linux_layer_bytes),
        };
        let mut fetches: Vec<BoxFuture<'_, _>> = Vec::new();
        for layer in &layers {
            fetches.push(Box::pin(self.fetch(name, &client, (layer, what), limit, &pulling)));
        }
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(AT_ONCE);
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        drop(fetches);
        if !self.store.has(&id) {
            self.store.put_blob(name, &id, &bytes)?;
        }

        let repository = reference.repository_name();
        let tagged = Reference { digest: None, ..reference.clone() };
        let component = layers.first().filter(|_| platform == Platform::Wasm);
        Ok(self.store.put(ImageRecord {
            tags: reference.tag.iter().map(|_| tagged.to_string()).collect(),
            digests: [&id, &top].map(|d| format!("{repository}@{d}")).into(),
            config: config.digest().to_string(),
            layer: component.map(|l| l.digest().to_string()).unwrap_or_default(),
            layers: match platform {
                Platform::Wasm => Vec::new(),
                Platform::Linux => layers.iter().map(|l| l.digest().to_string()).collect(),
            },
            commands,
            platform,
            size: bytes.len() as u64 + size,
            pulled_at_ns: now_ns(),
            source: source.registry.clone(),
            id,
        })?)
    }

    async fn fetch(
        &self,
        name: &str,
        client: &Client,
        (blob, what): (&Descriptor, &'static str),
        limit: u64,
        pulling: &Pulling<'_>,
    ) -> Result<(), Failure> {
        let digest = blob.digest().to_string();
        self.check_size(name, what, blob.size(), limit)?;
        if self.store.has(&digest) {
            pulling.add(blob.size());
            return Ok(());
        }
        let mut incoming = self.store.incoming(name, &digest)?;
        let (mut received, mut broken, mut had) = (0, 0, 0);
        let mut stream = client.blob(&digest).await?;
        loop {
            let came = self.receive(name, (blob, what), &mut stream, &mut incoming, (&mut received, pulling));
            let Err(error) = came.await? else { break };
            if received >= had + HEADWAY {
                broken = 0;
            }
            had = had.max(received);
            if broken == RESUMES {
                return Err(Failure::Next(Refusal::Unreachable(format!("reading {what} {digest}: {error}"))));
            }
            tokio::time::sleep(PAUSE * 2_u32.pow(broken)).await;
            broken += 1;
            tracing::info!(image = name, digest, received, error, "a pull goes on where it broke off");
            let (rest, all) = client.blob_from(&digest, received).await?;
            stream = rest;
            if all {
                pulling.take_back(received);
                incoming = self.store.incoming(name, &digest)?;
                received = 0;
            }
        }
        incoming.commit()?;
        Ok(())
    }

    /// Writes what comes, to the end of the blob; the inner error: the stream broke off.
    async fn receive(
        &self,
        name: &str,
        (blob, what): (&Descriptor, &'static str),
        stream: &mut BoxStream<'static, Result<Bytes, std::io::Error>>,
        incoming: &mut Incoming<'_>,
        (received, pulling): (&mut u64, &Pulling<'_>),
    ) -> Result<Result<(), String>, Failure> {
        while let Some(piece) = stream.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Ok(Err(error.to_string())),
            };
            *received += piece.len() as u64;
            // More than the manifest said is wrong whatever the digest turns out to be: stop reading.
            if *received > blob.size() {
                return Err(Failure::Final(Error::Corrupt {
                    image: name.to_owned(),
                    reason: format!(
                        "{what} {} is longer than the {} bytes of its manifest",
                        blob.digest(),
                        blob.size()
                    ),
                }));
            }
            incoming.write(&piece)?;
            pulling.add(piece.len() as u64);
        }
        match *received < blob.size() {
            true => Ok(Err(format!("it ended after {received} of {} bytes", blob.size()))),
            false => Ok(Ok(())),
        }
    }

    /// Whether the image is signed as the node's policy wants, under one of its digests.
    async fn verify(
        &self,
        name: &str,
        reference: &Reference,
        client: &Client,
        digests: [&String; 2],
    ) -> Result<(), Failure> {
        let Some(policy) = signature::policy(&self.config.signatures, &reference.repository_name()) else {
            return Ok(());
        };
        let mut reason = "is not signed, and the node's policy wants it to be".to_owned();
        for digest in digests {
            let bytes = match client.tagged(&signature::tag(digest)).await {
                Ok(bytes) => bytes,
                Err(Refusal::NotFound(_)) => continue,
                Err(other) => return Err(Failure::Next(other)),
            };
            for (layer, signature) in signature::claims(&bytes) {
                let payload = self.small(client, &layer).await?;
                if signature::verifies(&policy.keys, &payload, &signature)
                    && signature::is_of(&payload, digest)
                {
                    return Ok(());
                }
            }
            reason =
                format!("has no signature by a key that the node's policy names ({})", policy.keys.len());
        }
        Err(Failure::Final(Error::Unsigned { image: name.to_owned(), reason }))
    }

    /// A small blob, in memory; cut where it is larger than any should be.
    async fn small(&self, client: &Client, digest: &str) -> Result<Vec<u8>, Failure> {
        let mut stream = client.blob(digest).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            let words =
                |e: std::io::Error| Refusal::Unreachable(format!("reading a signature {digest}: {e}"));
            bytes.extend_from_slice(&piece.map_err(words)?);
            if bytes.len() > signature::MAX_PAYLOAD {
                break;
            }
        }
        Ok(bytes)
    }

    fn check_size(&self, image: &str, what: &'static str, size: u64, limit: u64) -> Result<(), Error> {
        if size > limit {
            return Err(Error::TooLarge { image: image.to_owned(), what, size, limit });
        }
        Ok(())
    }
}

enum Failure {
    /// Another source may do better.
    Next(Refusal),
    Final(Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Next(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// One answer out of many refusals. "Not allowed" can be acted on, so it goes first; "not found" by one registry that
/// answered is more than silence from another. Each registry's own words are kept.
fn verdict(name: &str, refusals: Vec<(String, Refusal)>) -> Error {
    let image = name.to_owned();
    let unauthorized = refusals.iter().any(|(_, r)| matches!(r, Refusal::Unauthorized(_)));
    let not_found = refusals.iter().any(|(_, r)| matches!(r, Refusal::NotFound(_)));
    let attempts: Vec<Attempt> = refusals
        .into_iter()
        .map(|(registry, refusal)| Attempt {
            registry,
            reason: match refusal {
                Refusal::NotFound(r) | Refusal::Unauthorized(r) | Refusal::Unreachable(r) => r,
            },
        })
        .collect();
    match (unauthorized, not_found) {
        (true, _) => Error::Unauthorized { image, attempts },
        (false, true) => Error::NotFound { image, attempts },
        (false, false) => Error::Unreachable { image, attempts },
    }
}

fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
