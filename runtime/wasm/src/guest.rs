//! What the host keeps for one instance: the data of its store.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};
use wasmtime::{Engine, Store, UpdateDeadline, component::ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, sockets::WasiSocketsView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::{
    cpu::Meter,
    hosts::{
        self,
        http::Egress,
        sockets::{Bound, PodSocketsView},
    },
    link::{Link, Links},
    log::Log,
    memory::{Account, Share},
    network::PodNetwork,
    protocol::ContainerSpec,
};

/// The most handles that an instance holds at once: many are descriptors, of which the whole process has few.
fn max_resources() -> usize {
    static MAX: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *MAX.get_or_init(|| {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        descriptors.and_then(|d| usize::try_from(d).ok()).map_or(10_000, |d| (d / 8).clamp(512, 10_000))
    })
}

/// What all instances of a container share.
pub(crate) struct Grants {
    pub spec: ContainerSpec,
    pub env: Vec<(String, String)>,
    pub log: Arc<Log>,
    pub memory: Arc<Account>,
    pub meter: Arc<Meter>,
    pub network: Arc<PodNetwork>,
    pub egress: Egress,
    /// How long a request may take until the head of its answer.
    pub deadline: std::time::Duration,
    pub inference: hosts::nn::Context,
    pub config: hosts::config::Context,
    pub keyvalue: hosts::keyvalue::Context,
    pub observed: hosts::observe::Context,
    pub links: Links,
}

/// The data of an instance's store.
pub(crate) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    egress: Egress,
    /// Ends what runs on its behalf elsewhere.
    _life: DropGuard,
    #[cfg_attr(not(feature = "nn"), allow(dead_code, reason = "nothing asks for it"))]
    inference: hosts::nn::Context,
    config: hosts::config::Context,
    keyvalue: hosts::keyvalue::Context,
    observed: hosts::observe::Context,
    links: Vec<Arc<Link>>,
    table: ResourceTable,
    memory: Share,
    network: Arc<PodNetwork>,
    bound: Bound,
}

impl Guest {
    /// A store for a new instance in the container, of a program of this engine.
    pub fn store(engine: &Engine, grants: &Grants) -> wasmtime::Result<Store<Guest>> {
        Self::store_for(engine, grants, hosts::cli::Streams::Log)
    }

    /// As [`Guest::store`], with other streams.
    pub fn store_for(
        engine: &Engine,
        grants: &Grants,
        streams: hosts::cli::Streams,
    ) -> wasmtime::Result<Store<Guest>> {
        let mut wasi = WasiCtx::builder();
        hosts::cli::prepare(&mut wasi, &grants.spec, &grants.env, &grants.log, streams);
        hosts::filesystem::prepare(&mut wasi, &grants.spec.mounts)?;
        let bound = Bound::new(grants.network.clone());
        hosts::sockets::prepare(&mut wasi, &bound);
        let mut table = ResourceTable::new();
        table.set_max_capacity(max_resources());
        let life = CancellationToken::new();
        let guest = Guest {
            wasi: wasi.build(),
            http: WasiHttpCtx::new(),
            egress: grants.egress.living(life.clone()),
            _life: life.drop_guard(),
            #[allow(clippy::clone_on_copy, clippy::unit_arg, reason = "a unit where inference is left out")]
            inference: grants.inference.clone(),
            config: grants.config.clone(),
            keyvalue: grants.keyvalue.clone(),
            observed: grants.observed.clone(),
            links: grants.links.open(),
            table,
            memory: Share::new(grants.memory.clone()),
            network: grants.network.clone(),
            bound,
        };
        let mut store = Store::new(engine, guest);
        store.limiter_async(|guest| &mut guest.memory);
        store.set_epoch_deadline(1);
        let meter = grants.meter.clone();
        store.epoch_deadline_callback(move |_| {
            Ok(match meter.throttle() {
                Some(pause) => UpdateDeadline::YieldCustom(1, Box::pin(tokio::time::sleep(pause))),
                None => UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())),
            })
        });
        Ok(store)
    }

    pub(crate) fn pod_sockets(&mut self) -> PodSocketsView<'_> {
        let inner =
            wasmtime_wasi::sockets::WasiSocketsCtxView { ctx: self.wasi.sockets(), table: &mut self.table };
        PodSocketsView { inner, network: &self.network, bound: &mut self.bound }
    }

    #[cfg(feature = "nn")]
    pub(crate) fn inference(&mut self) -> (&hosts::nn::Context, &mut ResourceTable) {
        (&self.inference, &mut self.table)
    }

    /// The link of this number to another container of the pod.
    pub(crate) fn link(&self, index: usize) -> wasmtime::Result<Arc<Link>> {
        let link = self.links.get(index).cloned();
        link.ok_or_else(|| wasmtime::Error::msg("this import is linked to no container"))
    }

    pub(crate) fn config(&mut self) -> &hosts::config::Context {
        &self.config
    }

    pub(crate) fn keyvalue(&mut self) -> (&hosts::keyvalue::Context, &mut ResourceTable) {
        (&self.keyvalue, &mut self.table)
    }

    pub(crate) fn observed(&mut self) -> hosts::observe::View<'_> {
        hosts::observe::View { context: &self.observed, table: &mut self.table }
    }

    /// The stock socket view, for what needs no rewriting.
    pub(crate) fn stock_sockets(&mut self) -> wasmtime_wasi::sockets::WasiSocketsCtxView<'_> {
        self.sockets()
    }
}

impl wasmtime_wasi_io::IoView for Guest {
    fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.egress, table: &mut self.table, ctx: &mut self.http }
    }
}
