//! Members that are put out, and members without whom the cluster would stop: what takes minutes of a cluster's time.

use std::time::Duration;

use anyhow::{Result, ensure};
use coracle_store::{Error, Store, Txn, Value};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};

use crate::cluster::Cluster;
use crate::network::Net;

/// A cluster of three, in time that passes by itself.
fn simulated<F: Future<Output = Result<()>>>(test: impl FnOnce(std::sync::Arc<Cluster>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap();
    let run = async {
        let cluster = Cluster::new(Net::new(StdRng::seed_from_u64(7)), StdRng::seed_from_u64(8), false)?;
        for id in 1..=3 {
            cluster.open(id).await?;
        }
        test(cluster.clone()).await?;
        for id in cluster.ids() {
            cluster.stop(id).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let done = runtime.block_on(run);
    runtime.shutdown_background();
    done.unwrap();
}

async fn put(store: &Store) -> Result<(), Error> {
    store.txn(Txn::put("/a".into(), Value::raw("1"))).await.map(drop)
}

fn voters(store: &Store) -> Vec<u64> {
    store.members().iter().filter(|member| member.voter).map(|member| member.id).collect()
}

#[test]
fn a_member_without_which_no_majority_is_left_stays() {
    simulated(async |cluster| {
        let leader = cluster.leader().unwrap();
        let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        cluster.stop(others[0]).await?;
        sleep(Duration::from_secs(5)).await;
        let store = cluster.store(leader).unwrap();
        for id in [others[1], leader] {
            let refused = store.remove_member(id).await;
            ensure!(
                matches!(&refused, Err(Error::Unavailable(why)) if why.contains("would stop")),
                "{refused:?}"
            );
        }
        put(&store).await?;
        // Who does not answer may go.
        store.remove_member(others[0]).await?;
        put(&store).await?;
        cluster.forget(others[0]);
        Ok(())
    });
}

#[test]
fn who_was_put_out_while_it_was_away_stays_out_wherever_it_comes_from() {
    simulated(async |cluster| {
        cluster.stop(3).await?;
        let store = cluster.store(1).unwrap();
        store.remove_member(3).await?;
        cluster.open_at(3, "m3:2".into()).await?;
        let away = cluster.store(3).unwrap();
        timeout(Duration::from_secs(60), async {
            while put(&away).await.is_ok() || !matches!(away.linearizable().await, Err(Error::Stopped(_))) {
                sleep(Duration::from_secs(1)).await;
            }
        })
        .await?;
        ensure!(voters(&store) == [1, 2], "{:?}", store.members());
        cluster.stop(3).await?;
        cluster.forget(3);
        Ok(())
    });
}

#[test]
fn who_is_put_out_while_it_joins_stays_out() {
    simulated(async |cluster| {
        for id in 1..=3 {
            // It asks, and hears nothing.
            cluster.net().cut(id, 4);
        }
        let joins = tokio::spawn({
            let cluster = cluster.clone();
            async move { cluster.open(4).await }
        });
        let store = cluster.store(1).unwrap();
        timeout(Duration::from_secs(20), async {
            while !store.members().iter().any(|member| member.id == 4) {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await?;
        store.remove_member(4).await?;
        cluster.net().heal();
        let joined = joins.await?;
        ensure!(joined.is_err() && voters(&store) == [1, 2, 3], "{joined:?}: {:?}", store.members());
        cluster.forget(4);
        Ok(())
    });
}
