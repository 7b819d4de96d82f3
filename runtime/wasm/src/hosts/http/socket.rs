//! WebSockets that guests open. As for those that they serve (see `handler::upgrade`), the bodies are the two directions:
//! a GET with `Sec-WebSocket-Version` is sent as a request for an upgrade, which a guest has no words for; where the answer
//! is 101, the body of the request goes on to the peer and that of the answer is what the peer sends, in frames as RFC
//! 6455 has them.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::{Error, WasiBody};

use super::Io;
use crate::handler::upgrade::{DEPTH, accept, read, write};

/// How long a peer has for what a guest wrote last, once the guest is gone.
const LAST: Duration = Duration::from_secs(1);

/// What a guest sends, and how the peer has to prove that it has understood.
pub(super) struct Wish {
    sending: WasiBody,
    accept: HeaderValue,
}

/// Whether a request asks for a WebSocket; then it asks in HTTP's words, and has no body of its own.
pub(super) fn wish(request: &mut Request<WasiBody>) -> Result<Option<Wish>, Error> {
    if request.method() != Method::GET || !request.headers().contains_key(SEC_WEBSOCKET_VERSION) {
        return Ok(None);
    }
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if !headers.contains_key(SEC_WEBSOCKET_KEY) {
        let mut key = [0; 16];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| Error::InternalError(None))?;
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        let key = HeaderValue::try_from(key).map_err(|_| Error::InternalError(None))?;
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    let accept = headers.get(SEC_WEBSOCKET_KEY).map(accept).ok_or(Error::InternalError(None))?;
    headers.remove(http::header::CONTENT_LENGTH);
    *request.version_mut() = Version::HTTP_11;
    let none = Empty::new().map_err(|never| match never {}).boxed_unsync();
    Ok(Some(Wish { sending: std::mem::replace(request.body_mut(), none), accept }))
}

/// Joins the bodies with the peer where it has agreed, for the life of the guest; any other answer is one as usual.
pub(super) fn opened(
    wish: Wish,
    mut response: Response<hyper::body::Incoming>,
    life: CancellationToken,
) -> Result<(Response<WasiBody>, Io), Error> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let response = response.map(|body| body.map_err(Error::from).boxed_unsync());
        return Ok((response, Box::new(async { Ok(()) })));
    }
    if response.headers().get(SEC_WEBSOCKET_ACCEPT) != Some(&wish.accept) {
        return Err(Error::HttpUpgradeFailed);
    }
    let socket = hyper::upgrade::on(&mut response);
    let (tell, received) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        let Ok(socket) = socket.await else { return };
        let (reader, writer) = tokio::io::split(TokioIo::new(socket));
        // The guest ends it with its own body, or by not being there any more; the peer by its end.
        let gone = async {
            life.cancelled().await;
            tokio::time::sleep(LAST).await;
        };
        tokio::select! {
            _ = futures::future::join(write(wish.sending, writer), read(reader, tell)) => {}
            () = gone => {}
        }
    });
    let headers = response.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    let body = StreamBody::new(ReceiverStream::<Result<hyper::body::Frame<Bytes>, Error>>::new(received));
    Ok((response.map(|_| body.boxed_unsync()), Box::new(async { Ok(()) })))
}
