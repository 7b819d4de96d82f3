//! wasi:nn: inference for containers that were granted it, charged to their memory and CPU.
//!
//! Without the cargo feature `nn` nothing is linked, and components that import it are refused when they are compiled.

use super::Granted;

/// How it is granted.
pub(super) const GRANTED: Granted = (
    "wasi:nn/",
    "inference (wasi:nn) comes with a GPU, or its stand-in: resources.limits \"nvidia.com/gpu: 1\"",
    |capabilities| capabilities.inference.is_some(),
);

/// What an import of it is told where it is left out.
#[cfg(not(feature = "nn"))]
pub(crate) const MISSING: &str = "inference (wasi:nn), which this build leaves out (cargo feature `nn`)";

#[cfg(feature = "nn")]
mod linked {
    use std::sync::Arc;

    use coracle_nn::{Account as Charged, Inference, View};
    use wasmtime::component::Linker;

    use crate::{cpu::Meter, guest::Guest, log::Log, memory::Account, protocol::Capabilities};

    /// What an instance has of it.
    pub(crate) type Context = coracle_nn::Context;

    struct Container {
        memory: Arc<Account>,
        meter: Arc<Meter>,
        log: Arc<Log>,
    }

    impl Charged for Container {
        fn take(&self, bytes: usize) -> wasmtime::Result<()> {
            Ok(self.memory.take(bytes)?)
        }
        fn give(&self, bytes: usize) {
            self.memory.give(bytes);
        }
        fn measured(&self, job: &mut dyn FnMut()) {
            self.meter.measure(job);
        }
        fn note(&self, words: &str) {
            self.log.note(words);
        }
    }

    /// What the instances of a container share.
    pub(crate) fn prepare(
        capabilities: &Capabilities,
        memory: &Arc<Account>,
        meter: &Arc<Meter>,
        log: &Arc<Log>,
    ) -> Context {
        let devices = capabilities.inference.clone()?;
        let container = Container { memory: memory.clone(), meter: meter.clone(), log: log.clone() };
        Some(Inference::new(devices, Arc::new(container)))
    }

    pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
        coracle_nn::add_to_linker(linker, |guest| {
            let (context, table) = guest.inference();
            View::new(context, table)
        })
    }
}

#[cfg(not(feature = "nn"))]
mod linked {
    use std::sync::Arc;

    use wasmtime::component::Linker;

    use crate::{cpu::Meter, guest::Guest, log::Log, memory::Account, protocol::Capabilities};

    pub(crate) type Context = ();

    pub(crate) fn prepare(_: &Capabilities, _: &Arc<Account>, _: &Arc<Meter>, _: &Arc<Log>) -> Context {}

    pub(crate) fn add_to_linker(_: &mut Linker<Guest>) -> wasmtime::Result<()> {
        Ok(())
    }
}

pub(crate) use linked::{Context, add_to_linker, prepare};
