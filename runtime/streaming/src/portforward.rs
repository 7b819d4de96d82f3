//! Port forwarding over a WebSocket: SPDY frames tunnelled in its messages (`SPDY/3.1+portforward.k8s.io`, what kubectl
//! speaks), or two channels a port (`v4.channel.k8s.io`, what other clients speak).

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::server::Backend;
use crate::spdy::{Decoder, Frame, Headers};

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
pub(crate) const PROTOCOLS: [&str; 4] =
    [TUNNEL, "v4.channel.k8s.io", "portforward.k8s.io", "v5.channel.k8s.io"];

/// The most streams of one client.
const MAX_STREAMS: usize = 2048;
/// How many pieces may wait for a connection.
const DEPTH: usize = 64;
/// How many frames may wait to be sent.
const OUTBOX: usize = 256;

/// Serves until the client is gone.
pub(crate) async fn serve(
    socket: WebSocket,
    protocol: &str,
    backend: Arc<dyn Backend>,
    sandbox: String,
    ports: Vec<u16>,
) {
    let result = match protocol {
        TUNNEL => tunnel(socket, backend, sandbox).await,
        _ => by_channels(socket, backend, sandbox, ports).await,
    };
    if let Err(error) = result {
        tracing::debug!("port forwarding ended: {error:#}");
    }
}

/// A stream that the client has opened.
enum Stream {
    /// For words about a connection that fails.
    Error,
    Data(mpsc::Sender<Bytes>),
}

struct Tunnel {
    backend: Arc<dyn Backend>,
    sandbox: String,
    out: mpsc::Sender<Frame>,
    streams: HashMap<u32, Stream>,
    /// Error streams by their request.
    errors: HashMap<String, u32>,
}

async fn tunnel(socket: WebSocket, backend: Arc<dyn Backend>, sandbox: String) -> anyhow::Result<()> {
    let (mut sender, mut receiver) = socket.split();
    let (out, mut outbox) = mpsc::channel::<Frame>(OUTBOX);
    let send = async move {
        let mut encoder = crate::spdy::Encoder::default();
        while let Some(frame) = outbox.recv().await {
            sender.send(Message::Binary(encoder.encode(&frame))).await?;
        }
        anyhow::Ok(())
    };
    let mut tunnel = Tunnel { backend, sandbox, out, streams: HashMap::new(), errors: HashMap::new() };
    let receive = async {
        let mut decoder = Decoder::default();
        while let Some(message) = receiver.next().await {
            match message? {
                Message::Binary(bytes) => {
                    for frame in decoder.decode(&bytes)? {
                        tunnel.take(frame).await?;
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        sent = send => sent,
        received = receive => received,
    }
}

fn header<'a>(headers: &'a Headers, name: &str) -> &'a str {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.as_str())
}

impl Tunnel {
    async fn take(&mut self, frame: Frame) -> anyhow::Result<()> {
        match frame {
            Frame::SynStream { id, headers, fin } => self.open(id, &headers, fin).await,
            Frame::Data { id, bytes, fin } => {
                if let Some(Stream::Data(to)) = self.streams.get(&id)
                    && !bytes.is_empty()
                {
                    // One whose connection is gone takes no more; its end has been told.
                    let _ = to.send(bytes).await;
                }
                if fin {
                    self.streams.remove(&id);
                }
                Ok(())
            }
            Frame::Reset { id } => {
                self.streams.remove(&id);
                Ok(())
            }
            Frame::Ping { id } => Ok(self.out.send(Frame::Ping { id }).await?),
            Frame::GoAway => anyhow::bail!("the client goes away"),
            Frame::SynReply { .. } | Frame::Other => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, headers: &Headers, fin: bool) -> anyhow::Result<()> {
        if self.streams.len() >= MAX_STREAMS || self.errors.len() >= MAX_STREAMS {
            return Ok(self.out.send(Frame::Reset { id }).await?);
        }
        self.out.send(Frame::SynReply { id }).await?;
        let request = header(headers, "requestID").to_owned();
        match header(headers, "streamType") {
            "error" => {
                if !fin {
                    self.streams.insert(id, Stream::Error);
                }
                self.errors.insert(request, id);
            }
            "data" => {
                let port = header(headers, "port").parse::<u16>().unwrap_or(0);
                let (to, from) = mpsc::channel(DEPTH);
                if !fin {
                    self.streams.insert(id, Stream::Data(to));
                }
                let error = self.errors.remove(&request);
                let (backend, sandbox, out) = (self.backend.clone(), self.sandbox.clone(), self.out.clone());
                tokio::spawn(async move {
                    let words = forward(&*backend, &sandbox, port, id, from, &out).await.err();
                    let fin = |id, bytes| Frame::Data { id, bytes, fin: true };
                    let _ = out.send(fin(id, Bytes::new())).await;
                    if let Some(error) = error {
                        let _ = out.send(fin(error, words.unwrap_or_default().into())).await;
                    }
                });
            }
            _ => self.out.send(Frame::Reset { id }).await?,
        }
        Ok(())
    }
}

/// Copies both ways until both are at their end.
async fn forward(
    backend: &dyn Backend,
    sandbox: &str,
    port: u16,
    id: u32,
    mut from: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<Frame>,
) -> Result<(), String> {
    let connected = backend.connect(sandbox, port).await;
    let connection = connected.map_err(|e| format!("connecting to port {port} in the pod: {e}"))?;
    let (mut reader, mut writer) = tokio::io::split(connection);
    let up = async {
        while let Some(bytes) = from.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            let bytes = Bytes::copy_from_slice(buffer.get(..read).unwrap_or_default());
            if out.send(Frame::Data { id, bytes, fin: false }).await.is_err() {
                return;
            }
        }
    };
    // The pod's end is the connection's; what the client still sends has nowhere to go.
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
    Ok(())
}

/// Channel 2n is the data of the n-th port, 2n+1 its errors; each begins with the port's number.
async fn by_channels(
    socket: WebSocket,
    backend: Arc<dyn Backend>,
    sandbox: String,
    ports: Vec<u16>,
) -> anyhow::Result<()> {
    anyhow::ensure!(!ports.is_empty() && ports.len() <= 100, "between 1 and 100 ports are forwarded");
    let (mut sender, mut receiver) = socket.split();
    let (out, mut outbox) = mpsc::channel::<(usize, Bytes)>(OUTBOX);
    for (index, port) in ports.iter().enumerate() {
        for channel in [index * 2, index * 2 + 1] {
            out.send((channel, Bytes::copy_from_slice(&port.to_le_bytes()))).await?;
        }
    }
    let mut inputs = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (to, from) = mpsc::channel(DEPTH);
        inputs.push(to);
        let (backend, sandbox, out) = (backend.clone(), sandbox.clone(), out.clone());
        tokio::spawn(async move {
            let (frames, mut sent) = mpsc::channel::<Frame>(DEPTH);
            let copy = forward(&*backend, &sandbox, port, 0, from, &frames);
            let relay = async {
                while let Some(frame) = sent.recv().await {
                    if let Frame::Data { bytes, .. } = frame
                        && out.send((index * 2, bytes)).await.is_err()
                    {
                        return;
                    }
                }
            };
            let ended = tokio::select! {
                ended = copy => ended,
                () = relay => Ok(()),
            };
            // What was copied and not yet relayed.
            while let Ok(Frame::Data { bytes, .. }) = sent.try_recv() {
                let _ = out.send((index * 2, bytes)).await;
            }
            if let Err(words) = ended {
                let _ = out.send((index * 2 + 1, words.into())).await;
            }
        });
    }
    drop(out);
    let send = async move {
        while let Some((channel, bytes)) = outbox.recv().await {
            let mut whole = BytesMut::with_capacity(bytes.len() + 1);
            whole.put_u8(u8::try_from(channel)?);
            whole.put_slice(&bytes);
            sender.send(Message::Binary(whole.freeze())).await?;
        }
        let _ = sender.close().await;
        anyhow::Ok(())
    };
    let receive = async {
        while let Some(message) = receiver.next().await {
            match message? {
                Message::Binary(bytes) => {
                    let channel = bytes.first().copied().map_or(0, usize::from);
                    if let Some(to) = inputs.get(channel / 2).filter(|_| channel % 2 == 0 && bytes.len() > 1)
                    {
                        let _ = to.send(bytes.slice(1..)).await;
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        sent = send => sent,
        received = receive => received,
    }
}
