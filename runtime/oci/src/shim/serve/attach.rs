//! Those who watch a container's output and give it input.

use bytes::Bytes;
use coracle_streaming::frame::{self, Frame};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::broadcast;

use super::{ShimProcess, State};

impl ShimProcess {
    /// Serves one of them until the container ends or the client hangs up.
    pub(super) async fn attached(
        &self,
        stream: BufReader<UnixStream>,
        mut output: broadcast::Receiver<(bool, Bytes)>,
        stdin: bool,
    ) -> anyhow::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let input = async {
            let mut target = self.stdin.lock().clone().filter(|_| stdin);
            while let Some(frame) = frame::read(&mut reader).await? {
                match (frame, &target, &self.terminal) {
                    (Frame::CloseStdin, ..) if stdin && self.config.stdin_once => {
                        target = None;
                        self.stdin.lock().take();
                    }
                    (Frame::Stdin(bytes), Some(target), _) => target.write_all(&bytes).await?,
                    (Frame::Resize(size), _, Some(terminal)) => terminal.resize(size)?,
                    _ => {}
                }
            }
            anyhow::Ok(())
        };
        let mut state = self.state.subscribe();
        let shown = async {
            loop {
                tokio::select! {
                    biased;
                    piece = output.recv() => {
                        // One who is too slow is let go.
                        let (error, bytes) = piece?;
                        let frame = if error { Frame::Stderr(bytes) } else { Frame::Stdout(bytes) };
                        frame::write(&mut writer, &frame).await?;
                    }
                    last = async { state.wait_for(State::is_final).await.map(|s| s.clone()) } => {
                        let words = serde_json::to_vec(&last?)?;
                        return anyhow::Ok(frame::write(&mut writer, &Frame::End(words.into())).await?);
                    }
                }
            }
        };
        tokio::pin!(input, shown);
        // The end of the input alone is no end; one who hangs up is noticed when something is to be shown.
        let result = tokio::select! {
            _ = &mut input => {
                if stdin && self.config.stdin_once {
                    self.stdin.lock().take();
                }
                shown.await
            }
            result = &mut shown => result,
        };
        if stdin && self.config.stdin_once {
            self.stdin.lock().take();
        }
        result
    }
}
