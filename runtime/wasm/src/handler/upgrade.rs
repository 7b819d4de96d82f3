//! WebSockets. wasi:http has no word for an upgrade: here the body of such a request is what the client sends, and the
//! body of an answer with status 101 is what it receives, frame by frame as RFC 6455 has them.

use aws_lc_rs::digest;
use base64::Engine as _;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use wasmtime_wasi_http::Error;

use super::{Body, Entered, Handler};

/// How many bytes are read from a client at once.
const CHUNK: usize = 16 << 10;
/// How many such pieces may wait for a guest.
pub(crate) const DEPTH: usize = 8;

/// Whether a request asks for a WebSocket.
pub(super) fn asked(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has(headers, UPGRADE, "websocket")
        && has(headers, CONNECTION, "upgrade")
}

fn has(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
}

/// Lets a guest answer, and joins its bodies with the client where it says 101.
pub(super) async fn answer(
    request: Request<Incoming>,
    socket: OnUpgrade,
    handler: &Arc<Handler>,
    entered: Entered,
) -> Response<Body> {
    let accept = request.headers().get(SEC_WEBSOCKET_KEY).map(accept);
    let (tell, received) = mpsc::channel::<Result<Frame<Bytes>, Error>>(DEPTH);
    let request = request.map(|_| StreamBody::new(ReceiverStream::new(received)).boxed_unsync());
    let response = handler.handle(request, entered).await;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let killed = handler.killed.clone();
    tokio::spawn(async move {
        let Ok(socket) = socket.await else { return };
        let (reader, writer) = tokio::io::split(TokioIo::new(socket));
        // The guest ends it: with its own body, or by reading the end of the client's.
        let both = async {
            let writing = write(body, writer);
            tokio::pin!(writing);
            tokio::select! {
                () = &mut writing => return,
                () = read(reader, tell) => {}
            }
            writing.await;
        };
        tokio::select! {
            () = both => {}
            () = killed.turned_on() => {}
        }
    });
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let (Some(accept), false) = (accept, parts.headers.contains_key(SEC_WEBSOCKET_ACCEPT)) {
        parts.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Response::from_parts(parts, Body::text(""))
}

/// The proof that the server has read the key (RFC 6455, 4.2.2).
pub(crate) fn accept(key: &HeaderValue) -> HeaderValue {
    let mut text = key.as_bytes().to_vec();
    text.extend(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    let encoded = base64::engine::general_purpose::STANDARD.encode(digest);
    HeaderValue::try_from(encoded).unwrap_or(HeaderValue::from_static(""))
}

/// What a peer sends, to its end, or until nobody wants it any more.
pub(crate) async fn read(
    mut reader: ReadHalf<TokioIo<Upgraded>>,
    tell: mpsc::Sender<Result<Frame<Bytes>, Error>>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            read = reader.read(&mut buffer) => read,
            () = tell.closed() => return,
        };
        let Ok(read) = read else { return };
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return };
        if tell.send(Ok(Frame::data(Bytes::copy_from_slice(bytes)))).await.is_err() {
            return;
        }
    }
}

/// What a guest sends, to its end.
pub(crate) async fn write(
    mut body: impl hyper::body::Body<Data = Bytes> + Unpin,
    mut writer: WriteHalf<TokioIo<Upgraded>>,
) {
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(bytes) = frame.into_data() else { break };
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_specification_is_accepted() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
