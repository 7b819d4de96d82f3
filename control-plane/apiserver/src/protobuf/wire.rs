//! The wire format of protobuf: tags, varints and lengths. Nothing here knows a message.

use super::Error;

/// Reads fields one after the other.
pub(super) struct Reader<'a>(&'a [u8]);

/// The content of a field.
#[derive(Debug)]
pub(super) enum Item<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

impl<'a> Item<'a> {
    pub fn varint(&self) -> Result<u64, Error> {
        match self {
            Self::Varint(n) | Self::Fixed64(n) => Ok(*n),
            Self::Bytes(_) => Err(Error::Malformed("wrong wire type")),
        }
    }

    pub fn bytes(&self) -> Result<&'a [u8], Error> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::Malformed("wrong wire type")),
        }
    }

    pub fn text(&self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Error::Malformed("text is not UTF-8"))
    }
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next field's number and content, or `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Item<'a>)>, Error> {
        let Some(tag) = self.varint()? else { return Ok(None) };
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Malformed("field number too large"))?;
        let item = match tag & 7 {
            0 => Item::Varint(self.varint()?.ok_or(Error::Malformed("truncated"))?),
            1 => Item::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = self.varint()?.ok_or(Error::Malformed("truncated"))?;
                Item::Bytes(self.take(usize::try_from(length).map_err(|_| Error::Malformed("truncated"))?)?)
            }
            5 => Item::Varint(u32::from_le_bytes(self.array()?).into()),
            _ => return Err(Error::Malformed("unknown wire type")),
        };
        Ok(Some((number, item)))
    }

    /// A varint, or `None` at the end.
    pub fn varint(&mut self) -> Result<Option<u64>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut value = 0_u64;
        for (i, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = self.0.get(i + 1..).unwrap_or_default();
                return Ok(Some(value));
            }
        }
        Err(Error::Malformed("bad varint"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.take(N)?.try_into().map_err(|_| Error::Malformed("truncated"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(Error::Malformed("truncated"))?;
        self.0 = tail;
        Ok(head)
    }
}
