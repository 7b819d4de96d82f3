//! One instance of a handler, and one request running in it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, Weak, atomic::Ordering},
    task::{Context, Poll},
    time::Instant,
};

use futures::{FutureExt, channel::oneshot};
use http::{Request, Response};
use wasmtime::{AsContextMut, Store, component::Accessor};
use wasmtime_wasi_http::{
    WasiBody, WasiHttpView,
    handler::{Prepared, Proxy},
    p2::bindings::http::types::Scheme,
};

use super::{Handler, Slot, now};
use crate::guest::Guest;

/// The sender of a response's head.
type Tell = oneshot::Sender<wasmtime::Result<Response<WasiBody>>>;

/// A store with an instantiated handler.
pub(super) struct Instance {
    handler: Weak<Handler>,
    store: Store<Guest>,
    proxy: Proxy,
    pub served: u32,
    /// When it was last used.
    pub since: Instant,
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(handler) = self.handler.upgrade() {
            handler.instances.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What is left of an instance after a request.
type Ran = (Instance, wasmtime::Result<()>);

impl Instance {
    pub fn new(handler: &Arc<Handler>, store: Store<Guest>, proxy: Proxy) -> Instance {
        handler.instances.fetch_add(1, Ordering::Relaxed);
        Instance { handler: Arc::downgrade(handler), store, proxy, served: 0, since: now() }
    }

    /// Runs one request to its end, which may come after that of its response.
    pub async fn run(mut self, request: Request<WasiBody>, tell: Tell) -> Ran {
        let result = match &self.proxy {
            Proxy::P2(_) => self.run_p2(request, tell).await,
            Proxy::P3(_) => self.run_p3(request, tell).await,
        };
        self.served += 1;
        self.since = now();
        (self, result)
    }

    async fn run_p2(&mut self, request: Request<WasiBody>, tell: Tell) -> wasmtime::Result<()> {
        let Proxy::P2(proxy) = &self.proxy else { return Ok(()) };
        let mut view = self.store.data_mut().http();
        let request = view.new_incoming_request(Scheme::Http, request)?;
        let tell = Mutex::new(Some(tell));
        let out = view.new_response_outparam_from_callback(move |response| {
            let tell = tell.lock().ok().and_then(|mut tell| tell.take());
            if let Some(tell) = tell {
                let _ = tell.send(response.map_err(Into::into));
            }
        })?;
        let call = proxy.wasi_http_incoming_handler();
        call.call_handle(&mut self.store, request, out).await
    }

    async fn run_p3(&mut self, request: Request<WasiBody>, tell: Tell) -> wasmtime::Result<()> {
        let Instance { store, proxy, .. } = self;
        let call = async |accessor: &Accessor<Guest>| {
            let prepared = accessor.with(|mut store| {
                let view = <Guest as WasiHttpView>::http;
                Prepared::new(store.as_context_mut(), proxy, request, view, tell)
            })?;
            prepared.run(accessor, std::future::pending()).await?;
            // Bodies are written by the guest's tasks, which run only while this does.
            std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            wasmtime::error::Ok(())
        };
        store.run_concurrent(call).await.flatten()
    }
}

/// A request that runs: polled by its connection, and afterwards, if the guest is not done, by a task of its own.
pub(super) struct Run {
    future: Option<Pin<Box<dyn Future<Output = Ran> + Send>>>,
    slot: Option<Slot>,
}

impl Run {
    pub fn new(future: impl Future<Output = Ran> + Send + 'static, slot: Slot) -> Run {
        Run { future: Some(Box::pin(future)), slot: Some(slot) }
    }

    /// The place of a guest that has ended without an answer, for another try.
    pub fn take_slot(&mut self) -> Option<Slot> {
        self.future = None;
        self.slot.take()
    }

    /// Whether the guest has finished.
    pub fn finished(&self) -> bool {
        self.future.is_none()
    }

    /// Whether the container was killed meanwhile.
    pub fn slot_killed(&self) -> bool {
        self.slot.as_ref().is_some_and(|slot| slot.handler().killed.is_on())
    }

    /// Runs on; the result of the guest when it ends now, `None` when it had ended before.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<wasmtime::Result<()>>> {
        let (Some(future), Some(slot)) = (&mut self.future, &self.slot) else {
            return Poll::Ready(None);
        };
        let handler = slot.handler();
        let Poll::Ready((instance, result)) = handler.grants.meter.measure(|| future.as_mut().poll(cx))
        else {
            return Poll::Pending;
        };
        self.future = None;
        if result.is_ok() {
            handler.give_back(instance);
        }
        Poll::Ready(Some(result))
    }

    /// Runs until the head of the response is there.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut oneshot::Receiver<wasmtime::Result<Response<WasiBody>>>,
    ) -> Poll<wasmtime::Result<Response<WasiBody>>> {
        let ended = match self.poll(cx) {
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
            Poll::Ready(_) => true,
            Poll::Pending => false,
        };
        match head.poll_unpin(cx) {
            Poll::Ready(Ok(head)) => Poll::Ready(head),
            Poll::Ready(Err(_)) => Poll::Ready(Err(silent())),
            Poll::Pending if ended => Poll::Ready(Err(silent())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// What goes on after the response: a guest may do so for as long as it might have taken to answer.
    pub fn finish_later(&mut self) {
        let (Some(future), Some(slot)) = (self.future.take(), self.slot.take()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let meter = slot.handler().grants.meter.clone();
            let killed = slot.handler().killed.clone();
            let run = crate::cpu::Metered { future: Box::pin(future), meter };
            tokio::select! {
                ran = tokio::time::timeout(slot.handler().grants.deadline, run) => match ran {
                    Ok((instance, Ok(()))) => slot.handler().give_back(instance),
                    Ok((_, Err(error))) => drop(slot.handler().failed(&error)),
                    Err(_) => slot.handler().grants.log.note("a guest went on too long after its response; it is ended"),
                },
                () = killed.turned_on() => {}
            }
        });
    }

    /// Reports a failure that came after the head of the response.
    pub fn report(&self, error: &wasmtime::Error) {
        if let Some(slot) = &self.slot {
            drop(slot.handler().failed(error));
        }
    }
}

fn silent() -> wasmtime::Error {
    wasmtime::Error::msg("the handler returned without a response")
}
