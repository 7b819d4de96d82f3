//! What happens to the simulated cluster.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_store::Error;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};

use crate::cluster::Cluster;

/// One fault.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The process ends; what was not synced is lost in part.
    Kill,
    /// The same to all at once.
    KillAll,
    /// The power fails at a write or sync soon.
    Crash,
    /// It is stopped in order, and starts again.
    Restart,
    /// It and the others do not hear each other.
    Isolate,
    /// It hears nobody.
    Deaf,
    /// Nobody hears it.
    Mute,
    /// Two do not hear each other.
    Apart,
    /// A third of what it says and hears is lost.
    Lossy,
    /// All messages are slow.
    SlowNetwork,
    /// Its disk is slow.
    SlowDisk,
    /// Its wall clock jumps.
    Clock,
    /// It is put out, and another comes in its place.
    Replace,
    /// History is forgotten.
    Compact,
    /// Its files are made small, and the power may fail meanwhile.
    Defragment,
    /// The leader loses one member; the other, by whose word it leads on, ends, is back at once and does not hear it.
    Forsake,
}

const KINDS: [Kind; 16] = [
    Kind::Kill,
    Kind::KillAll,
    Kind::Crash,
    Kind::Restart,
    Kind::Isolate,
    Kind::Deaf,
    Kind::Mute,
    Kind::Apart,
    Kind::Lossy,
    Kind::SlowNetwork,
    Kind::SlowDisk,
    Kind::Clock,
    Kind::Replace,
    Kind::Compact,
    Kind::Defragment,
    Kind::Forsake,
];

/// One fault, until it is over.
///
/// # Errors
/// When a member does not stop or open as it should.
pub async fn inject(cluster: &Cluster, rng: &mut StdRng, verbose: bool) -> Result<()> {
    let kind = KINDS[rng.random_range(0..KINDS.len())];
    let ids = cluster.ids();
    let leader = cluster.leader().filter(|id| rng.random_bool(0.5) && ids.contains(id));
    let target = leader.unwrap_or(ids[rng.random_range(0..ids.len())]);
    let others: Vec<u64> = ids.iter().copied().filter(|id| *id != target).collect();
    let lasts = Duration::from_millis(rng.random_range(100..4000));
    if verbose {
        println!("{kind:?} of member {target} of {ids:?} for {lasts:?}");
    }
    let net = cluster.net();
    match kind {
        Kind::Kill => {
            cluster.kill(target).await?;
            sleep(lasts).await;
        }
        Kind::KillAll => {
            for id in &ids {
                cluster.kill(*id).await?;
            }
        }
        Kind::Crash => {
            cluster.fail_after(target, rng.random_range(0..40));
            sleep(lasts).await;
            cluster.kill(target).await?;
            // It may fail again while the store opens.
            if rng.random_bool(0.3) {
                cluster.fail_after(target, rng.random_range(0..30));
            }
        }
        Kind::Restart => cluster.stop(target).await?,
        Kind::Isolate | Kind::Deaf | Kind::Mute => {
            for other in &others {
                if !matches!(kind, Kind::Mute) {
                    net.cut(*other, target);
                }
                if !matches!(kind, Kind::Deaf) {
                    net.cut(target, *other);
                }
            }
            sleep(lasts).await;
        }
        Kind::Apart => {
            if let Some(other) = others.first() {
                apart(cluster, target, *other);
            }
            sleep(lasts).await;
        }
        Kind::Lossy => {
            net.lose(target);
            sleep(lasts).await;
        }
        Kind::SlowNetwork => {
            net.slow_down(Duration::from_millis(rng.random_range(20..300)));
            sleep(lasts).await;
        }
        Kind::SlowDisk => {
            cluster.pace(target, Duration::from_millis(rng.random_range(20..1500)));
            sleep(lasts).await;
            cluster.pace(target, Duration::from_micros(800));
        }
        Kind::Clock => cluster.set_clock(target, rng.random_range(-100_000_000..100_000_000)),
        Kind::Replace => replace(cluster, target, &others, lasts).await?,
        Kind::Compact => {
            if let Some(store) = cluster.store(target) {
                let _ = timeout(Duration::from_secs(4), store.compact(1)).await;
            }
        }
        Kind::Defragment => {
            if rng.random_bool(0.5) {
                cluster.fail_after(target, rng.random_range(0..60));
            }
            if let Some(store) = cluster.store(target) {
                let _ = timeout(Duration::from_secs(4), store.defragment()).await;
            }
        }
        Kind::Forsake => {
            let leader = cluster.leader().unwrap_or(target);
            let others: Vec<u64> = ids.iter().copied().filter(|id| *id != leader).collect();
            if let [lost, true_one] = others[..] {
                apart(cluster, leader, lost);
                sleep(Duration::from_millis(rng.random_range(300..2000))).await;
                cluster.kill(true_one).await?;
                apart(cluster, leader, true_one);
                see_open(cluster, true_one).await?;
                sleep(lasts).await;
            }
        }
    }
    net.heal();
    open_all(cluster).await
}

/// Two do not hear each other any more.
pub fn apart(cluster: &Cluster, one: u64, other: u64) {
    cluster.net().cut(one, other);
    cluster.net().cut(other, one);
}

/// Opens whoever does not run, or whose power failed.
///
/// # Errors
/// When a member does not open.
pub async fn open_all(cluster: &Cluster) -> Result<()> {
    for id in cluster.ids() {
        see_open(cluster, id).await?;
    }
    Ok(())
}

async fn see_open(cluster: &Cluster, id: u64) -> Result<()> {
    for _ in 0..8 {
        if cluster.is_dead(id) {
            cluster.kill(id).await?;
            cluster.power(id);
        }
        if cluster.store(id).is_some() {
            return Ok(());
        }
        cluster.open(id).await?;
    }
    bail!("member {id} does not open")
}

/// Puts a member out while it may run on, and lets another in.
async fn replace(cluster: &Cluster, target: u64, others: &[u64], lasts: Duration) -> Result<()> {
    // What nobody was told of may have been done: it is asked for again until the outcome is known.
    let gone = async {
        loop {
            for other in others {
                see_open(cluster, *other).await?;
            }
            let by = others.iter().find_map(|id| cluster.store(*id)).context("nobody to ask")?;
            match by.remove_member(target).await {
                Ok(()) | Err(Error::Invalid(_)) => return anyhow::Ok(()),
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    };
    let gone = timeout(Duration::from_secs(120), gone).await;
    gone.with_context(|| format!("nobody says whether member {target} was put out"))??;
    sleep(lasts).await;
    cluster.kill(target).await?;
    cluster.forget(target);
    let new = cluster.ids().into_iter().max().unwrap_or(target).max(target) + 1;
    cluster.open(new).await
}
