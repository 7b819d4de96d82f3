//! HTTP dispatch: a container that exports a wasi:http handler, its pool of instances, and what bounds them.
//!
//! A request is run on the task of its connection: no queue and no second task lie between the socket and the guest.

mod body;
mod connection;
mod ends;
mod instance;
mod latency;
mod reuse;
pub(crate) mod upgrade;

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures::channel::oneshot;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use wasmtime_wasi_http::{WasiBody, handler::ProxyPre};

use crate::{cpu::Metered, guest::Grants, memory::OverLimit, program::Program, switch::Switch};
pub(crate) use body::Body;
pub(crate) use body::Entered;
use body::{GuestBody, Slot};
pub(crate) use connection::{Target, serve};
use instance::{Instance, Run};
use latency::Latencies;
use reuse::Reuse;

/// The most requests of a container that are run at once.
const MAX_IN_FLIGHT: usize = 256;
/// The most that wait for one of those to end; a request beyond them is answered 503.
const MAX_WAITING: usize = 1024;
/// How long a guest may take until the head of its response, where its pod does not say.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// How long an unused instance is kept.
const IDLE: Duration = Duration::from_secs(30);
/// The most instances that are kept unused.
const MAX_IDLE: usize = 64;
/// After so many requests an instance makes room for a new one: what a guest leaks is bounded.
const MAX_SERVED: u32 = 100_000;

/// A container that is served over HTTP.
pub(crate) struct Handler {
    grants: Arc<Grants>,
    pre: ProxyPre<crate::guest::Guest>,
    idle: Mutex<Vec<Instance>>,
    reuse: Reuse,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    in_flight: AtomicUsize,
    quiet: Notify,
    pub instances: AtomicU32,
    pub requests: AtomicU64,
    /// Requests that waited for a new instance.
    pub cold_starts: AtomicU64,
    pub latencies: Latencies,
    /// No new connections; those that are open are closed after their next response.
    pub draining: Switch,
    /// Everything ends now.
    pub killed: Switch,
    /// The container went over its memory.
    pub over_limit: Notify,
}

impl Handler {
    /// Prepares a handler, and makes an instance of it, so that a component that cannot start is found out now. It is not
    /// kept: what one takes is more than all else of an idle pod, and a request makes its own in microseconds.
    pub async fn start(grants: Arc<Grants>, program: &Program) -> wasmtime::Result<Arc<Handler>> {
        let pre = match wasmtime_wasi_http::p3::bindings::ServicePre::new(program.pre()?) {
            Ok(pre) => ProxyPre::P3(pre),
            Err(_) => ProxyPre::P2(wasmtime_wasi_http::p2::bindings::ProxyPre::new(program.pre()?)?),
        };
        let grants_allow_reuse = !grants.spec.fresh_instance;
        let handler = Arc::new(Handler {
            grants,
            pre,
            idle: Mutex::default(),
            reuse: Reuse::new(grants_allow_reuse),
            slots: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            waiting: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            quiet: Notify::new(),
            instances: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            cold_starts: AtomicU64::new(0),
            latencies: Latencies::default(),
            draining: Switch::default(),
            killed: Switch::default(),
            over_limit: Notify::new(),
        });
        let meter = handler.grants.meter.clone();
        let first = Metered { future: Box::pin(handler.instantiate()), meter };
        let first = tokio::time::timeout(DEADLINE, first).await;
        drop(first.map_err(|_| wasmtime::Error::msg("starting an instance took 60 s"))??);
        let weak = Arc::downgrade(&handler);
        tokio::spawn(async move {
            while let Some(handler) = weak.upgrade() {
                handler.drop_unused();
                drop(handler);
                tokio::time::sleep(IDLE / 3).await;
            }
        });
        Ok(handler)
    }

    /// Announces a request, so that a drain waits for it; `None` when that has begun, and another handler is to be asked.
    pub fn enter(self: &Arc<Handler>) -> Option<Entered> {
        let entered = self.enter_anyway();
        // In this order: the drain sees the request, or the request sees the drain.
        if self.draining.is_on() { None } else { Some(entered) }
    }

    /// As [`Handler::enter`], though it may be draining.
    pub fn enter_anyway(self: &Arc<Handler>) -> Entered {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        Entered(self.clone())
    }

    /// Answers one request.
    pub async fn handle(self: &Arc<Handler>, request: Request<WasiBody>, entered: Entered) -> Response<Body> {
        let arrived = now();
        let Some(slot) = self.slot(entered).await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests are waiting");
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let _timed = Timed { handler: self, arrived };
        let mut run = pin!(self.run(request, slot));
        let mut cut = pin!(None);
        let answer = poll_fn(|cx| {
            if let Poll::Ready(answer) = run.as_mut().poll(cx) {
                return Poll::Ready(Ok(answer));
            }
            // Most guests answer at once, and need no timer.
            if cut.is_none() {
                cut.set(Some(self.cut()));
            }
            cut.as_mut().as_pin_mut().map_or(Poll::Pending, |cut| cut.poll(cx).map(Err))
        });
        match answer.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => self.failed(&error),
            Err(response) => response,
        }
    }

    /// What is answered to a request that its guest does not answer in time: here and now once the container has stopped.
    async fn cut(&self) -> Response<Body> {
        let limit = self.grants.deadline;
        tokio::select! {
            biased;
            () = self.killed.turned_on() => plain(StatusCode::SERVICE_UNAVAILABLE, "the container has stopped"),
            () = tokio::time::sleep(limit) => {
                let words = format!("a request had no answer within {limit:?}; its instance is ended");
                self.grants.log.note(&words);
                plain(StatusCode::GATEWAY_TIMEOUT, "the handler did not answer in time")
            }
        }
    }

    /// Room for one more request, or none.
    async fn slot(self: &Arc<Handler>, entered: Entered) -> Option<Slot> {
        let permit = match self.slots.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let waiting = Count::up(&self.waiting);
                if waiting.0.load(Ordering::Relaxed) > MAX_WAITING {
                    return None;
                }
                let permit = self.slots.clone().acquire_owned();
                tokio::time::timeout(self.grants.deadline, permit).await.ok()?.ok()?
            }
        };
        Some(Slot { entered, _permit: permit })
    }

    /// Runs a guest until the head of its response; its body runs the guest on.
    async fn run(
        self: &Arc<Handler>,
        request: Request<WasiBody>,
        slot: Slot,
    ) -> wasmtime::Result<Response<Body>> {
        let kept = if self.reuse.allows(&request) { self.idle.lock().pop() } else { None };
        let Some(kept) = kept else { return self.run_fresh(request, slot).await };
        let trial = self.reuse.trial(&request);
        let (response, mut run) = Self::head(kept, request, slot).await;
        match (response, trial) {
            (Ok(response), trial) => {
                if trial.is_some() {
                    self.reuse.works();
                }
                Ok(answer(response, run))
            }
            (Err(error), Some(again)) => match run.take_slot() {
                Some(slot) => {
                    // Where that fails, too, it is not for having served before.
                    let Ok(answered) = self.run_fresh(again, slot).await else { return Err(error) };
                    self.reuse.fails();
                    self.clear();
                    let words = "an instance that had served before did not answer; from now on each request gets its own";
                    self.grants.log.note(&format!("{words}: {error}"));
                    Ok(answered)
                }
                None => Err(error),
            },
            (Err(error), None) => Err(error),
        }
    }

    /// Runs a guest in an instance that has never served.
    async fn run_fresh(
        self: &Arc<Handler>,
        request: Request<WasiBody>,
        slot: Slot,
    ) -> wasmtime::Result<Response<Body>> {
        self.cold_starts.fetch_add(1, Ordering::Relaxed);
        let meter = self.grants.meter.clone();
        let instance = Metered { future: Box::pin(self.instantiate()), meter }.await?;
        let (response, run) = Self::head(instance, request, slot).await;
        Ok(answer(response?, run))
    }

    /// Runs an instance until the head of its response.
    async fn head(
        instance: Instance,
        request: Request<WasiBody>,
        slot: Slot,
    ) -> (wasmtime::Result<Response<WasiBody>>, Run) {
        let (tell, mut head) = oneshot::channel();
        let mut run = Run::new(instance.run(request, tell), slot);
        let response = poll_fn(|cx| run.poll_head(cx, &mut head)).await;
        (response, run)
    }

    async fn instantiate(self: &Arc<Handler>) -> wasmtime::Result<Instance> {
        let engine = match &self.pre {
            ProxyPre::P2(pre) => pre.engine(),
            ProxyPre::P3(pre) => pre.engine(),
        };
        let mut store = crate::guest::Guest::store(engine, &self.grants)?;
        let proxy = self.pre.instantiate_async(&mut store).await?;
        Ok(Instance::new(self, store, proxy))
    }

    /// An instance has finished a request well.
    fn give_back(&self, instance: Instance) {
        if self.reuse.never() || instance.served >= MAX_SERVED {
            return;
        }
        if self.draining.is_on() && self.in_flight.load(Ordering::Acquire) <= 1 {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(instance);
        }
    }

    fn drop_unused(&self) {
        let unused = {
            let mut idle = self.idle.lock();
            // The one used last is at the end.
            let old = idle.iter().take_while(|i| i.since.elapsed() > IDLE).count();
            idle.drain(..old).collect::<Vec<_>>()
        };
        drop(unused);
    }

    /// A guest has trapped, or could not be started: that instance is gone, the container runs on.
    fn failed(&self, error: &wasmtime::Error) -> Response<Body> {
        if error.downcast_ref::<OverLimit>().is_some() || self.grants.memory.exceeded() {
            self.grants.log.note(&format!("{error:?}"));
            self.over_limit.notify_one();
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "the container is out of memory");
        }
        if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the host has no room for an instance");
        }
        self.grants.log.note(&format!("a request failed: {error:?}"));
        plain(StatusCode::INTERNAL_SERVER_ERROR, "the handler failed; its log says why")
    }

    /// Requests that have not been answered completely.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until no request is in flight.
    pub async fn quiet(&self) {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Drops every unused instance.
    pub fn clear(&self) {
        let unused = std::mem::take(&mut *self.idle.lock());
        drop(unused);
    }
}

/// A response whose body runs the guest on.
fn answer(response: Response<WasiBody>, run: Run) -> Response<Body> {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, Body::Guest(GuestBody::new(body, run)))
}

/// Counts a request's time when it has its answer, or its client has gone.
struct Timed<'a> {
    handler: &'a Handler,
    arrived: Instant,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.handler.latencies.count(self.arrived.elapsed());
    }
}

/// Counts up while it lives.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn up(count: &'a AtomicUsize) -> Count<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Count(count)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response of the host's own.
pub(crate) fn plain(status: StatusCode, words: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::text(words));
    *response.status_mut() = status;
    let text = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, text);
    response
}

/// Now, for [`Instance::since`].
fn now() -> Instant {
    Instant::now()
}
