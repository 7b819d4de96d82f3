//! The streams of one process, as channels between who runs it (near) and who uses it (far).

use bytes::Bytes;
use tokio::sync::mpsc;

/// How many pieces may wait in a channel: a slow reader slows the writer.
const DEPTH: usize = 32;

/// A piece of what a process has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

/// The side of who runs the process.
pub struct Near {
    /// What it reads; the end of the channel is the end of its input.
    pub stdin: mpsc::Receiver<Bytes>,
    /// What it writes. An error: nobody listens any more.
    pub output: mpsc::Sender<Output>,
    /// Sizes of its terminal.
    pub sizes: mpsc::Receiver<Size>,
}

/// The side of who uses the process.
pub struct Far {
    /// Dropped: the end of its input.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    pub output: mpsc::Receiver<Output>,
    pub sizes: mpsc::Sender<Size>,
}

/// Both sides of new streams.
pub fn streams() -> (Near, Far) {
    let (stdin_in, stdin) = mpsc::channel(DEPTH);
    let (output, output_out) = mpsc::channel(DEPTH);
    let (sizes_in, sizes) = mpsc::channel(DEPTH);
    (Near { stdin, output, sizes }, Far { stdin: Some(stdin_in), output: output_out, sizes: sizes_in })
}
