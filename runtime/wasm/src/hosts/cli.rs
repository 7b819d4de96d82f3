//! wasi:cli: arguments, environment, and stdout and stderr that end in the container's log.

pub(crate) mod piped;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{io::AsyncWrite, sync::mpsc};
use wasmtime_wasi::{
    WasiCtxBuilder,
    cli::{IsTerminal, StdoutStream},
};
use wasmtime_wasi_io::{
    poll::Pollable,
    streams::{OutputStream, StreamResult},
};

use crate::{
    log::{Lines, Log, Stream},
    protocol::ContainerSpec,
};

/// Where an instance's streams lead.
pub(crate) enum Streams {
    /// No input, and output to the container's log.
    Log,
    /// As [`Streams::Log`], with an input.
    LogAndInput(mpsc::Receiver<Bytes>),
    /// To somebody who runs the program with arguments of their own.
    Piped(piped::Piped),
}

/// What one instance gets: nothing of the host's own environment.
pub(crate) fn prepare(
    wasi: &mut WasiCtxBuilder,
    spec: &ContainerSpec,
    env: &[(String, String)],
    log: &Arc<Log>,
    streams: Streams,
) {
    wasi.envs(env);
    if !spec.working_dir.is_empty() {
        wasi.initial_cwd(&spec.working_dir);
    }
    match streams {
        Streams::Piped(piped) => return piped.prepare(wasi),
        Streams::LogAndInput(stdin) => drop(wasi.stdin(piped::input(stdin))),
        Streams::Log => {}
    }
    wasi.stdout(LogOutput { log: log.clone(), stream: Stream::Stdout })
        .stderr(LogOutput { log: log.clone(), stream: Stream::Stderr });
    if spec.args.is_empty() {
        wasi.arg(&spec.name);
    } else {
        wasi.args(&spec.args);
    }
}

/// One of the two output streams of an instance.
struct LogOutput {
    log: Arc<Log>,
    stream: Stream,
}

impl IsTerminal for LogOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(LineWriter::new(self))
    }
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(LineWriter::new(self))
    }
}

/// Writes lines to the log; what is left when it is dropped is a line too.
struct LineWriter {
    log: Arc<Log>,
    lines: Lines,
}

impl LineWriter {
    fn new(output: &LogOutput) -> LineWriter {
        LineWriter { log: output.log.clone(), lines: Lines::new(output.stream) }
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.lines.flush(&self.log);
    }
}

impl AsyncWrite for LineWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let taken = ready!(this.log.poll_room(cx)).min(bytes.len());
        let taken_bytes = bytes.get(..taken).unwrap_or(bytes);
        this.lines.write(&this.log, taken_bytes);
        this.log.tell(this.lines.stream(), taken_bytes);
        Poll::Ready(Ok(taken))
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait::async_trait]
impl Pollable for LineWriter {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.log.poll_room(cx)).await;
    }
}

impl OutputStream for LineWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.lines.write(&self.log, &bytes);
        self.log.tell(self.lines.stream(), &bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.log.room().min(64 << 10))
    }
}
