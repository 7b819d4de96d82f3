//! Buckets in memory, charged to the container.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::{Failure, Outcome, increment};
use crate::memory::Account;

/// What a pair costs beside its bytes.
const OVERHEAD: usize = 128;

type Buckets = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

pub(crate) struct Memory {
    account: Arc<Account>,
    /// And how many bytes were charged.
    buckets: Mutex<(Buckets, usize)>,
}

fn cost(key: &str, value: &[u8]) -> usize {
    OVERHEAD + key.len() + value.len()
}

impl Memory {
    pub fn new(account: Arc<Account>) -> Memory {
        Memory { account, buckets: Mutex::default() }
    }

    pub fn get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        self.buckets.lock().0.get(bucket)?.get(key).cloned()
    }

    pub fn set(&self, bucket: &str, key: &str, value: Vec<u8>) -> Outcome<()> {
        self.put(&mut self.buckets.lock(), bucket, key, value)
    }

    fn put(&self, all: &mut (Buckets, usize), bucket: &str, key: &str, value: Vec<u8>) -> Outcome<()> {
        let cost_now = cost(key, &value);
        self.account.take(cost_now).map_err(|error| Failure::Container(error.into()))?;
        all.1 += cost_now;
        let pairs = all.0.entry(bucket.to_owned()).or_default();
        if let Some(before) = pairs.insert(key.to_owned(), value) {
            let freed = cost(key, &before);
            all.1 -= freed;
            self.account.give(freed);
        }
        Ok(())
    }

    pub fn delete(&self, bucket: &str, key: &str) {
        let mut all = self.buckets.lock();
        if let Some(before) = all.0.get_mut(bucket).and_then(|pairs| pairs.remove(key)) {
            let freed = cost(key, &before);
            all.1 -= freed;
            self.account.give(freed);
        }
    }

    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.buckets.lock().0.get(bucket).map(|pairs| pairs.keys().cloned().collect()).unwrap_or_default()
    }

    pub fn increment(&self, bucket: &str, key: &str, delta: u64) -> Outcome<u64> {
        let mut all = self.buckets.lock();
        let before = all.0.get(bucket).and_then(|pairs| pairs.get(key));
        let sum = increment(before.map(Vec::as_slice), delta)?;
        self.put(&mut all, bucket, key, sum.to_string().into_bytes())?;
        Ok(sum)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.account.give(self.buckets.get_mut().1);
    }
}
