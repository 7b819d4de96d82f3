//! Exec and attach: a connection that carries the streams of a program instead of calls.

use std::sync::Arc;

use bytes::Bytes;
use coracle_streaming::{
    Far, Output,
    frame::{self as stream_frame, Frame},
    streams,
};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Registry, done};
use crate::{
    container::Container,
    frame,
    protocol::{Ended, HostError, Message, Request},
};

/// Serves one exec or attach to its end.
pub(super) async fn serve(
    registry: &Registry,
    id: u64,
    request: Request,
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
) -> std::io::Result<()> {
    let container = match &request {
        Request::Exec { id, .. } | Request::Attach { id, .. } => registry.container(id),
        _ => return Ok(()),
    };
    let container = container.and_then(Container::if_running);
    let answer = |result| Message::Response { id, result };
    let container = match container {
        Ok(container) => container,
        Err(error) => return frame::write(writer, &answer(Err(error))).await,
    };
    frame::write(writer, &answer(Ok(done()))).await?;
    let (near, far) = streams();
    let run = async {
        match request {
            Request::Exec { args, artifact, .. } => container.exec(args, artifact, near).await,
            Request::Attach { stdin, .. } => container.attach(stdin, near).await,
            _ => Ok(0),
        }
    };
    carry(run, far, reader, writer).await
}

async fn carry(
    run: impl Future<Output = Result<i32, HostError>>,
    far: Far,
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
) -> std::io::Result<()> {
    let Far { mut stdin, mut output, sizes: _ } = far;
    let show = async {
        while let Some(piece) = output.recv().await {
            let frame = match piece {
                Output::Stdout(bytes) => Frame::Stdout(bytes),
                Output::Stderr(bytes) => Frame::Stderr(bytes),
            };
            stream_frame::write(writer, &frame).await?;
        }
        std::io::Result::Ok(writer)
    };
    let listen = async {
        while let Some(frame) = stream_frame::read(reader).await? {
            match frame {
                Frame::Stdin(bytes) => {
                    if let Some(to) = &stdin
                        && to.send(bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Frame::CloseStdin => stdin = None,
                _ => {}
            }
        }
        std::io::Result::Ok(())
    };
    let (ended, writer) = tokio::select! {
        both = async { tokio::join!(run, show) } => both,
        // Dropping the program ends it.
        gone = listen => return gone,
    };
    let ended = match ended {
        Ok(exit_code) => Ended { exit_code, error: None },
        Err(error) => Ended { exit_code: 255, error: Some(error.message) },
    };
    let words = Bytes::from(serde_json::to_vec(&ended).map_err(std::io::Error::other)?);
    stream_frame::write(writer?, &Frame::End(words)).await
}

impl Container {
    /// The container, if it runs.
    pub fn if_running(self: Arc<Container>) -> Result<Arc<Container>, HostError> {
        use crate::protocol::{ErrorCode, State};
        if matches!(self.status().state, State::Running { .. }) {
            return Ok(self);
        }
        let words = format!("container {} does not run", self.spec().name);
        Err(HostError::new(ErrorCode::FailedPrecondition, words))
    }
}
