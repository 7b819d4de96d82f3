//! Streams of a program that somebody is at: they end in channels, not in the log.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use coracle_streaming::Output;
use futures::StreamExt;
use tokio::{io::AsyncWrite, sync::mpsc};
use tokio_util::{io::StreamReader, sync::PollSender};
use wasmtime_wasi::{
    WasiCtxBuilder,
    cli::{AsyncStdinStream, IsTerminal, StdoutStream},
};
use wasmtime_wasi_io::{
    poll::Pollable,
    streams::{OutputStream, StreamError, StreamResult},
};

/// The most that a guest writes at once, in bytes.
const PIECE: usize = 64 << 10;

/// What one instance gets instead of the container's own arguments and streams.
pub(crate) struct Piped {
    pub args: Vec<String>,
    pub stdin: mpsc::Receiver<Bytes>,
    pub output: mpsc::Sender<Output>,
}

impl Piped {
    /// Sets arguments and streams.
    pub fn prepare(self, wasi: &mut WasiCtxBuilder) {
        let stream = |stderr| Channel { output: self.output.clone(), stderr };
        wasi.args(&self.args).stdin(input(self.stdin)).stdout(stream(false)).stderr(stream(true));
    }
}

/// What comes through a channel as a guest's input.
pub(crate) fn input(stdin: mpsc::Receiver<Bytes>) -> AsyncStdinStream {
    let pieces = futures::stream::unfold(stdin, |mut stdin| async move {
        stdin.recv().await.map(|bytes| (io::Result::Ok(bytes), stdin))
    });
    AsyncStdinStream::new(StreamReader::new(Held(pieces.boxed())))
}

/// A stream that may be shared between threads because it is only ever used by one that holds it alone.
struct Held(futures::stream::BoxStream<'static, io::Result<Bytes>>);

// SAFETY: `poll_next` takes the stream by unique reference, and nothing reaches it by a shared one.
unsafe impl Sync for Held {}

impl futures::Stream for Held {
    type Item = io::Result<Bytes>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

/// One of the two output streams.
struct Channel {
    output: mpsc::Sender<Output>,
    stderr: bool,
}

impl IsTerminal for Channel {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Channel {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Writer { output: PollSender::new(self.output.clone()), stderr: self.stderr })
    }
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Pieces { output: self.output.clone(), stderr: self.stderr, waiting: VecDeque::new() })
    }
}

fn piece(stderr: bool, bytes: Bytes) -> Output {
    if stderr { Output::Stderr(bytes) } else { Output::Stdout(bytes) }
}

/// For the asynchronous interfaces.
struct Writer {
    output: PollSender<Output>,
    stderr: bool,
}

fn gone<E>(_: E) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "nobody listens any more")
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.output.poll_reserve(cx)).map_err(gone)?;
        let taken = bytes.get(..PIECE).unwrap_or(bytes);
        let piece = piece(self.stderr, Bytes::copy_from_slice(taken));
        self.output.send_item(piece).map_err(gone)?;
        Poll::Ready(Ok(taken.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// For the 0.2 interfaces.
struct Pieces {
    output: mpsc::Sender<Output>,
    stderr: bool,
    /// What the other stream took the room of.
    waiting: VecDeque<Bytes>,
}

impl Pieces {
    fn send_waiting(&mut self) -> StreamResult<()> {
        while let Some(bytes) = self.waiting.front() {
            match self.output.try_send(piece(self.stderr, bytes.clone())) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(mpsc::error::TrySendError::Full(_)) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(StreamError::Closed),
            }
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for Pieces {
    async fn ready(&mut self) {
        // A closed channel is ready too: the next write says so.
        let _ = self.output.reserve().await;
    }
}

impl OutputStream for Pieces {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.waiting.push_back(bytes);
        self.send_waiting()
    }
    fn flush(&mut self) -> StreamResult<()> {
        self.send_waiting()
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        self.send_waiting()?;
        if self.output.is_closed() {
            return Err(StreamError::Closed);
        }
        Ok(if self.waiting.is_empty() && self.output.capacity() > 0 { PIECE } else { 0 })
    }
}
