//! How a version of a key lies in `state.redb`: key `<revision, big-endian><key>`, value below, so that rows are in order
//! of revision and new ones go to the end of the tree.
//!
//! Value: checksum (CRC-32 of the row's key and of the rest, little-endian), kind, and for a version: create revision,
//! version, expiry (i64::MIN: none), splice, JSON.

use std::sync::Arc;

use bytes::Bytes;

use crate::{KeyValue, Value};

const TOMBSTONE: u8 = 0;
const VERSION: u8 = 1;
/// A version that ends with a lease, whose id takes the place of the expiry. Since format 2.
const LEASED: u8 = 2;
const NEVER: i64 = i64::MIN;

/// The key of a row.
pub(crate) fn write_key(revision: u64, key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(key);
}

/// Whether only format 2 has such rows.
pub(crate) fn is_leased(value: &[u8]) -> bool {
    value.get(4) == Some(&LEASED)
}

/// The value of a row; `None`: a tombstone.
pub(crate) fn write_value(row_key: &[u8], kv: Option<&KeyValue>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; 4]);
    match kv {
        None => out.push(TOMBSTONE),
        Some(kv) => {
            out.push(if kv.lease.is_some() { LEASED } else { VERSION });
            out.extend_from_slice(&kv.create_revision.to_le_bytes());
            out.extend_from_slice(&kv.version.to_le_bytes());
            let ends = kv.lease.map(u64::cast_signed).or(kv.expires_at);
            out.extend_from_slice(&ends.unwrap_or(NEVER).to_le_bytes());
            let (splice, bytes) = kv.value.stored();
            out.extend_from_slice(&splice.to_le_bytes());
            out.extend_from_slice(bytes);
        }
    }
    let sum = checksum(row_key, out.get(4..).unwrap_or_default());
    if let Some(head) = out.first_chunk_mut() {
        *head = sum.to_le_bytes();
    }
}

fn checksum(row_key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(row_key);
    hasher.update(rest);
    hasher.finalize()
}

/// A row read back.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    pub revision: u64,
    pub key: Bytes,
    pub kv: Option<Arc<KeyValue>>,
}

/// Reads a row; says what is wrong with it.
pub(crate) fn read(row_key: &[u8], value: &[u8]) -> Result<Row, String> {
    let fail = |what: &str| {
        let key = row_key.get(8..).map(String::from_utf8_lossy).unwrap_or_default();
        format!("row of key {key:?}: {what}")
    };
    let (revision, key) = row_key.split_first_chunk().ok_or_else(|| fail("its key is too short"))?;
    let (sum, rest) = value.split_first_chunk().ok_or_else(|| fail("it is too short"))?;
    if u32::from_le_bytes(*sum) != checksum(row_key, rest) {
        return Err(fail("checksum does not match"));
    }
    let revision = u64::from_be_bytes(*revision);
    let key = Bytes::copy_from_slice(key);
    let kv = match rest.split_first() {
        Some((&TOMBSTONE, _)) => None,
        Some((kind @ (&VERSION | &LEASED), rest)) => {
            let version = read_version(key.clone(), revision, *kind == LEASED, rest)
                .ok_or_else(|| fail("it is too short"))?;
            Some(Arc::new(version))
        }
        _ => return Err(fail("it is of an unknown kind")),
    };
    Ok(Row { revision, key, kv })
}

fn read_version(key: Bytes, mod_revision: u64, leased: bool, rest: &[u8]) -> Option<KeyValue> {
    let (create_revision, rest) = rest.split_first_chunk()?;
    let (version, rest) = rest.split_first_chunk()?;
    let (ends, rest) = rest.split_first_chunk()?;
    let (splice, json) = rest.split_first_chunk()?;
    let ends = i64::from_le_bytes(*ends);
    Some(KeyValue {
        key,
        value: Value::spliced(Bytes::copy_from_slice(json), u32::from_le_bytes(*splice)),
        create_revision: u64::from_le_bytes(*create_revision),
        mod_revision,
        version: u64::from_le_bytes(*version),
        expires_at: (!leased && ends != NEVER).then_some(ends),
        lease: leased.then_some(ends.cast_unsigned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_flipped_bit_is_found() {
        let kv = KeyValue {
            key: "/registry/core/pods/a/b".into(),
            value: Value::raw(r#"{"metadata":{}}"#),
            create_revision: 3,
            mod_revision: 7,
            version: 2,
            expires_at: Some(-5),
            lease: None,
        };
        let never = KeyValue { expires_at: None, ..kv.clone() };
        let leased = KeyValue { lease: Some(u64::MAX - 7), ..never.clone() };
        for kv in [Some(Arc::new(kv)), Some(Arc::new(never)), Some(Arc::new(leased)), None] {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            write_key(7, b"/registry/core/pods/a/b", &mut key);
            write_value(&key, kv.as_deref(), &mut value);
            let row = Row { revision: 7, key: Bytes::from_static(b"/registry/core/pods/a/b"), kv };
            assert_eq!(read(&key, &value), Ok(row));
            for bit in 0..value.len() * 8 {
                let mut damaged = value.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(read(&key, &damaged).is_err(), "bit {bit}");
            }
            for len in 0..value.len() {
                assert!(read(&key, &value[..len]).is_err());
            }
        }
    }
}
