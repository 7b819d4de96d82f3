//! A wasi:http handler whose bodies go on while they are read: gRPC in its four patterns, trailers, WebSockets. With the header
//! `x-to` it passes a request on, and its answer back.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use wstd::__internal::wasip2::http::{
    outgoing_handler,
    types::{Fields, IncomingBody, OutgoingBody, OutgoingRequest, Scheme},
};
use wstd::http::{
    Body, Client, Error, HeaderMap, Request, Response,
    body::{Bytes, Frame, HttpBody, util::combinators::UnsyncBoxBody},
};
use wstd::io::{AsyncInputStream, AsyncOutputStream, AsyncPollable};

#[wstd::http_server]
async fn main(mut request: Request<Body>) -> Result<Response<Body>, Error> {
    if request.headers().contains_key("x-to") && request.headers().contains_key("sec-websocket-version") {
        return socket(request).await;
    }
    if let Some(to) = request.headers_mut().remove("x-to") {
        let path = request.uri().path().to_owned();
        *request.uri_mut() = format!("{}{path}", to.to_str().unwrap_or_default()).parse()?;
        return Client::new().send(request).await;
    }
    let path = request.uri().path().to_owned();
    let kind = match path.as_str() {
        "/echo.Echo/Unary" => Kind::Unary,
        "/echo.Echo/ClientStream" => Kind::ClientStream,
        "/echo.Echo/ServerStream" => Kind::ServerStream,
        "/echo.Echo/Bidi" => Kind::Bidi,
        "/trailers" => Kind::Trailers,
        "/ws" => Kind::WebSocket,
        _ => return Ok(Response::builder().status(404).body(Body::empty())?),
    };
    let mut response = Response::builder();
    match kind {
        Kind::WebSocket => response = response.status(101),
        Kind::Trailers => {}
        _ => response = response.header("content-type", "application/grpc"),
    }
    let input = request.into_body().into_boxed_body();
    let body = Answer {
        input,
        kind,
        buffer: Vec::new(),
        kept: Vec::new(),
        out: VecDeque::new(),
        count: 0,
        trailers: HeaderMap::new(),
        ended: false,
    };
    Ok(response.body(Body::from_http_body(body))?)
}

/// Opens a WebSocket to whom the request is to be passed on, and joins both. (wstd's client answers only when it has sent
/// the whole body.)
async fn socket(request: Request<Body>) -> Result<Response<Body>, Error> {
    let (parts, body) = request.into_parts();
    let fields = Fields::new();
    for (name, value) in parts.headers.iter().filter(|(name, _)| name.as_str().starts_with("sec-")) {
        fields.append(name.as_str(), value.as_bytes())?;
    }
    let outgoing = OutgoingRequest::new(fields);
    let to = parts.headers["x-to"].to_str()?.trim_start_matches("http://").to_owned();
    let set = [
        outgoing.set_scheme(Some(&Scheme::Http)),
        outgoing.set_authority(Some(&to)),
        outgoing.set_path_with_query(Some(parts.uri.path())),
    ];
    assert!(set.iter().all(Result::is_ok), "{to}");
    let sending = outgoing.body().unwrap();
    let answer = outgoing_handler::handle(outgoing, None)?;
    let mut input = body.into_boxed_body();
    wstd::runtime::spawn(async move {
        let out = AsyncOutputStream::new(sending.write().unwrap());
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut input).poll_frame(cx)).await {
            let Ok(data) = frame.into_data() else { break };
            if out.write_all(&data).await.is_err() {
                break;
            }
        }
        drop(out);
        let _ = OutgoingBody::finish(sending, None);
    })
    .detach();
    AsyncPollable::new(answer.subscribe()).wait_for().await;
    let answer = answer.get().unwrap().unwrap()?;
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers().entries().into_iter().filter(|(name, _)| name.starts_with("sec-")) {
        response = response.header(name, value);
    }
    let body = answer.consume().unwrap();
    let frames = Body::from(AsyncInputStream::new(body.stream().unwrap())).into_boxed_body();
    Ok(response.body(Body::from_http_body(Received { frames, _of: body }))?)
}

/// What the peer sends; its stream goes before the body that it is of.
struct Received {
    frames: UnsyncBoxBody<Bytes, Error>,
    _of: IncomingBody,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.frames).poll_frame(cx)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Unary,
    ClientStream,
    ServerStream,
    Bidi,
    Trailers,
    WebSocket,
}

/// The body of an answer, made of that of the request as it comes.
struct Answer {
    input: UnsyncBoxBody<Bytes, Error>,
    kind: Kind,
    buffer: Vec<u8>,
    kept: Vec<u8>,
    out: VecDeque<Frame<Bytes>>,
    count: u32,
    trailers: HeaderMap,
    ended: bool,
}

fn message(text: &[u8]) -> Frame<Bytes> {
    let mut bytes = vec![0];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text);
    Frame::data(bytes.into())
}

impl Answer {
    fn takes(&mut self, data: &[u8]) {
        self.buffer.extend(data);
        match self.kind {
            Kind::Trailers => self.out.push_back(Frame::data(std::mem::take(&mut self.buffer).into())),
            Kind::WebSocket => while self.frame() {},
            _ => while self.rpc() {},
        }
    }

    /// One message of gRPC: a byte, a length, and so many bytes.
    fn rpc(&mut self) -> bool {
        let Some(head) = self.buffer.first_chunk::<5>() else { return false };
        let end = 5 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if self.buffer.len() < end {
            return false;
        }
        let text: Vec<u8> = self.buffer.drain(..end).skip(5).collect();
        self.count += 1;
        match self.kind {
            Kind::Bidi => self.out.push_back(message(&text)),
            Kind::ServerStream => self.out.extend(text.iter().map(|byte| message(&[*byte]))),
            _ => self.kept.extend(text),
        }
        true
    }

    /// One short frame of a WebSocket: text comes back, and so does the wish to close.
    fn frame(&mut self) -> bool {
        let Some(head) = self.buffer.first_chunk::<2>() else { return false };
        let (code, length) = (head[0], usize::from(head[1] & 0x7f));
        let end = 6 + length;
        if self.buffer.len() < end {
            return false;
        }
        let frame: Vec<u8> = self.buffer.drain(..end).collect();
        let mut answer = vec![code, length as u8];
        answer.extend(frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.out.push_back(Frame::data(answer.into()));
        self.ended |= code & 0x0f == 8;
        true
    }

    fn ends(&mut self) {
        self.ended = true;
        let mut last = HeaderMap::new();
        match self.kind {
            Kind::WebSocket => return,
            Kind::Trailers => last.extend(std::mem::take(&mut self.trailers)),
            Kind::Unary | Kind::ClientStream => self.out.push_back(message(&self.kept)),
            _ => {}
        }
        if self.kind != Kind::Trailers {
            last.insert("grpc-status", "0".parse().unwrap());
        }
        last.insert("x-count", self.count.into());
        self.out.push_back(Frame::trailers(last));
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if let Some(frame) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.input).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.takes(&data),
                    Err(frame) => self.trailers = frame.into_trailers().unwrap_or_default(),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.ends(),
            }
        }
    }
}
