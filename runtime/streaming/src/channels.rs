//! `v5.channel.k8s.io` and `v4.channel.k8s.io`: the streams of a process over a WebSocket, one byte of channel before
//! each message.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use crate::server::{Backend, Call, Ended};
use crate::streams::{Far, Output, Size, streams};

/// What is spoken, best first. Version 5 can close one channel.
pub(crate) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Followed by the channel that is closed.
const CLOSE: u8 = 255;
/// "Normal closure".
const NORMAL: u16 = 1000;
/// How long a client may take to hang up when it was told the end.
const HANG_UP: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Terminal {
    width: u16,
    height: u16,
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut whole = BytesMut::with_capacity(bytes.len() + 1);
    whole.put_u8(channel);
    whole.put_slice(bytes);
    Message::Binary(whole.freeze())
}

/// How it ended, in the words of the API.
fn status(ended: &Ended) -> String {
    let status = match ended {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Err(words) => {
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": words,
            "details": {"causes": [{"message": words}]}, "code": 500})
        }
    };
    status.to_string()
}

/// What the process's input and terminal get.
struct Input {
    stdin: Option<mpsc::Sender<Bytes>>,
    sizes: mpsc::Sender<Size>,
    closable: bool,
}

impl Input {
    /// One message of the client.
    async fn take(&mut self, bytes: Bytes) {
        match bytes.first() {
            Some(&STDIN) => {
                if let Some(stdin) = &self.stdin
                    && bytes.len() > 1
                    && stdin.send(bytes.slice(1..)).await.is_err()
                {
                    self.stdin = None;
                }
            }
            Some(&RESIZE) => {
                if let Ok(terminal) = serde_json::from_slice::<Terminal>(bytes.get(1..).unwrap_or_default()) {
                    let size = Size { columns: terminal.width, rows: terminal.height };
                    // Of a flood of sizes the last ones may be lost.
                    let _ = self.sizes.try_send(size);
                }
            }
            Some(&CLOSE) if self.closable && bytes.get(1) == Some(&STDIN) => self.stdin = None,
            _ => {}
        }
    }
}

/// Serves an exec or attach until the process ends or the client is gone.
pub(crate) async fn serve(socket: WebSocket, closable: bool, backend: Arc<dyn Backend>, call: Call) {
    let (near, far) = streams();
    let Far { stdin, mut output, sizes } = far;
    let (wants_stdin, out, err) = match &call {
        Call::Exec { stdin, stdout, stderr, .. } | Call::Attach { stdin, stdout, stderr, .. } => {
            (*stdin, *stdout, *stderr)
        }
        Call::PortForward { .. } => return,
    };
    let mut input = Input { stdin: stdin.filter(|_| wants_stdin), sizes, closable };
    let (mut sender, mut receiver) = socket.split();
    let run = async move {
        match call {
            Call::Exec { container, command, tty, .. } => backend.exec(&container, command, tty, near).await,
            Call::Attach { container, stdin, .. } => backend.attach(&container, stdin, near).await,
            Call::PortForward { .. } => Err("no process".to_owned()),
        }
    };
    let show = async {
        while let Some(piece) = output.recv().await {
            let sent = match piece {
                Output::Stdout(bytes) if out => sender.send(message(STDOUT, &bytes)).await,
                Output::Stderr(bytes) if err => sender.send(message(STDERR, &bytes)).await,
                _ => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
    };
    let listen = async {
        while let Some(Ok(received)) = receiver.next().await {
            match received {
                Message::Binary(bytes) => input.take(bytes).await,
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let ended = tokio::select! {
        // All that it wrote goes out before how it ended.
        (ended, ()) = async { tokio::join!(run, show) } => ended,
        // Dropping the rest ends the process that nobody listens to.
        () = listen => return,
    };
    let _ = sender.send(message(ERROR, status(&ended).as_bytes())).await;
    let close = CloseFrame { code: NORMAL, reason: "".into() };
    let _ = sender.send(Message::Close(Some(close))).await;
    let _ = sender.close().await;
    // Closed on input that nobody read, the connection would be reset, and the client might not see how it ended.
    let unread = async { while let Some(Ok(_)) = receiver.next().await {} };
    let _ = tokio::time::timeout(HANG_UP, unread).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_the_words_of_the_api() {
        let of = |ended: Ended| serde_json::from_str::<serde_json::Value>(&status(&ended)).unwrap();
        assert_eq!(of(Ok(0))["status"], "Success");
        assert_eq!(of(Ok(7))["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        assert_eq!(of(Err("no such file".into()))["message"], "no such file");
    }
}
