//! A container that others of its pod import from: its instances, and who may call them when.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use wasmtime::{
    Store,
    component::{
        Func, Val,
        types::{ComponentInstance, ComponentItem},
    },
};

use super::versions;
use crate::{
    cpu::{Meter, Metered},
    guest::{Grants, Guest},
    memory::OverLimit,
    program::Program,
};

/// The most instances that are kept unused.
const MAX_IDLE: usize = 64;
/// The most calls at once.
const MAX_CALLS: u32 = 4096;

/// A container whose exports others import.
pub(crate) struct Provider {
    grants: Arc<Grants>,
    program: Arc<Program>,
    idle: Mutex<Vec<Instance>>,
    open: AtomicBool,
    calls: Arc<Semaphore>,
    /// Everything ends now.
    pub killed: CancellationToken,
    /// The container went over its memory.
    pub over_limit: Notify,
    /// Calls so far.
    pub called: AtomicU64,
    /// Live instances.
    instances: Arc<AtomicU32>,
    /// Instances made so far.
    pub made: AtomicU64,
}

/// An instance that others call.
pub(super) struct Instance {
    pub store: Store<Guest>,
    instance: wasmtime::component::Instance,
    functions: HashMap<(Box<str>, Box<str>), Func>,
    /// Counts it while it lives.
    _live: Live,
}

struct Live(Arc<AtomicU32>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Instance {
    /// Calls an exported function.
    pub async fn call(
        &mut self,
        export: &str,
        function: &str,
        arguments: &[Val],
        results: &mut [Val],
    ) -> wasmtime::Result<()> {
        let key = (export.into(), function.into());
        let called = match self.functions.get(&key) {
            Some(found) => *found,
            None => {
                let absent = || wasmtime::Error::msg(format!("no {export}#{function} is exported"));
                let interface =
                    self.instance.get_export_index(&mut self.store, None, export).ok_or_else(absent)?;
                let index = self.instance.get_export_index(&mut self.store, Some(&interface), function);
                let found = index
                    .and_then(|index| self.instance.get_func(&mut self.store, index))
                    .ok_or_else(absent)?;
                self.functions.insert(key, found);
                found
            }
        };
        called.call_async(&mut self.store, arguments, results).await
    }
}

impl Provider {
    /// For a container that has been created; nobody can call it before it is opened.
    pub fn new(grants: Arc<Grants>, program: Arc<Program>) -> Provider {
        Provider {
            grants,
            program,
            idle: Mutex::default(),
            open: AtomicBool::new(false),
            calls: Arc::new(Semaphore::new(MAX_CALLS as usize)),
            killed: CancellationToken::new(),
            over_limit: Notify::new(),
            called: AtomicU64::new(0),
            instances: Arc::default(),
            made: AtomicU64::new(0),
        }
    }

    pub fn name(&self) -> &str {
        &self.grants.spec.name
    }

    pub(super) fn meter(&self) -> Arc<Meter> {
        self.grants.meter.clone()
    }

    /// Live instances.
    pub fn instances(&self) -> u32 {
        self.instances.load(Ordering::Relaxed)
    }

    /// The names of the interfaces that it exports.
    pub fn interfaces(&self) -> Vec<String> {
        let (ty, engine) = (self.program.component.component_type(), self.program.component.engine());
        let interface = |item: &ComponentItem| matches!(item, ComponentItem::ComponentInstance(_));
        ty.exports(engine).filter(|(_, item)| interface(&item.ty)).map(|(name, _)| name.to_owned()).collect()
    }

    /// The export that serves an import.
    pub fn exported(&self, import: &str) -> Option<(String, ComponentInstance)> {
        let (ty, engine) = (self.program.component.component_type(), self.program.component.engine());
        let mut found = None;
        for (name, item) in ty.exports(engine) {
            if let ComponentItem::ComponentInstance(interface) = item.ty
                && versions::serves(name, import)
                && (name == import || found.is_none())
            {
                found = Some((name.to_owned(), interface));
            }
        }
        found
    }

    /// Makes one instance, so that a component that cannot start is found out, and lets others call.
    pub async fn start(&self) -> wasmtime::Result<()> {
        let first = self.fresh().await?;
        self.give_back(first);
        self.open.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it can be called.
    pub fn open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// No call begins from now on; answers when none runs.
    pub async fn drain(&self) {
        self.open.store(false, Ordering::Release);
        let _ = self.calls.acquire_many(MAX_CALLS).await;
    }

    /// Ends every call at once.
    pub fn close(&self) {
        self.open.store(false, Ordering::Release);
        self.killed.cancel();
        self.calls.close();
        let unused = std::mem::take(&mut *self.idle.lock());
        drop(unused);
    }

    /// Announces a call; `None` when it has ended, or too many run.
    pub(super) fn begin(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.calls.clone().try_acquire_owned().ok()?;
        self.called.fetch_add(1, Ordering::Relaxed);
        Some(permit)
    }

    /// An instance for somebody.
    pub(super) async fn instance(&self) -> wasmtime::Result<Instance> {
        let kept = self.idle.lock().pop();
        match kept {
            Some(kept) => Ok(kept),
            None => self.fresh().await.inspect_err(|error| self.failed(error)),
        }
    }

    async fn fresh(&self) -> wasmtime::Result<Instance> {
        let pre = self.program.pre()?;
        let mut store = Guest::store(pre.engine(), &self.grants)?;
        let starting = Box::pin(pre.instantiate_async(&mut store));
        let instance = Metered { future: starting, meter: self.meter() }.await?;
        self.instances.fetch_add(1, Ordering::Relaxed);
        self.made.fetch_add(1, Ordering::Relaxed);
        let live = Live(self.instances.clone());
        Ok(Instance { store, instance, functions: HashMap::new(), _live: live })
    }

    /// An instance is free again.
    pub(super) fn give_back(&self, instance: Instance) {
        if self.grants.spec.fresh_instance || self.killed.is_cancelled() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(instance);
        }
    }

    /// A call has failed: that instance is gone, the container runs on unless it was for memory.
    pub(super) fn failed(&self, error: &wasmtime::Error) {
        self.grants.log.note(&format!("a call from another container failed: {error:?}"));
        if error.downcast_ref::<OverLimit>().is_some() || self.grants.memory.exceeded() {
            self.over_limit.notify_one();
        }
    }
}
