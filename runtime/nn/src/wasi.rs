//! wasi:nn in front of [`Model`]: what guests import.
//!
//! A container's instances share their models: the same bytes are read and optimised once, and stay while they are among
//! the last [`KEPT`]. Loading and computing run on threads for blocking work, bounded for a container and for the process.

mod host;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, task::JoinError};
use wasmtime::component::{HasData, Linker, ResourceTable};

use crate::model::{Error, ErrorKind, Model, Tensor};

/// How many models a container keeps that none of its instances holds.
const KEPT: usize = 4;
/// What the host holds of a loaded model, in sizes of its encoding: the weights, once as they are and once as they are packed.
const MODEL_FACTOR: usize = 2;

/// What a container is charged for what the host does and holds for it.
pub trait Account: Send + Sync + 'static {
    /// Counts bytes that the host holds for the container.
    ///
    /// # Errors
    /// Over the container's limit: an error that ends it, as for memory of its own.
    fn take(&self, bytes: usize) -> wasmtime::Result<()>;
    /// They are free again.
    fn give(&self, bytes: usize);
    /// Runs `job` on this thread, and counts its CPU time.
    fn measured(&self, job: &mut dyn FnMut());
    /// Tells the container's reader something, in its log.
    fn note(&self, words: &str);
}

/// Bytes of an account; given back when dropped.
struct Charge {
    account: Arc<dyn Account>,
    bytes: usize,
}

impl Charge {
    fn new(account: &Arc<dyn Account>, bytes: usize) -> wasmtime::Result<Charge> {
        account.take(bytes)?;
        Ok(Charge { account: account.clone(), bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.give(self.bytes);
    }
}

struct Loaded {
    model: Model,
    _charge: Charge,
}

type Digested = [u8; 32];

/// What a container that may infer shares among its instances.
pub struct Inference {
    account: Arc<dyn Account>,
    devices: Vec<String>,
    models: Mutex<VecDeque<(Digested, Arc<Loaded>)>>,
    jobs: Arc<Semaphore>,
    told: AtomicBool,
}

/// How many jobs the process runs at once.
static JOBS: std::sync::LazyLock<Arc<Semaphore>> =
    std::sync::LazyLock::new(|| Arc::new(Semaphore::new(2 * cores())));

fn cores() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Inference {
    /// For a container that has these devices to itself.
    pub fn new(devices: Vec<String>, account: Arc<dyn Account>) -> Arc<Inference> {
        Arc::new(Inference {
            account,
            devices,
            models: Mutex::default(),
            jobs: Arc::new(Semaphore::new(cores())),
            told: AtomicBool::new(false),
        })
    }

    /// Says once where inference runs that was asked for elsewhere.
    fn tell_target(&self, wanted: &str) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let devices = match self.devices.is_empty() {
                true => "none".to_owned(),
                false => self.devices.join(", "),
            };
            self.account.note(&format!(
                "wasi:nn: inference was asked for on a {wanted}; it runs on the CPU (devices of this container: {devices})"
            ));
        }
    }

    fn kept(&self, digest: &Digested) -> Option<Arc<Loaded>> {
        let mut models = self.models.lock();
        let at = models.iter().position(|(known, _)| known == digest)?;
        let found = models.remove(at)?;
        let loaded = found.1.clone();
        models.push_back(found);
        Some(loaded)
    }

    fn keep(&self, digest: Digested, loaded: &Arc<Loaded>) {
        let mut models = self.models.lock();
        if models.len() >= KEPT {
            models.pop_front();
        }
        models.push_back((digest, loaded.clone()));
    }

    /// Runs a job where it blocks nobody. A panic is an error.
    async fn job<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let closed = |_| Error::new(ErrorKind::RuntimeError, "the host is shutting down");
        let own = self.jobs.clone().acquire_owned().await.map_err(closed)?;
        let shared = JOBS.clone().acquire_owned().await.map_err(closed)?;
        let account = self.account.clone();
        let running = tokio::task::spawn_blocking(move || {
            let _permits = (own, shared);
            let (mut job, mut result) = (Some(job), None);
            account.measured(&mut || result = job.take().map(|job| job()));
            result
        });
        match running.await {
            Ok(Some(result)) => result,
            Ok(None) => Err(Error::new(ErrorKind::RuntimeError, "the inference was not run")),
            Err(error) => Err(panicked(error)),
        }
    }

    /// The model of these bytes. The outer error ends the container, the inner one is the guest's.
    async fn load(&self, onnx: Vec<u8>) -> wasmtime::Result<Result<Arc<Loaded>, Error>> {
        let charge = Charge::new(&self.account, onnx.len().saturating_mul(MODEL_FACTOR))?;
        let digest: Digested = Sha256::digest(&onnx).into();
        if let Some(loaded) = self.kept(&digest) {
            return Ok(Ok(loaded));
        }
        Ok(self.job(move || Model::load(&onnx)).await.map(|model| {
            let loaded = Arc::new(Loaded { model, _charge: charge });
            self.keep(digest, &loaded);
            loaded
        }))
    }
}

fn panicked(error: JoinError) -> Error {
    let words = match error.try_into_panic() {
        Ok(panic) => match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(words), _) => (*words).to_owned(),
            (_, Some(words)) => words.clone(),
            _ => "unknown".to_owned(),
        },
        Err(_) => "it was cancelled".to_owned(),
    };
    Error::new(ErrorKind::RuntimeError, format!("the model broke the inference engine: {words}"))
}

/// A tensor that a guest holds.
pub struct Held {
    tensor: Tensor,
    _charge: Charge,
}

/// A model that a guest holds.
pub struct Graph(Arc<Loaded>);

/// What a guest computes with. wasi:nn keeps inputs nowhere between calls, so that it is the model.
pub struct Execution(Arc<Loaded>);

/// What one instance has: `None` where it was not granted.
pub type Context = Option<Arc<Inference>>;

/// An instance's side of wasi:nn.
pub struct View<'a> {
    context: &'a Context,
    table: &'a mut ResourceTable,
}

impl<'a> View<'a> {
    /// Of this instance.
    pub fn new(context: &'a Context, table: &'a mut ResourceTable) -> View<'a> {
        View { context, table }
    }
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

/// Links wasi:nn.
///
/// # Errors
/// When it was linked before.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> View<'_>,
) -> wasmtime::Result<()> {
    use host::generated::wasi::nn;
    nn::tensor::add_to_linker::<T, HasView>(linker, view)?;
    nn::errors::add_to_linker::<T, HasView>(linker, view)?;
    nn::inference::add_to_linker::<T, HasView>(linker, view)?;
    nn::graph::add_to_linker::<T, HasView>(linker, view)
}
