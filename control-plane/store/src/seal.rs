//! Values that lie sealed on disk, in the log and on the wire, and open in memory.
//!
//! A value is sealed by the member that proposes it, so that all members store the same bytes, and opened once by each
//! of them, when it is applied or read back. Whoever serves it sees no difference.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::{KeyValue, OpResult, Txn, TxnResponse, Value};

/// Who seals values. All members of a cluster must be able to open what any of them has sealed.
pub trait Seal: Send + Sync + fmt::Debug + 'static {
    /// The sealed form of what is to be stored under `key`; `None`: it is stored as it is.
    ///
    /// # Errors
    /// Says why it cannot be sealed; nothing is written then.
    fn seal(&self, key: &[u8], plain: &[u8]) -> Result<Option<Bytes>, String>;

    /// What was sealed under `key`.
    ///
    /// # Errors
    /// Says why it cannot be opened.
    fn open(&self, key: &[u8], sealed: &[u8]) -> Result<Bytes, String>;

    /// Whether what lies under `key` would be stored differently now (`sealed`: how it lies; `None`: open).
    fn is_stale(&self, key: &[u8], sealed: Option<&[u8]>) -> bool;
}

/// A sealer, or none.
pub(crate) type Sealer = Option<Arc<dyn Seal>>;

/// Seals what a transaction is about to write.
pub(crate) fn seal(sealer: &Sealer, txn: &mut Txn) -> Result<(), String> {
    let Some(sealer) = sealer else { return Ok(()) };
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        if let Some((key, value)) = op.value_mut() {
            value.seal(&**sealer, key)?;
        }
    }
    Ok(())
}

/// A transaction with its values opened; `None`: they are open already.
pub(crate) fn open(sealer: &Sealer, txn: &Txn) -> Result<Option<Txn>, String> {
    let ops = || txn.success.iter().chain(&txn.failure);
    if !ops().any(|op| op.value().is_some_and(|(_, value)| value.is_closed())) {
        return Ok(None);
    }
    let mut txn = txn.clone();
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        if let Some((key, value)) = op.value_mut() {
            value.open(sealer, key)?;
        }
    }
    Ok(Some(txn))
}

/// Opens a version that was read back.
pub(crate) fn open_version(sealer: &Sealer, kv: &mut Option<Arc<KeyValue>>) -> Result<(), String> {
    if let Some(version) = kv
        && version.value.is_closed()
    {
        let mut opened = KeyValue::clone(version);
        opened.value.open(sealer, &opened.key)?;
        *kv = Some(Arc::new(opened));
    }
    Ok(())
}

/// Opens an answer that came from another member.
pub(crate) fn open_answer(sealer: &Sealer, answer: &mut TxnResponse) -> Result<(), String> {
    for result in &mut answer.results {
        match result {
            OpResult::Put { prev: kv } | OpResult::Deleted { prev: kv } | OpResult::Get(kv) => {
                open_version(sealer, kv)?;
            }
            OpResult::NoLease(_) => {}
        }
    }
    Ok(())
}

impl Value {
    /// The splice goes with the value, for it tells where the open bytes are cut.
    fn seal(&mut self, sealer: &dyn Seal, key: &[u8]) -> Result<(), String> {
        let mut plain = Vec::with_capacity(4 + self.json.len());
        plain.extend_from_slice(&self.splice.to_le_bytes());
        plain.extend_from_slice(&self.json);
        self.sealed = sealer.seal(key, &plain)?;
        Ok(())
    }

    fn open(&mut self, sealer: &Sealer, key: &[u8]) -> Result<(), String> {
        if !self.is_closed() {
            return Ok(());
        }
        let name = || String::from_utf8_lossy(key);
        let Some(sealer) = sealer else {
            return Err(format!("{} is encrypted, and there is no key to open it", name()));
        };
        let plain = sealer.open(key, &self.json).map_err(|why| format!("{}: {why}", name()))?;
        let Some((splice, _)) = plain.split_first_chunk::<4>() else {
            return Err(format!("{}: what was sealed is too short", name()));
        };
        *self = Self {
            splice: u32::from_le_bytes(*splice),
            sealed: Some(std::mem::take(&mut self.json)),
            json: plain.slice(4..),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;

    #[derive(Debug)]
    struct Turned(u8);

    impl Seal for Turned {
        fn seal(&self, key: &[u8], plain: &[u8]) -> Result<Option<Bytes>, String> {
            let turned = plain.iter().map(|b| b ^ self.0).collect();
            Ok(key.starts_with(b"/secret/").then_some(turned))
        }
        fn open(&self, _: &[u8], sealed: &[u8]) -> Result<Bytes, String> {
            Ok(sealed.iter().map(|b| b ^ self.0).collect())
        }
        fn is_stale(&self, _: &[u8], _: Option<&[u8]>) -> bool {
            false
        }
    }

    #[test]
    fn sealed_values_are_written_closed_and_come_back_open() {
        let sealer: Sealer = Some(Arc::new(Turned(0x55)));
        let value = Value::new(r#"{"kind":"Secret","metadata":{"name":"a"}}"#).unwrap();
        let mut txn = Txn::create("/secret/a".into(), value.clone(), None);
        txn.success.push(Op::Put { key: "/other".into(), value: value.clone(), ttl_ms: None });
        seal(&sealer, &mut txn).unwrap();
        assert!(open(&sealer, &txn).unwrap().is_none(), "who proposed it has it open");
        let bytes = postcard::to_stdvec(&txn).unwrap();
        assert_eq!(bytes.windows(6).filter(|w| w == b"Secret").count(), 1, "only the other one is open");
        let back: Txn = postcard::from_bytes(&bytes).unwrap();
        assert!(open(&None, &back).is_err());
        let opened = open(&sealer, &back).unwrap().unwrap();
        for op in &opened.success {
            let Op::Put { value: found, .. } = op else { panic!("{op:?}") };
            assert_eq!((&found.json, found.splice), (&value.json, value.splice));
        }
        // Written again it is as it was before.
        assert_eq!(postcard::to_stdvec(&opened).unwrap(), bytes);
    }
}
