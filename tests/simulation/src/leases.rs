//! A client that holds leases, one after the other: none ends before its time, and each ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use coracle_store::{Error, Op, Range, Store, Txn, Value};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, timeout};

use crate::clients::Shared;
use crate::cluster::Cluster;

const PREFIX: &str = "/lease/";
const TTL: Duration = Duration::from_secs(3);
/// A call without an answer for so long is given up.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Grants leases, keeps some of them alive for a while, and watches over their keys until the run is over. Returns how many
/// keep-alives were answered.
pub async fn hold(shared: Arc<Shared>, mut rng: StdRng) -> Result<usize> {
    let mut kept = 0;
    while !shared.over() {
        sleep(Duration::from_millis(rng.random_range(20..400))).await;
        let Some(store) = any(&shared.cluster, &mut rng) else { continue };
        let asked = Instant::now();
        let Ok(Ok(lease)) = timeout(TIMEOUT, store.grant_lease(None, TTL)).await else { continue };
        let key = format!("{PREFIX}{lease}");
        let op = Op::PutLeased { key: key.clone().into(), value: Value::raw("1"), lease };
        match timeout(TIMEOUT, store.txn(Txn { success: vec![op], ..Txn::default() })).await {
            Ok(Ok(_)) => kept += hold_one(&shared, &mut rng, &key, lease, asked + TTL).await?,
            Ok(Err(Error::NoLease { .. })) => early(lease, asked + TTL, "was not there for a key")?,
            _ => {}
        }
    }
    Ok(kept)
}

async fn hold_one(
    shared: &Shared,
    rng: &mut StdRng,
    key: &str,
    lease: u64,
    mut until: Instant,
) -> Result<usize> {
    let mut kept = 0;
    for _ in 0..rng.random_range(1..12) {
        sleep(Duration::from_millis(rng.random_range(50..2000))).await;
        let Some(store) = any(&shared.cluster, rng) else { continue };
        if rng.random_bool(0.7) {
            let asked = Instant::now();
            match timeout(TIMEOUT, store.keep_alive(lease)).await {
                Ok(Ok(_)) => {
                    kept += 1;
                    until = until.max(asked + TTL);
                }
                Ok(Err(Error::NoLease { .. })) => return early(lease, until, "had ended").map(|()| kept),
                _ => {}
            }
        } else if matches!(timeout(TIMEOUT, store.linearizable()).await, Ok(Ok(())))
            && store.get(key.as_bytes()).is_none()
        {
            return early(lease, until, "had lost its key").map(|()| kept);
        }
        if shared.over() {
            break;
        }
    }
    Ok(kept)
}

fn any(cluster: &Cluster, rng: &mut StdRng) -> Option<Store> {
    let ids = cluster.ids();
    cluster.store(ids[rng.random_range(0..ids.len())])
}

fn early(lease: u64, until: Instant, what: &str) -> Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        bail!("lease {lease} {what} {left:?} before its time");
    }
    Ok(())
}

/// Once nobody keeps them alive there are none.
///
/// # Errors
/// There are.
pub fn all_ended(cluster: &Cluster) -> Result<()> {
    for id in cluster.ids() {
        let Some(store) = cluster.store(id) else { continue };
        let (leases, keys) = (store.leases(), store.range(&Range::prefix(PREFIX))?.count);
        ensure!(
            leases.is_empty() && keys == 0,
            "member {id} still has leases {leases:?} and {keys} keys of theirs"
        );
    }
    Ok(())
}
