//! What every engine of the store must do: a suite to run on each of them.
//!
//! A factory makes a fresh, empty store that keeps the given number of revisions. The functions panic, with the reason,
//! where the store does not do what it must.

use bytes::Bytes;

use crate::{KeyValue, Op, OpResult, Store, Txn, TxnResponse, Value};

mod expiry;
mod leases;
mod reads;
mod transactions;
mod watches;

pub use expiry::expires_keys;
pub use leases::{lease_time, leases, leases_granted_again};
pub use reads::{ranges, reads_at_a_revision};
pub use transactions::{compares, multi_operation_transactions, refuses_bad_requests, revisions};
pub use watches::{watch_from_a_revision, watch_under_concurrent_writers, watch_window};

/// Runs the whole suite.
pub async fn all(make: impl AsyncFn(u64) -> Store) {
    revisions(make(1000).await).await;
    compares(make(1000).await).await;
    multi_operation_transactions(make(1000).await).await;
    refuses_bad_requests(make(1000).await).await;
    ranges(make(1000).await).await;
    reads_at_a_revision(make(5).await).await;
    watch_from_a_revision(make(1000).await).await;
    watch_window(make(5).await).await;
    watch_under_concurrent_writers(make(100_000).await).await;
    expires_keys(make(1000).await).await;
    leases(make(1000).await).await;
    lease_time(make(1000).await).await;
    leases_granted_again(make(1000).await).await;
}

fn key(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

fn value(text: &str) -> Value {
    Value::raw(Bytes::copy_from_slice(text.as_bytes()))
}

async fn txn(store: &Store, txn: Txn) -> TxnResponse {
    store.txn(txn).await.unwrap_or_else(|error| panic!("transaction failed: {error}"))
}

async fn put(store: &Store, at: &str, text: &str) -> u64 {
    txn(store, Txn::put(key(at), value(text))).await.revision
}

async fn delete(store: &Store, at: &str) -> TxnResponse {
    txn(store, Txn { success: vec![Op::Delete { key: key(at) }], ..Txn::default() }).await
}

fn get(store: &Store, at: &str) -> KeyValue {
    let kv = store.get(at.as_bytes()).unwrap_or_else(|| panic!("{at} should exist"));
    (*kv).clone()
}

fn text(kv: &KeyValue) -> String {
    String::from_utf8_lossy(&kv.value.json).into_owned()
}

fn only(mut response: TxnResponse) -> OpResult {
    assert_eq!(response.results.len(), 1, "one operation has one result");
    response.results.remove(0)
}
