//! Requests whose bodies go on while they are answered: HTTP/2, trailers, gRPC in its four patterns, WebSockets.

use std::net::SocketAddrV4;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{Host, Result, SOON, exit};

type Pieces = ReceiverStream<Result<Frame<Bytes>, std::convert::Infallible>>;
type Sending = mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>;

/// A pod that serves the guest `streams`.
async fn serving(host: &Host, name: &str) -> Result<(SocketAddrV4, String)> {
    let pod = host.pod(name).await?;
    let spec = host.spec(&pod, "main", "streams", &[]);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    Ok((SocketAddrV4::new(pod.pod_ip, 8080), id))
}

async fn connect(to: SocketAddrV4) -> Result<SendRequest<StreamBody<Pieces>>> {
    let stream = TokioIo::new(TcpStream::connect(to).await?);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One call: what is sent, and what comes back.
struct Call {
    send: Option<Sending>,
    body: Incoming,
    buffer: BytesMut,
    trailers: HeaderMap,
}

impl Call {
    async fn begin(
        to: SocketAddrV4,
        path: &str,
        through: Option<SocketAddrV4>,
        first: &[&str],
    ) -> Result<Call> {
        let mut sender = connect(through.unwrap_or(to)).await?;
        let (send, pieces) = mpsc::channel(16);
        let host = through.unwrap_or(to);
        let mut request =
            Request::post(format!("http://{host}{path}")).header("content-type", "application/grpc");
        if through.is_some() {
            request = request.header("x-to", format!("http://{to}"));
        }
        let mut call = Some(send);
        for text in first {
            say(&call, text).await?;
        }
        if through.is_some() {
            call = None;
        }
        let response = sender.send_request(request.body(StreamBody::new(ReceiverStream::new(pieces)))?);
        let response = tokio::time::timeout(SOON, response).await??;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        Ok(Call {
            send: call,
            body: response.into_body(),
            buffer: BytesMut::new(),
            trailers: HeaderMap::new(),
        })
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    return Ok(Some(String::from_utf8(self.buffer.split_to(length).to_vec())?));
                }
            }
            match tokio::time::timeout(SOON, self.body.frame()).await? {
                None => return Ok(None),
                Some(frame) => match frame?.into_data() {
                    Ok(data) => self.buffer.extend(data),
                    Err(frame) => self.trailers = frame.into_trailers().unwrap_or_default(),
                },
            }
        }
    }

    /// What is left; the status has to be good.
    async fn rest(mut self) -> Result<Vec<String>> {
        self.send = None;
        let mut all = Vec::new();
        while let Some(text) = self.next().await? {
            all.push(text);
        }
        anyhow::ensure!(self.trailers.get("grpc-status").is_some_and(|s| s == "0"), "{:?}", self.trailers);
        Ok(all)
    }
}

async fn say(send: &Option<Sending>, text: &str) -> Result {
    let mut bytes = vec![0];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
    let send = send.as_ref().ok_or_else(|| anyhow::anyhow!("the request has ended"))?;
    Ok(send.send(Ok(Frame::data(bytes.into()))).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_in_its_four_patterns() -> Result {
    let host = Host::start().await?;
    let (at, _) = serving(&host, "grpc").await?;
    let call = Call::begin(at, "/echo.Echo/Unary", None, &["one"]);
    // A handler may answer before it has read anything; what is sent ends with `rest`.
    assert_eq!(call.await?.rest().await?, ["one"]);
    assert_eq!(
        Call::begin(at, "/echo.Echo/ClientStream", None, &["a", "b", "c"]).await?.rest().await?,
        ["abc"]
    );
    assert_eq!(
        Call::begin(at, "/echo.Echo/ServerStream", None, &["xyz"]).await?.rest().await?,
        ["x", "y", "z"]
    );
    let mut call = Call::begin(at, "/echo.Echo/Bidi", None, &[]).await?;
    for text in ["ping", "pong", "ping"] {
        // Each is answered before the next is sent.
        say(&call.send, text).await?;
        assert_eq!(call.next().await?.as_deref(), Some(text));
    }
    assert!(call.rest().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_calls_grpc_too() -> Result {
    let host = Host::start().await?;
    let (at, _) = serving(&host, "callee").await?;
    let (through, _) = serving(&host, "caller").await?;
    for (path, said, expected) in [
        ("/echo.Echo/Unary", vec!["one"], vec!["one"]),
        ("/echo.Echo/ClientStream", vec!["a", "b"], vec!["ab"]),
        ("/echo.Echo/ServerStream", vec!["xy"], vec!["x", "y"]),
        ("/echo.Echo/Bidi", vec!["p", "q"], vec!["p", "q"]),
    ] {
        assert_eq!(Call::begin(at, path, Some(through), &said).await?.rest().await?, expected, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_go_in_and_out() -> Result {
    let host = Host::start().await?;
    let (at, _) = serving(&host, "trailers").await?;
    let mut sender = connect(at).await?;
    let (send, pieces) = mpsc::channel(4);
    let trailers: HeaderMap =
        [(http::HeaderName::from_static("x-sum"), http::HeaderValue::from_static("6"))].into_iter().collect();
    send.send(Ok(Frame::data("abc".into()))).await?;
    send.send(Ok(Frame::trailers(trailers))).await?;
    drop(send);
    let request =
        Request::post(format!("http://{at}/trailers")).body(StreamBody::new(ReceiverStream::new(pieces)))?;
    let answer =
        tokio::time::timeout(SOON, sender.send_request(request)).await??.into_body().collect().await?;
    assert_eq!(answer.trailers().and_then(|t| t.get("x-sum")).map(|v| v.as_bytes()), Some(&b"6"[..]));
    assert_eq!(answer.to_bytes(), "abc");
    Ok(())
}

/// A short frame of a client: masked, as all of theirs are.
fn frame(code: u8, text: &str) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x80 | code, 0x80 | text.len() as u8];
    frame.extend(mask);
    frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

async fn opened(at: SocketAddrV4, through: Option<SocketAddrV4>) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(through.unwrap_or(at)).await?;
    let to = through.map(|_| format!("x-to: http://{at}\r\n")).unwrap_or_default();
    let head = format!(
        "GET /ws HTTP/1.1\r\nhost: test\r\n{to}connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tokio::time::timeout(SOON, stream.read_u8()).await??);
    }
    let answer = String::from_utf8(answer)?.to_lowercase();
    for words in [
        "101 switching protocols",
        "upgrade: websocket",
        "connection: upgrade",
        "s3pplmbitxaq9kygzzhzrbk+xoo=",
    ] {
        anyhow::ensure!(answer.contains(words), "{answer}");
    }
    Ok(stream)
}

async fn echoed(stream: &mut TcpStream, code: u8, text: &str) -> Result {
    stream.write_all(&frame(code, text)).await?;
    let mut answer = vec![0; 2 + text.len()];
    tokio::time::timeout(SOON, stream.read_exact(&mut answer)).await??;
    anyhow::ensure!(answer == [&[0x80 | code, text.len() as u8], text.as_bytes()].concat(), "{answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn web_sockets_are_bodies() -> Result {
    let host = Host::start().await?;
    let (at, id) = serving(&host, "sockets").await?;
    let mut first = opened(at, None).await?;
    let mut second = opened(at, None).await?;
    for text in ["hello", "again", "and again"] {
        echoed(&mut first, 1, text).await?;
        echoed(&mut second, 1, text).await?;
    }
    // The guest closes.
    echoed(&mut first, 8, "\u{3}\u{3}").await?;
    assert_eq!(tokio::time::timeout(SOON, first.read(&mut [0; 1])).await??, 0);
    // A client that goes away ends its request; what is left ends with the container's grace.
    drop(second);
    let _third = opened(at, None).await?;
    assert_eq!(exit(&host.client.stop_container(&id, 300).await?.state), (137, "Error"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_open_web_sockets() -> Result {
    let host = Host::start().await?;
    let (at, _) = serving(&host, "callee").await?;
    let (through, caller) = serving(&host, "caller").await?;
    let mut first = opened(at, Some(through)).await?;
    let mut second = opened(at, Some(through)).await?;
    for text in ["hello", "again"] {
        echoed(&mut first, 1, text).await?;
        echoed(&mut second, 1, text).await?;
    }
    // The peer closes, and the guest passes that on.
    echoed(&mut first, 8, "\u{3}\u{3}").await?;
    assert_eq!(tokio::time::timeout(SOON, first.read(&mut [0; 1])).await??, 0);
    // A peer that knows no WebSockets answers as usual.
    let mut plain = TcpStream::connect(through).await?;
    let asks = format!(
        "GET /nothing HTTP/1.1\r\nhost: test\r\nx-to: http://{at}\r\nsec-websocket-version: 13\r\n\r\n"
    );
    plain.write_all(asks.as_bytes()).await?;
    let mut answer = [0; 12];
    tokio::time::timeout(SOON, plain.read_exact(&mut answer)).await??;
    assert_eq!(&answer, b"HTTP/1.1 404");
    // A guest that is gone leaves nothing open: its own client sees the end.
    host.client.stop_container(&caller, 300).await?;
    assert_eq!(tokio::time::timeout(SOON, second.read(&mut [0; 1])).await?.unwrap_or_default(), 0);
    Ok(())
}
