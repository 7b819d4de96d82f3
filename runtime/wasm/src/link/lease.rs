//! One instance's link to another container of its pod: an instance there that it has to itself, and the resources it holds.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use tokio::sync::{Mutex, OwnedMutexGuard};
use wasmtime::component::{ResourceAny, Val};

use super::provider::{Instance, Provider};
use crate::{cpu::Metered, sandbox::Sandbox};

/// The most resources of another container that an instance holds.
const MAX_RESOURCES: usize = 10_000;

/// A link to a container, by its name.
pub(crate) struct Link {
    sandbox: Weak<Sandbox>,
    name: String,
    held: Arc<Mutex<Held>>,
}

/// What an instance holds there.
#[derive(Default)]
pub(crate) struct Held {
    lease: Option<Lease>,
    resources: HashMap<u32, ResourceAny>,
    /// Numbers are never used again, so that one of an instance that has ended means no other.
    last: u32,
}

impl Link {
    /// A link that has not been used.
    pub fn new(sandbox: Weak<Sandbox>, name: &str) -> Link {
        Link { sandbox, name: name.to_owned(), held: Arc::default() }
    }

    /// Waits its turn, and makes sure that there is an instance to call.
    pub async fn hold(&self) -> wasmtime::Result<OwnedMutexGuard<Held>> {
        let mut held = self.held.clone().lock_owned().await;
        if held.lease.as_ref().is_none_or(|lease| !lease.provider.open()) {
            held.drop_all();
            let ended = || wasmtime::Error::msg(format!("container {} of the pod does not run", self.name));
            let provider = self.sandbox.upgrade().and_then(|sandbox| sandbox.provider(&self.name));
            let provider = provider.filter(|provider| provider.open()).ok_or_else(ended)?;
            held.lease = Some(Lease::take(provider).await?);
        }
        Ok(held)
    }

    /// A handle is dropped. One of an instance that has ended is gone already.
    pub async fn forget(&self, rep: u32) -> wasmtime::Result<()> {
        let mut held = self.held.clone().lock_owned().await;
        let Some(resource) = held.take(rep) else { return Ok(()) };
        let Some(lease) = &mut held.lease else { return Ok(()) };
        lease.run(async |instance| resource.resource_drop_async(&mut instance.store).await).await
    }
}

impl Held {
    /// The resource, which stays with its owner.
    pub fn get(&self, rep: u32) -> Option<ResourceAny> {
        self.resources.get(&rep).copied()
    }

    /// The resource, which leaves its owner.
    pub fn take(&mut self, rep: u32) -> Option<ResourceAny> {
        self.resources.remove(&rep)
    }

    /// Keeps a resource under a number.
    pub fn keep(&mut self, resource: ResourceAny) -> wasmtime::Result<u32> {
        if self.resources.len() >= MAX_RESOURCES {
            return Err(wasmtime::Error::msg(format!(
                "more than {MAX_RESOURCES} resources of another container"
            )));
        }
        let next = self.last.checked_add(1).ok_or_else(|| wasmtime::Error::msg("too many resources"))?;
        self.last = next;
        self.resources.insert(next, resource);
        Ok(next)
    }

    fn drop_all(&mut self) {
        self.lease = None;
        self.resources.clear();
    }

    /// Calls an exported function there.
    pub async fn call(
        &mut self,
        export: &str,
        function: &str,
        arguments: &[Val],
        results: &mut [Val],
    ) -> wasmtime::Result<()> {
        let Some(lease) = &mut self.lease else { return Err(wasmtime::Error::msg("no instance to call")) };
        let called =
            lease.run(async |instance| instance.call(export, function, arguments, results).await).await;
        if called.is_err() {
            // After a trap nothing of that instance can be used again.
            self.drop_all();
        }
        called
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.resources.is_empty()
        {
            lease.give_back();
        }
    }
}

/// An instance of the exporting container.
struct Lease {
    provider: Arc<Provider>,
    /// `None` once it has failed, or a call was broken off.
    instance: Option<Instance>,
}

impl Lease {
    async fn take(provider: Arc<Provider>) -> wasmtime::Result<Lease> {
        let instance = Some(provider.instance().await?);
        Ok(Lease { provider, instance })
    }

    fn give_back(mut self) {
        if let Some(instance) = self.instance.take() {
            self.provider.give_back(instance);
        }
    }

    /// Runs something in the instance, on the exporting container's account.
    async fn run(
        &mut self,
        job: impl AsyncFnOnce(&mut Instance) -> wasmtime::Result<()>,
    ) -> wasmtime::Result<()> {
        let name = self.provider.name().to_owned();
        let ended = || wasmtime::Error::msg(format!("container {name} of the pod has ended"));
        let _call = self.provider.begin().ok_or_else(ended)?;
        let mut instance = self.instance.take().ok_or_else(ended)?;
        let meter = self.provider.meter();
        let work = Metered { future: Box::pin(job(&mut instance)), meter };
        let done = tokio::select! {
            biased;
            () = self.provider.killed.cancelled() => Err(ended()),
            done = work => done,
        };
        match done {
            Ok(()) => {
                self.instance = Some(instance);
                Ok(())
            }
            Err(error) => {
                self.provider.failed(&error);
                // In words only: what ends the one container (an exit, too much memory) does not end the other.
                Err(wasmtime::Error::msg(format!("in container {name}: {error:#}")))
            }
        }
    }
}
