//! The wasmtime engines of a process, their clock of epochs, and the name of their settings.

use std::{
    hash::{Hash, Hasher},
    sync::OnceLock,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, component::Linker,
};

use crate::{guest::Guest, linker};

/// How often a running guest is asked to let others run.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// The most instances that a process holds: about six mappings each, of the 65,530 that Linux allows by default.
const MAX_INSTANCES: u32 = 10_000;

/// How many bytes that an instance has written to are made anew and kept for the next one in its place. Taking them back
/// from the process, and a fault for each page that comes again, costs most of what a fresh instance does.
const KEPT_MEMORY: usize = 64 << 10;
/// The same of its tables.
const KEPT_TABLE: usize = 32 << 10;

/// What a component needs of the canonical ABI. Each has an engine of its own: one that keeps account of the tasks of async
/// functions does so for every call, and that is a sixth of a small request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Abi {
    /// Synchronous functions alone, as all of WASI 0.2 has them.
    Sync,
    /// Async functions, streams and futures too: WASI 0.3.
    Async,
}

/// An engine, and what its guests can import.
pub(crate) struct Shared {
    pub engine: Engine,
    pub linker: Linker<Guest>,
    /// False when the address space is too short for a pool.
    pub pooling: bool,
}

/// Engines of one purpose, made when they are first asked for.
struct Engines {
    made: [OnceLock<Shared>; 2],
    /// Two pools of one engine would not fit beside each other.
    making: Mutex<()>,
    make: fn(Abi) -> wasmtime::Result<Shared>,
}

impl Engines {
    const fn new(make: fn(Abi) -> wasmtime::Result<Shared>) -> Engines {
        Engines { made: [const { OnceLock::new() }; 2], making: Mutex::new(()), make }
    }

    fn get(&'static self, abi: Abi) -> wasmtime::Result<&'static Shared> {
        let [sync, asynchronous] = &self.made;
        let cell = match abi {
            Abi::Sync => sync,
            Abi::Async => asynchronous,
        };
        if let Some(shared) = cell.get() {
            return Ok(shared);
        }
        let _one_at_a_time = self.making.lock();
        if let Some(shared) = cell.get() {
            return Ok(shared);
        }
        let made = (self.make)(abi)?;
        Ok(cell.get_or_init(|| made))
    }
}

static RUNNING: Engines = Engines::new(pooled);
static COMPILING: Engines = Engines::new(unpooled);

/// The engine of this process that runs such components.
pub(crate) fn running(abi: Abi) -> wasmtime::Result<&'static Shared> {
    RUNNING.get(abi)
}

/// The one that compiles them, and has no room for instances.
pub(crate) fn compiling(abi: Abi) -> wasmtime::Result<&'static Shared> {
    COMPILING.get(abi)
}

/// A pooled engine, or, where the address space is short (a `ulimit -v`), one that allocates as it goes.
fn pooled(abi: Abi) -> wasmtime::Result<Shared> {
    let mut config = settings(abi);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    match Engine::new(&config) {
        Ok(engine) => Ok(Shared { linker: linker::make(&engine, abi)?, engine, pooling: true }),
        Err(error) => {
            tracing::warn!(%error, "no address space for an instance pool; allocating on demand");
            unpooled(abi)
        }
    }
}

fn unpooled(abi: Abi) -> wasmtime::Result<Shared> {
    let engine = Engine::new(&settings(abi))?;
    Ok(Shared { linker: linker::make(&engine, abi)?, engine, pooling: false })
}

fn settings(abi: Abi) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true).concurrency_support(abi == Abi::Async);
    config
}

fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(MAX_INSTANCES)
        .total_core_instances(4 * MAX_INSTANCES)
        .total_memories(MAX_INSTANCES + 500)
        .total_tables(2 * MAX_INSTANCES)
        .total_stacks(MAX_INSTANCES)
        .total_gc_heaps(100)
        .max_memories_per_component(16)
        .max_tables_per_component(64)
        .max_unused_warm_slots(256)
        .linear_memory_keep_resident(KEPT_MEMORY)
        .table_keep_resident(KEPT_TABLE)
        // Linux 6.7; an older one resets the first pages, and gives the rest back.
        .pagemap_scan(Enabled::Auto);
    pool
}

/// Starts the thread that counts epochs, once a process.
pub(crate) fn start_ticking() {
    static TICKING: OnceLock<()> = OnceLock::new();
    TICKING.get_or_init(|| {
        let ticker = std::thread::Builder::new().name("epochs".into()).spawn(move || {
            loop {
                std::thread::sleep(TICK);
                RUNNING
                    .made
                    .iter()
                    .filter_map(OnceLock::get)
                    .for_each(|shared| shared.engine.increment_epoch());
            }
        });
        if let Err(error) = ticker {
            tracing::error!(%error, "no thread for epochs: a busy guest will not yield");
        }
    });
}

/// Feeds what is hashed to SHA-256, so that the result is the same in every process.
struct Stable(Sha256);

impl Hasher for Stable {
    fn finish(&self) -> u64 {
        0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// Names the version, settings and CPU features of the engines: native code of another fingerprint does not load. Part of
/// a cache key. Empty when there is no engine.
pub fn engine_fingerprint() -> String {
    static FINGERPRINT: OnceLock<String> = OnceLock::new();
    FINGERPRINT
        .get_or_init(|| {
            let mut hasher = Stable(Sha256::new());
            for abi in [Abi::Sync, Abi::Async] {
                let Ok(shared) = compiling(abi) else { return String::new() };
                shared.engine.precompile_compatibility_hash().hash(&mut hasher);
            }
            hex::encode(&hasher.0.finalize()[..16])
        })
        .clone()
}
