//! wasi:keyvalue: buckets of a container, in memory (gone with the container, and counted as its memory) or as files of a
//! mounted volume (which stay, and which containers that mount it share).

mod files;
mod memory;

use std::sync::Arc;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use super::{Granted, config::mounted};
use crate::{
    guest::Guest,
    memory::Account,
    protocol::{Capabilities, KeyValue, Mount},
};

/// How it is granted.
pub(super) const GRANTED: Granted = (
    "wasi:keyvalue/",
    "a key-value store (wasi:keyvalue) needs the pod annotation coracle.dev/wasi-keyvalue: memory, or the mount path of \
     a volume",
    |capabilities| capabilities.keyvalue.is_some(),
);

/// The longest value, in bytes.
const MAX_VALUE: usize = 1 << 20;
/// The longest key, in bytes, as it would be written as a file's name.
const MAX_KEY: usize = 255;
/// The most keys of a batch, and of one page of a listing.
const PAGE: usize = 1000;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue",
        world: "imports",
        imports: { default: async | trappable, "wasi:keyvalue/store.[drop]bucket": trappable },
        require_store_data_send: true,
        with: { "wasi:keyvalue/store.bucket": crate::hosts::keyvalue::Bucket },
    });
}

use generated::wasi::keyvalue::{
    atomics, batch,
    store::{self, Error, KeyResponse},
};

/// What the instances of a container share; `None` where it was not granted.
pub(crate) type Context = Option<Arc<Store>>;

pub(crate) enum Store {
    Memory(memory::Memory),
    Files(files::Files),
}

/// A bucket that a guest holds.
pub struct Bucket {
    store: Arc<Store>,
    name: String,
}

/// Why an operation failed: the guest's error, or the end of the container.
pub(crate) enum Failure {
    Guest(Error),
    Container(wasmtime::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Guest(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Guest(Error::Other(error.to_string()))
    }
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// What the instances of a container share. Blocking.
pub(crate) fn prepare(
    capabilities: &Capabilities,
    mounts: &[Mount],
    memory: &Arc<Account>,
) -> Result<Context, String> {
    let store = match &capabilities.keyvalue {
        None => return Ok(None),
        Some(KeyValue::Memory) => Store::Memory(memory::Memory::new(memory.clone())),
        Some(KeyValue::Volume(path)) => {
            let (dir, read_only) = mounted(mounts, path, "coracle.dev/wasi-keyvalue")?;
            Store::Files(files::Files::new(dir, read_only))
        }
    };
    Ok(Some(Arc::new(store)))
}

/// Letters, digits, `-`, `_` and `.`, which a file may be called; the empty name is `default`.
fn bucket_name(identifier: &str) -> Result<String, Error> {
    if identifier.is_empty() {
        return Ok("default".to_owned());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = identifier.len() <= 63 && !identifier.starts_with('.') && identifier.chars().all(plain);
    if fits { Ok(identifier.to_owned()) } else { Err(Error::NoSuchStore) }
}

fn check(value: &[u8]) -> Outcome<()> {
    if value.len() > MAX_VALUE {
        let words = format!("a value of {} bytes; at most {MAX_VALUE} can be kept", value.len());
        return Err(Error::Other(words).into());
    }
    Ok(())
}

/// The sum as the text that it is kept as.
fn increment(value: Option<&[u8]>, delta: u64) -> Outcome<u64> {
    let words = || Error::Other("the value is not a number that can be incremented".into());
    let current = match value {
        None => 0,
        Some(value) => {
            std::str::from_utf8(value).ok().and_then(|v| v.parse::<u64>().ok()).ok_or_else(words)?
        }
    };
    Ok(current.checked_add(delta).ok_or_else(words)?)
}

impl Store {
    fn get(&self, bucket: &str, key: &str) -> Outcome<Option<Vec<u8>>> {
        match self {
            Store::Memory(memory) => Ok(memory.get(bucket, key)),
            Store::Files(files) => files.get(bucket, key),
        }
    }
    fn set(&self, bucket: &str, key: &str, value: Vec<u8>) -> Outcome<()> {
        check(&value)?;
        match self {
            Store::Memory(memory) => memory.set(bucket, key, value),
            Store::Files(files) => files.set(bucket, key, &value),
        }
    }
    fn delete(&self, bucket: &str, key: &str) -> Outcome<()> {
        match self {
            Store::Memory(memory) => {
                memory.delete(bucket, key);
                Ok(())
            }
            Store::Files(files) => files.delete(bucket, key),
        }
    }
    /// Sorted.
    fn keys(&self, bucket: &str) -> Outcome<Vec<String>> {
        match self {
            Store::Memory(memory) => Ok(memory.keys(bucket)),
            Store::Files(files) => files.keys(bucket),
        }
    }
    fn increment(&self, bucket: &str, key: &str, delta: u64) -> Outcome<u64> {
        match self {
            Store::Memory(memory) => memory.increment(bucket, key, delta),
            Store::Files(files) => files.increment(bucket, key, delta),
        }
    }
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

pub(crate) struct View<'a> {
    pub context: &'a Context,
    pub table: &'a mut ResourceTable,
}

pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    fn view(guest: &mut Guest) -> View<'_> {
        let (context, table) = guest.keyvalue();
        View { context, table }
    }
    store::add_to_linker::<Guest, HasView>(linker, view)?;
    atomics::add_to_linker::<Guest, HasView>(linker, view)?;
    batch::add_to_linker::<Guest, HasView>(linker, view)
}

type Answer<T> = wasmtime::Result<Result<T, Error>>;

impl View<'_> {
    /// Carries out an operation on a bucket: files where they block nobody.
    async fn on<T: Send + 'static>(
        &mut self,
        bucket: &Resource<Bucket>,
        operation: impl FnOnce(&Store, &str) -> Outcome<T> + Send + 'static,
    ) -> Answer<T> {
        let Bucket { store, name } = self.table.get(bucket)?;
        let (store, name) = (store.clone(), name.clone());
        let outcome = match &*store {
            Store::Memory(_) => operation(&store, &name),
            Store::Files(_) => {
                let done = tokio::task::spawn_blocking(move || operation(&store, &name)).await;
                done.unwrap_or_else(|error| Err(Error::Other(error.to_string()).into()))
            }
        };
        match outcome {
            Ok(value) => Ok(Ok(value)),
            Err(Failure::Guest(error)) => Ok(Err(error)),
            Err(Failure::Container(error)) => Err(error),
        }
    }
}

impl store::Host for View<'_> {
    async fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        // Containers are refused without it before they start.
        let store =
            self.context.clone().ok_or_else(|| wasmtime::Error::msg("wasi:keyvalue was not granted"))?;
        match bucket_name(&identifier) {
            Ok(name) => Ok(Ok(self.table.push(Bucket { store, name })?)),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl store::HostBucket for View<'_> {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        self.on(&bucket, move |store, name| store.get(name, &key)).await
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        self.on(&bucket, move |store, name| store.set(name, &key, value)).await
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        self.on(&bucket, move |store, name| store.delete(name, &key)).await
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        self.on(&bucket, move |store, name| Ok(store.get(name, &key)?.is_some())).await
    }

    /// The cursor is a position in the sorted keys.
    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<KeyResponse> {
        self.on(&bucket, move |store, name| {
            let from = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
            let all = store.keys(name)?;
            let keys: Vec<_> = all.iter().skip(from).take(PAGE).cloned().collect();
            let next = from.saturating_add(keys.len());
            Ok(KeyResponse { keys, cursor: (next < all.len()).then_some(next as u64) })
        })
        .await
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for View<'_> {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        self.on(&bucket, move |store, name| store.increment(name, &key, delta)).await
    }
}

fn bounded(keys: usize) -> Outcome<()> {
    match keys <= PAGE {
        true => Ok(()),
        false => Err(Error::Other(format!("a batch of {keys} keys; at most {PAGE} can be given")).into()),
    }
}

impl batch::Host for View<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        self.on(&bucket, move |store, name| {
            bounded(keys.len())?;
            let pair = |key: String| Ok(store.get(name, &key)?.map(|value| (key, value)));
            keys.into_iter().map(pair).collect()
        })
        .await
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, pairs: Vec<(String, Vec<u8>)>) -> Answer<()> {
        self.on(&bucket, move |store, name| {
            bounded(pairs.len())?;
            pairs.into_iter().try_for_each(|(key, value)| store.set(name, &key, value))
        })
        .await
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        self.on(&bucket, move |store, name| {
            bounded(keys.len())?;
            keys.iter().try_for_each(|key| store.delete(name, key))
        })
        .await
    }
}
