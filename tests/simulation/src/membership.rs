//! Members that are put out, and members without whom the cluster would stop: what takes minutes of a cluster's time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_store::{Error, Range, Store, Txn, Value};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};

use crate::cluster::Cluster;
use crate::faults::apart;
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

#[test]
fn a_leader_that_was_put_out_of_two_answers_no_more() {
    simulated(async |cluster| {
        let leader = cluster.leader().unwrap();
        let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let (old, new) = (cluster.store(leader).unwrap(), cluster.store(others[0]).unwrap());
        old.remove_member(others[1]).await?;
        cluster.stop(others[1]).await?;
        cluster.forget(others[1]);
        new.remove_member(leader).await?;
        // It does not hear of it, and the other goes on.
        apart(&cluster, leader, others[0]);
        timeout(Duration::from_secs(20), async {
            while put(&new).await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await?;
        let read = old.linearizable().await;
        ensure!(read.is_err(), "member {leader} answers though {:?} vote", voters(&new));
        cluster.net().heal();
        cluster.stop(leader).await?;
        cluster.forget(leader);
        Ok(())
    });
}

/// The leader loses one member, and the other, by whose word it leads on, ends and is back at once without hearing it.
#[test]
fn who_has_just_started_keeps_the_word_it_gave_before() {
    simulated(async |cluster| {
        for round in 0..60_u64 {
            let leader = cluster.leader().context("nobody leads")?;
            let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
            let (lost, faithful) = (others[0], others[1]);
            let (old, new) = (cluster.store(leader).unwrap(), cluster.store(lost).unwrap());
            apart(&cluster, leader, lost);
            // The lost one asks for votes now and then: it meets the other at all moments of its start.
            sleep(Duration::from_millis(1500 + 23 * round)).await;
            if round % 2 == 1 {
                // Now it is behind: only the other can be elected.
                put(&old).await?;
            }
            cluster.kill(faithful).await?;
            apart(&cluster, leader, faithful);
            cluster.open(faithful).await?;
            let writes = async {
                while put(&new).await.is_err() {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            if timeout(Duration::from_secs(10), writes).await.is_ok() {
                let read = old.linearizable().await;
                ensure!(read.is_err(), "round {round}: member {leader} reads though {lost} has written");
            }
            cluster.net().heal();
            cluster.heals(Duration::from_secs(60)).await?;
        }
        Ok(())
    });
}

/// Whether a member has all that another has written, within a minute or until the power fails.
async fn caught_up(cluster: &Cluster, id: u64, with: &Store) -> Result<bool> {
    let has_all = async {
        while !cluster.is_dead(id) {
            let has = cluster.store(id).is_some_and(|store| store.revision() == with.revision());
            if has {
                return true;
            }
            sleep(Duration::from_millis(5)).await;
        }
        false
    };
    timeout(Duration::from_secs(60), has_all).await.with_context(|| format!("member {id} stays behind"))
}

#[test]
fn the_power_may_fail_at_every_point_of_catching_up() {
    simulated(async |cluster| {
        let store = cluster.store(1).unwrap();
        let dump = |store: &Store| store.range(&Range::prefix("")).map(|found| found.kvs);
        for point in 0.. {
            cluster.stop(3).await?;
            // More than the log keeps: a snapshot is sent, then entries.
            for n in 0..100 {
                let key = format!("/{}", n % 20);
                store.txn(Txn::put(key.into(), Value::raw(format!("{point}.{n}")))).await?;
            }
            cluster.fail_after(3, point);
            cluster.open(3).await?;
            let whole = caught_up(&cluster, 3, &store).await?;
            cluster.kill(3).await?;
            // Also where it failed before there was a process.
            cluster.power(3);
            cluster.open(3).await?;
            ensure!(caught_up(&cluster, 3, &store).await?, "point {point}: the power failed again");
            let (ours, theirs) = (dump(&store)?, dump(&cluster.store(3).context("member 3 ended")?)?);
            ensure!(ours == theirs, "point {point}: members differ");
            if whole {
                ensure!(point > 10, "only {point} points");
                return Ok(());
            }
        }
        Ok(())
    });
}
