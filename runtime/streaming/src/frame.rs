//! Frames of streams on a local socket: one byte of kind, the length as a big-endian `u32`, the bytes.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::streams::{Near, Output, Size};

/// The longest frame, in bytes.
const MAX_FRAME: usize = 1 << 20;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Stdin(Bytes),
    /// The end of the input.
    CloseStdin,
    Resize(Size),
    Stdout(Bytes),
    Stderr(Bytes),
    /// The end of everything, in words of who runs the process.
    End(Bytes),
}

fn invalid(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words.to_owned())
}

/// Reads a frame; `None` where the stream ends between two.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let kind = match from.read_u8().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = from.read_u32().await? as usize;
    if length > MAX_FRAME {
        return Err(invalid("a frame is too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    let bytes = Bytes::from(bytes);
    Ok(Some(match (kind, bytes.as_ref()) {
        (0, _) => Frame::Stdin(bytes),
        (1, _) => Frame::CloseStdin,
        (2, [a, b, c, d]) => {
            Frame::Resize(Size { columns: u16::from_be_bytes([*a, *b]), rows: u16::from_be_bytes([*c, *d]) })
        }
        (3, _) => Frame::Stdout(bytes),
        (4, _) => Frame::Stderr(bytes),
        (5, _) => Frame::End(bytes),
        _ => return Err(invalid("a frame of an unknown kind")),
    }))
}

/// Writes a frame; what is longer than a frame may be goes out in several.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let size;
    let (kind, bytes): (u8, &[u8]) = match frame {
        Frame::Stdin(bytes) => (0, bytes),
        Frame::CloseStdin => (1, &[]),
        Frame::Resize(Size { columns, rows }) => {
            let ([a, b], [c, d]) = (columns.to_be_bytes(), rows.to_be_bytes());
            size = [a, b, c, d];
            (2, &size)
        }
        Frame::Stdout(bytes) => (3, bytes),
        Frame::Stderr(bytes) => (4, bytes),
        Frame::End(bytes) => (5, bytes),
    };
    let pieces = bytes.chunks(MAX_FRAME).chain(bytes.is_empty().then_some(&[][..]));
    for piece in pieces {
        to.write_u8(kind).await?;
        to.write_u32(u32::try_from(piece.len()).map_err(|_| invalid("a frame is too long"))?).await?;
        to.write_all(piece).await?;
    }
    to.flush().await
}

/// Carries streams over a socket until the other side says how it ended, or hangs up.
pub async fn carry<R, W>(reader: &mut R, writer: &mut W, mut near: Near) -> io::Result<Option<Bytes>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let send = async {
        let mut open = true;
        loop {
            tokio::select! {
                input = near.stdin.recv(), if open => match input {
                    Some(bytes) => write(writer, &Frame::Stdin(bytes)).await?,
                    None => {
                        open = false;
                        write(writer, &Frame::CloseStdin).await?;
                    }
                },
                Some(size) = near.sizes.recv() => write(writer, &Frame::Resize(size)).await?,
                else => return io::Result::Ok(()),
            }
        }
    };
    let output = near.output;
    let gone = output.clone();
    let receive = async {
        loop {
            let output = match read(reader).await? {
                None => return Ok(None),
                Some(Frame::End(words)) => return Ok(Some(words)),
                Some(Frame::Stdout(bytes)) => output.send(Output::Stdout(bytes)).await,
                Some(Frame::Stderr(bytes)) => output.send(Output::Stderr(bytes)).await,
                Some(_) => return Err(invalid("a frame of the wrong direction")),
            };
            if output.is_err() {
                return Ok(None);
            }
        }
    };
    tokio::pin!(send, receive);
    let mut sending = true;
    loop {
        tokio::select! {
            received = &mut receive => return received,
            // Input that cannot be sent ends nothing: what was written before still comes.
            _ = &mut send, if sending => sending = false,
            // Nobody listens any more.
            () = gone.closed() => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_as_they_went() {
        let frames = [
            Frame::Stdin(Bytes::from_static(b"in")),
            Frame::CloseStdin,
            Frame::Resize(Size { columns: 300, rows: 24 }),
            Frame::Stdout(Bytes::new()),
            Frame::Stderr(Bytes::from_static(b"err")),
            Frame::End(Bytes::from_static(b"{}")),
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            write(&mut wire, frame).await.unwrap();
        }
        let mut wire = wire.as_slice();
        for frame in frames {
            assert_eq!(read(&mut wire).await.unwrap(), Some(frame));
        }
        assert_eq!(read(&mut wire).await.unwrap(), None);
        for bad in [&[9, 0, 0, 0, 0][..], &[0, 0xff, 0, 0, 0], &[2, 0, 0, 0, 1, 7], &[0, 0, 0, 0, 5, 1]] {
            assert!(read(&mut &*bad).await.is_err(), "{bad:?}");
        }
    }
}
