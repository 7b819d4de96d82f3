//! Whether an instance may serve more than one request. Most guests can; JavaScript's engine, for one, cannot. The first request
//! without a body that meets a used instance finds out: if that does not answer, the request is run again in a fresh one.

use std::sync::atomic::{AtomicU8, Ordering};

use http::Request;
use hyper::body::Body as _;
use wasmtime_wasi_http::WasiBody;

const UNTRIED: u8 = 0;
const WORKS: u8 = 1;
const NEVER: u8 = 2;

pub(super) struct Reuse(AtomicU8);

impl Reuse {
    /// `allowed`: whether the pod does not ask for a fresh instance each time.
    pub fn new(allowed: bool) -> Self {
        Self(AtomicU8::new(if allowed { UNTRIED } else { NEVER }))
    }

    /// Whether a request may meet a used instance. Until one has, only a request that can be run again.
    pub fn allows(&self, request: &Request<WasiBody>) -> bool {
        match self.0.load(Ordering::Relaxed) {
            NEVER => false,
            UNTRIED => request.body().is_end_stream(),
            _ => true,
        }
    }

    /// A copy of a request that is about to find out; None where it is known.
    pub fn trial(&self, request: &Request<WasiBody>) -> Option<Request<WasiBody>> {
        (self.0.load(Ordering::Relaxed) == UNTRIED).then(|| {
            let mut copy = Request::new(WasiBody::default());
            copy.method_mut().clone_from(request.method());
            copy.uri_mut().clone_from(request.uri());
            copy.headers_mut().clone_from(request.headers());
            copy.extensions_mut().clone_from(request.extensions());
            copy
        })
    }

    /// A used instance has answered.
    pub fn works(&self) {
        let _ = self.0.compare_exchange(UNTRIED, WORKS, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A used instance has not answered.
    pub fn fails(&self) {
        self.0.store(NEVER, Ordering::Relaxed);
    }

    /// Whether no instance serves again.
    pub fn never(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NEVER
    }
}
