//! A stored value and its splice: the place where `resourceVersion` goes when the value is served.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::Error;

/// The bytes of an object and where to insert its revision.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Value {
    /// JSON of the storage version, without `metadata.resourceVersion`.
    pub json: Bytes,
    /// Offset directly after the `{` of the top-level `metadata`; 0: no such object, serve as it is.
    pub splice: u32,
    /// How the value lies on disk and goes over the wire, where it is sealed; then `json` is never written anywhere.
    pub(crate) sealed: Option<Bytes>,
}

/// The splice of a sealed value that has not been opened; no object is so long.
const CLOSED: u32 = u32::MAX;

/// A value as it is written: sealed bytes with the splice [`CLOSED`], or the open ones.
#[derive(Serialize, Deserialize)]
struct Stored {
    json: Bytes,
    splice: u32,
}

impl From<Stored> for Value {
    fn from(Stored { json, splice }: Stored) -> Self {
        Self { json, splice, sealed: None }
    }
}

impl From<Value> for Stored {
    fn from(value: Value) -> Self {
        match value.sealed {
            Some(json) => Self { json, splice: CLOSED },
            None => Self { json: value.json, splice: value.splice },
        }
    }
}

/// Sealed values are not shown.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sealed {
            Some(_) => f.write_str("Value { sealed }"),
            None => f.debug_struct("Value").field("json", &self.json).field("splice", &self.splice).finish(),
        }
    }
}

impl Value {
    /// Takes an object's JSON and finds its splice.
    ///
    /// # Errors
    /// [`Error::Json`] when it does not parse, [`Error::Invalid`] when `metadata` occurs twice, carries a
    /// `resourceVersion` already, or starts beyond 4 GiB.
    pub fn new(json: impl Into<Bytes>) -> Result<Self, Error> {
        let json = json.into();
        let first = json.iter().find(|b| !b.is_ascii_whitespace());
        if first != Some(&b'{') {
            serde_json::from_slice::<IgnoredAny>(&json).map_err(Error::Json)?;
            return Ok(Self::raw(json));
        }
        let top: Members<'_> = serde_json::from_slice(&json).map_err(Error::Json)?;
        let metadata = match top.metadata {
            None => return Ok(Self::raw(json)),
            Some(raw) if !raw.get().starts_with('{') => return Ok(Self::raw(json)),
            Some(raw) => raw.get(),
        };
        if top.repeated {
            return Err(Error::Invalid("object has two members called metadata".into()));
        }
        if has_resource_version(metadata)? {
            return Err(Error::Invalid("stored object must not carry metadata.resourceVersion".into()));
        }
        // The raw value borrows from `json`, so the difference of the addresses is its offset.
        let offset = (metadata.as_ptr() as usize).wrapping_sub(json.as_ptr() as usize) + 1;
        let splice =
            u32::try_from(offset).map_err(|_| Error::Invalid("object is larger than 4 GiB".into()))?;
        Ok(Self::spliced(json, splice))
    }

    /// Bytes that are served as they are (not necessarily JSON).
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::spliced(bytes, 0)
    }

    /// An object's JSON whose splice is known.
    pub fn spliced(json: impl Into<Bytes>, splice: u32) -> Self {
        Self { json: json.into(), splice, sealed: None }
    }

    /// The splice and the bytes as they lie on disk.
    pub(crate) fn stored(&self) -> (u32, &[u8]) {
        match &self.sealed {
            Some(sealed) => (CLOSED, sealed),
            None => (self.splice, &self.json),
        }
    }

    /// Whether it was read back and not opened.
    pub(crate) fn is_closed(&self) -> bool {
        self.splice == CLOSED && self.sealed.is_none()
    }

    /// Bytes that it holds in memory.
    pub(crate) fn weight(&self) -> usize {
        self.json.len() + self.sealed.as_ref().map_or(0, Bytes::len)
    }

    /// The object with `resourceVersion` set to `revision`.
    pub fn with_revision(&self, revision: u64) -> Bytes {
        if self.head_and_tail().is_none() {
            return self.json.clone();
        }
        let mut out = Vec::with_capacity(self.json.len() + 42);
        self.write_with_revision(revision, &mut out);
        out.into()
    }

    /// Appends the object with `resourceVersion` set to `revision` to `out`.
    pub fn write_with_revision(&self, revision: u64, out: &mut Vec<u8>) {
        let Some((head, tail)) = self.head_and_tail() else {
            out.extend_from_slice(&self.json);
            return;
        };
        out.reserve(self.json.len() + 42);
        out.extend_from_slice(head);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        write_decimal(revision, out);
        out.push(b'"');
        if tail.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(tail);
    }

    /// The object's `metadata` alone, out of the same bytes; `None` where it has none, or is closed.
    pub fn metadata(&self) -> Option<Self> {
        let at = (self.splice as usize).checked_sub(1).filter(|_| !self.is_closed())?;
        let mut found = serde_json::Deserializer::from_slice(self.json.get(at..)?).into_iter::<&RawValue>();
        found.next()?.ok()?;
        Some(Self::spliced(self.json.slice(at..at + found.byte_offset()), 1))
    }

    /// `None` where nothing is to be inserted; a splice outside the value counts as none.
    fn head_and_tail(&self) -> Option<(&[u8], &[u8])> {
        match self.splice as usize {
            0 => None,
            _ if self.is_closed() => None,
            at => self.json.split_at_checked(at),
        }
    }
}

fn write_decimal(mut n: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn has_resource_version(metadata: &str) -> Result<bool, Error> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = bool;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let mut found = false;
            while let Some(Key(key)) = map.next_key()? {
                found |= key == "resourceVersion";
                map.next_value::<IgnoredAny>()?;
            }
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(metadata).deserialize_map(Keys).map_err(Error::Json)
}

/// A member name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// The top level of an object: only `metadata` is of interest.
struct Members<'a> {
    metadata: Option<&'a RawValue>,
    repeated: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Top;
        impl<'de> Visitor<'de> for Top {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members { metadata: None, repeated: false };
                while let Some(Key(key)) = map.next_key()? {
                    if key == "metadata" {
                        members.repeated |= members.metadata.is_some();
                        members.metadata = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Top)
    }
}
