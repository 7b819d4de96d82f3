//! As much of SPDY/3.1 as port forwarding needs: streams, data, pings. No flow control, which its clients do without.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress};

/// Names and values.
pub type Headers = Vec<(String, String)>;

/// The longest frame, in bytes.
const MAX_FRAME: usize = 4 << 20;
/// The most that the headers of a stream unpack to, in bytes.
const MAX_HEADERS: usize = 64 << 10;
const FIN: u8 = 1;
const VERSION: u16 = 3;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        id: u32,
    },
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// One that means nothing here: settings, windows, more headers.
    Other,
}

/// Why bytes are no frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a frame of type {0} is malformed")]
    Malformed(u16),
    #[error("the headers of a stream cannot be unpacked")]
    Headers,
}

/// Words that the compression of headers begins with (SPDY/3, 2.6.10.1), each after its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// What follows them, without lengths.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
    Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,\
    utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        dictionary.put_u32(u32::try_from(word.len()).unwrap_or_default());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(REST.as_bytes());
    dictionary
}

/// Bytes into frames.
pub struct Decoder {
    buffer: BytesMut,
    /// One stream of compression for all headers of a connection.
    headers: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), headers: Decompress::new(true) }
    }
}

impl Decoder {
    /// The frames that are whole with these bytes.
    ///
    /// # Errors
    /// For what is no SPDY: the connection is of no more use.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, Error> {
        self.buffer.extend_from_slice(bytes);
        let mut frames = Vec::new();
        loop {
            let Some(head) = self.buffer.first_chunk::<8>().copied() else { return Ok(frames) };
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
            if length > MAX_FRAME {
                return Err(Error::TooLong(length));
            }
            if self.buffer.len() < 8 + length {
                return Ok(frames);
            }
            self.buffer.advance(8);
            let body = self.buffer.split_to(length).freeze();
            let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            frames.push(if word >> 31 == 0 {
                Frame::Data { id: word, bytes: body, fin: head[4] & FIN != 0 }
            } else {
                self.control(u16::from_be_bytes([head[2], head[3]]), head[4], body)?
            });
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Frame, Error> {
        let mut number = || body.try_get_u32().map_err(|_| Error::Malformed(kind));
        Ok(match kind {
            1 => {
                let id = number()? & 0x7fff_ffff;
                number()?;
                body.try_get_u16().map_err(|_| Error::Malformed(kind))?;
                Frame::SynStream { id, headers: self.unpack(&body)?, fin: flags & FIN != 0 }
            }
            2 | 8 => {
                // Headers are unpacked whatever they say: the next ones continue them.
                let id = number()? & 0x7fff_ffff;
                self.unpack(&body)?;
                if kind == 2 { Frame::SynReply { id } } else { Frame::Other }
            }
            3 => Frame::Reset { id: number()? & 0x7fff_ffff },
            6 => Frame::Ping { id: number()? },
            7 => Frame::GoAway,
            _ => Frame::Other,
        })
    }

    fn unpack(&mut self, packed: &[u8]) -> Result<Headers, Error> {
        let mut plain = Vec::with_capacity(4096);
        let mut rest = packed;
        loop {
            let (before_in, before_out) = (self.headers.total_in(), plain.len());
            if plain.len() == plain.capacity() {
                plain.reserve(4096);
            }
            let step = self.headers.decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let used = usize::try_from(self.headers.total_in() - before_in).unwrap_or(usize::MAX);
            rest = rest.get(used..).ok_or(Error::Headers)?;
            match step {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.headers.set_dictionary(&dictionary()).map_err(|_| Error::Headers)?;
                    continue;
                }
                Err(_) => return Err(Error::Headers),
                Ok(_) => {}
            }
            if plain.len() > MAX_HEADERS {
                return Err(Error::Headers);
            }
            let stuck = used == 0 && plain.len() == before_out;
            if stuck || (rest.is_empty() && plain.len() < plain.capacity()) {
                break;
            }
        }
        if !rest.is_empty() {
            return Err(Error::Headers);
        }
        parse(&plain).ok_or(Error::Headers)
    }
}

fn parse(mut plain: &[u8]) -> Option<Headers> {
    let count = plain.try_get_u32().ok()?;
    let mut text = || {
        let length = plain.try_get_u32().ok()? as usize;
        let (word, after) = plain.split_at_checked(length)?;
        plain = after;
        Some(String::from_utf8_lossy(word).into_owned())
    };
    // Each takes eight bytes at least.
    (0..count.min(8192)).map(|_| Some((text()?, text()?))).collect()
}

/// Frames into bytes.
#[derive(Default)]
pub struct Encoder {
    begun: bool,
}

fn control(to: &mut BytesMut, kind: u16, flags: u8, body: &[u8]) {
    to.put_u16(0x8000 | VERSION);
    to.put_u16(kind);
    to.put_u32(u32::try_from(body.len()).unwrap_or_default() | u32::from(flags) << 24);
    to.put_slice(body);
}

impl Encoder {
    /// The bytes of a frame.
    pub fn encode(&mut self, frame: &Frame) -> Bytes {
        let mut to = BytesMut::new();
        match frame {
            Frame::SynStream { id, headers, fin } => {
                let mut body = BytesMut::new();
                body.put_u32(*id);
                body.put_u32(0);
                body.put_u16(0);
                body.put_slice(&self.pack(headers));
                control(&mut to, 1, u8::from(*fin), &body);
            }
            Frame::SynReply { id } => {
                let mut body = BytesMut::new();
                body.put_u32(*id);
                body.put_slice(&self.pack(&Vec::new()));
                control(&mut to, 2, 0, &body);
            }
            Frame::Data { id, bytes, fin } => {
                to.put_u32(*id & 0x7fff_ffff);
                to.put_u32(u32::try_from(bytes.len()).unwrap_or_default() | u32::from(u8::from(*fin)) << 24);
                to.put_slice(bytes);
            }
            Frame::Reset { id } => {
                // Status 1 is "protocol error".
                control(&mut to, 3, 0, &[id.to_be_bytes(), 1u32.to_be_bytes()].concat());
            }
            Frame::Ping { id } => control(&mut to, 6, 0, &id.to_be_bytes()),
            Frame::GoAway => control(&mut to, 7, 0, &[0; 8]),
            Frame::Other => {}
        }
        to.freeze()
    }

    /// Headers in blocks that are stored, not compressed: they are few and short.
    fn pack(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(headers.len()).unwrap_or_default());
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(u32::try_from(text.len()).unwrap_or_default());
            plain.put_slice(text.as_bytes());
        }
        let mut packed = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            // The head of a zlib stream without a dictionary.
            packed.extend_from_slice(&[0x78, 0x01]);
        }
        // The empty block at the end is a flush: readers wait for more without one.
        for block in plain.chunks(usize::from(u16::MAX)).chain([&[][..]]) {
            let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
            packed.push(0);
            packed.put_u16_le(length);
            packed.put_u16_le(!length);
            packed.put_slice(block);
        }
        packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(port: &str) -> Headers {
        vec![
            ("Port".into(), port.into()),
            ("Streamtype".into(), "data".into()),
            ("requestid".into(), "0".into()),
        ]
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn frames_come_as_they_went_however_they_are_cut() {
        let frames = [
            Frame::SynStream { id: 1, headers: headers("80"), fin: false },
            Frame::Data { id: 1, bytes: Bytes::from_static(b"hello"), fin: false },
            Frame::SynStream { id: 3, headers: headers("8080"), fin: true },
            Frame::Ping { id: 9 },
            Frame::Data { id: 1, bytes: Bytes::new(), fin: true },
            Frame::Reset { id: 3 },
            Frame::SynReply { id: 5 },
            Frame::GoAway,
        ];
        let mut encoder = Encoder::default();
        let wire: Vec<u8> = frames.iter().flat_map(|f| encoder.encode(f)).collect();
        for cut in [1, 3, wire.len()] {
            let mut decoder = Decoder::default();
            let got: Vec<Frame> = wire.chunks(cut).flat_map(|c| decoder.decode(c).unwrap()).collect();
            assert_eq!(got, frames);
        }
    }

    #[test]
    fn headers_that_are_compressed_with_the_dictionary_are_read() {
        let mut zlib = flate2::Compress::new(flate2::Compression::default(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        let mut decoder = Decoder::default();
        for port in ["80", "8080"] {
            let mut plain = Vec::new();
            plain.put_u32(3);
            for text in headers(port).iter().flat_map(|(n, v)| [n, v]) {
                plain.put_u32(text.len() as u32);
                plain.extend_from_slice(text.as_bytes());
            }
            let mut packed = Vec::with_capacity(4096);
            zlib.compress_vec(&plain, &mut packed, flate2::FlushCompress::Sync).unwrap();
            let mut body = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            body.extend(packed);
            let mut wire = BytesMut::new();
            control(&mut wire, 1, 0, &body);
            let expected = Frame::SynStream { id: 1, headers: headers(port), fin: false };
            assert_eq!(decoder.decode(&wire).unwrap(), [expected]);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut long = vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
        assert!(matches!(Decoder::default().decode(&long), Err(Error::TooLong(_))));
        long[5..].copy_from_slice(&[0, 0, 2]);
        long.extend([1, 2]);
        assert_eq!(Decoder::default().decode(&long), Err(Error::Malformed(1)));
        let junk = [&[0x80, 3, 0, 1, 0, 0, 0, 14][..], &[0; 10], &[9, 9, 9, 9]].concat();
        assert_eq!(Decoder::default().decode(&junk), Err(Error::Headers));
    }
}
