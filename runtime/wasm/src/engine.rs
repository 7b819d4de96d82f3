//! The one wasmtime engine of a process, its clock of epochs, and the name of its settings.

use std::{
    hash::{Hash, Hasher},
    sync::OnceLock,
    time::Duration,
};

use sha2::{Digest, Sha256};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// How often a running guest is asked to let others run.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// The most instances that a process holds: about six mappings each, of the 65,530 that Linux allows by default.
const MAX_INSTANCES: u32 = 10_000;

/// How many bytes that an instance has written to are made anew and kept for the next one in its place. Taking them back
/// from the process, and a fault for each page that comes again, costs most of what a fresh instance does.
const KEPT_MEMORY: usize = 64 << 10;
/// The same of its tables.
const KEPT_TABLE: usize = 32 << 10;

/// The engine and how it allocates.
pub(crate) struct Shared {
    pub engine: Engine,
    /// False when the address space is too short for a pool.
    pub pooling: bool,
}

/// The engine of this process.
pub(crate) fn shared() -> wasmtime::Result<&'static Shared> {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    if let Some(shared) = SHARED.get() {
        return Ok(shared);
    }
    let made = make()?;
    Ok(SHARED.get_or_init(|| made))
}

/// A pooled engine, or, where the address space is short (a `ulimit -v`), one that allocates as it goes.
fn make() -> wasmtime::Result<Shared> {
    let mut config = settings();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    match Engine::new(&config) {
        Ok(engine) => Ok(Shared { engine, pooling: true }),
        Err(error) => {
            tracing::warn!(%error, "no address space for an instance pool; allocating on demand");
            let engine = Engine::new(&settings())?;
            Ok(Shared { engine, pooling: false })
        }
    }
}

fn settings() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true).wasm_component_model_async(true);
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
pub(crate) fn start_ticking(engine: &Engine) {
    static TICKING: OnceLock<()> = OnceLock::new();
    TICKING.get_or_init(|| {
        let engine = engine.clone();
        let ticker = std::thread::Builder::new().name("epochs".into()).spawn(move || {
            loop {
                std::thread::sleep(TICK);
                engine.increment_epoch();
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

/// Names the engine's version, settings and CPU features: native code of another fingerprint does not load. Part of
/// a cache key. Empty when there is no engine.
pub fn engine_fingerprint() -> String {
    static FINGERPRINT: OnceLock<String> = OnceLock::new();
    FINGERPRINT
        .get_or_init(|| {
            let Ok(shared) = shared() else { return String::new() };
            let mut hasher = Stable(Sha256::new());
            shared.engine.precompile_compatibility_hash().hash(&mut hasher);
            hex::encode(&hasher.0.finalize()[..16])
        })
        .clone()
}
