//! Connections of clients: HTTP/1.1 and HTTP/2 with prior knowledge, straight to a handler.

use std::{future::poll_fn, io, pin::pin, sync::Arc, task::Poll, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode, Version, header::CONNECTION};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as _, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use wasmtime_wasi_http::{Error, WasiBody};

use super::{
    Body, Entered, Handler,
    ends::{End, Ends, HEAD, Head},
    plain, upgrade,
};
use crate::switch::Switch;

/// The longest head of a request.
const MAX_HEAD: usize = 64 << 10;

/// Whom a connection is for.
pub(crate) trait Target: Send + Sync + 'static {
    /// The handler of the next request; `current` served the last one.
    fn choose(&self, current: Option<&Arc<Handler>>) -> Option<Arc<Handler>>;
    /// Whether the client may still be served: policies change while connections last.
    fn permits(&self) -> bool;
}

/// Serves a connection until it ends. After `close` it is ended once it has nothing in flight.
pub(crate) async fn serve(
    stream: TcpStream,
    target: Arc<dyn Target>,
    first: Option<Arc<Handler>>,
    close: Switch,
    killed: Switch,
) {
    let _ = stream.set_nodelay(true);
    let current = Arc::new(Mutex::new(first));
    let head = Head::new();
    let mut ends = Ends::new(close, killed, head.clone());
    let timer = head.clone();
    let service = service_fn(move |request| {
        head.arrived();
        let (target, current) = (target.clone(), current.clone());
        async move {
            if !target.permits() {
                // Ends the connection without an answer.
                return Err(io::Error::from(io::ErrorKind::PermissionDenied));
            }
            Ok(answer(request, &*target, &current).await)
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(timer).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(MAX_HEAD as u32)
        .keep_alive_interval(Duration::from_secs(30));
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut closing = false;
    poll_fn(|cx| {
        match ends.look(cx) {
            End::Now => return Poll::Ready(()),
            End::Soon if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            End::Soon | End::No => {}
        }
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}

async fn answer(
    mut request: Request<Incoming>,
    target: &dyn Target,
    current: &Mutex<Option<Arc<Handler>>>,
) -> Response<Body> {
    let version = request.version();
    let chosen = choose(target, &mut current.lock());
    let Some((handler, entered)) = chosen else {
        let response = plain(StatusCode::SERVICE_UNAVAILABLE, "no ready endpoint");
        return closing(response, version);
    };
    if upgrade::asked(&request) {
        let socket = hyper::upgrade::on(&mut request);
        return upgrade::answer(request, socket, &handler, entered).await;
    }
    let request = request.map(|body| match body.is_end_stream() {
        true => WasiBody::default(),
        false => body.map_err(Error::from).boxed_unsync(),
    });
    let response = handler.handle(request, entered).await;
    if handler.draining.is_on() { closing(response, version) } else { response }
}

/// The handler of the next request, which its drain waits for from now on.
fn choose(target: &dyn Target, current: &mut Option<Arc<Handler>>) -> Option<(Arc<Handler>, Entered)> {
    let mut chosen = target.choose(current.as_ref())?;
    let entered = match chosen.enter() {
        Some(entered) => entered,
        // It began to drain this moment: another one, or the same if there is none.
        None => {
            chosen = target.choose(Some(&chosen))?;
            chosen.enter_anyway()
        }
    };
    if !current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &chosen)) {
        *current = Some(chosen.clone());
    }
    Some((chosen, entered))
}

/// Tells an HTTP/1 client to come back on a new connection, so that it loses no request.
fn closing(mut response: Response<Body>, version: Version) -> Response<Body> {
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
