//! Bodies of responses: text of the host's own, or a guest's, which runs the guest while it is read.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi_http::{Error, WasiBody};

use super::{Handler, instance::Run};

/// A request that a handler's drain waits for, from its arrival to the end of its response.
pub(crate) struct Entered(pub(super) Arc<Handler>);

impl Drop for Entered {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}

/// The place of one request among those that a container runs at once.
pub(super) struct Slot {
    pub entered: Entered,
    pub _permit: OwnedSemaphorePermit,
}

impl Slot {
    pub fn handler(&self) -> &Arc<Handler> {
        &self.entered.0
    }
}

/// The body of a response.
pub(crate) enum Body {
    Text(Full<Bytes>),
    Guest(GuestBody),
}

impl Body {
    pub fn text(words: &'static str) -> Body {
        Body::Text(Full::new(Bytes::from_static(words.as_bytes())))
    }
}

/// A guest's body; dropped early, it leaves the guest to end on its own.
pub(crate) struct GuestBody {
    body: WasiBody,
    run: Run,
}

impl GuestBody {
    pub(super) fn new(body: WasiBody, run: Run) -> GuestBody {
        GuestBody { body, run }
    }

    fn poll_guest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.run.slot_killed() {
            return Poll::Ready(Some(Err(Error::ConnectionTerminated)));
        }
        if let Poll::Ready(Some(Err(error))) = self.run.poll(cx) {
            self.run.report(&error);
            return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        if !self.run.finished() {
            // First the body, so that a guest that still writes hears that nobody reads.
            self.body = WasiBody::default();
            self.run.finish_later();
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Body::Text(text) => Pin::new(text).poll_frame(cx).map_err(|never| match never {}),
            Body::Guest(guest) => guest.poll_guest(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Text(text) => text.is_end_stream(),
            Body::Guest(guest) => guest.run.finished() && guest.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Text(text) => text.size_hint(),
            Body::Guest(guest) => guest.body.size_hint(),
        }
    }
}
