//! Frames on a stream: a big-endian `u32` length and a postcard body of at most [`MAX_FRAME`] bytes.

use std::{io, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
};

use crate::protocol::{MAX_FRAME, OLDEST, PREAMBLE};

/// The other side speaks another version, which this one does not.
#[derive(Debug, thiserror::Error)]
#[error(
    "the other side speaks {theirs:02x?}, this one {PREAMBLE:02x?}: not a wasm host, or one of another version"
)]
pub(crate) struct Stranger {
    pub theirs: [u8; 4],
    /// The process that listens, where the kernel says so.
    pub pid: Option<i32>,
}

/// Connects to a host, in the version that both speak: this one's, or an older one that still serves.
pub(crate) async fn connect(path: &Path) -> io::Result<(UnixStream, u8)> {
    let mut words = PREAMBLE;
    loop {
        let mut stream = UnixStream::connect(path).await?;
        stream.write_all(&words).await?;
        let mut theirs = [0; 4];
        stream.read_exact(&mut theirs).await?;
        let ([.., asked], [.., version]) = (words, theirs);
        if theirs == words {
            return Ok((stream, version));
        }
        let known = theirs[..3] == PREAMBLE[..3] && version >= OLDEST && version < asked;
        if !known {
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            return Err(io::Error::other(Stranger { theirs, pid }));
        }
        words = theirs;
    }
}

/// Says which protocol this side speaks, and checks what the other says.
pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    stream.write_all(&PREAMBLE).await?;
    let mut theirs = [0; 4];
    stream.read_exact(&mut theirs).await?;
    if theirs != PREAMBLE {
        return Err(io::Error::other(Stranger { theirs, pid: None }));
    }
    Ok(())
}

/// The next frame; `None` at the end of the stream.
pub(crate) async fn read<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let length = match reader.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_FRAME {
        return Err(io::Error::other(format!("a frame of {length} bytes; {MAX_FRAME} is the most")));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    postcard::from_bytes(&body)
        .map(Some)
        .map_err(|error| io::Error::other(format!("a frame that is no message: {error}")))
}

/// One frame; an error when it would be too long.
pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = postcard::to_extend(message, vec![0; 4])
        .map_err(|error| io::Error::other(format!("encoding a message: {error}")))?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::other(format!("a frame of {length} bytes; {MAX_FRAME} is the most")));
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// Writes one frame.
pub(crate) async fn write<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> io::Result<()> {
    writer.write_all(&encode(message)?).await
}
