//! A running raft node: opened, asked, stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftServerMetrics;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{BasicNode, Config, Raft, RaftState, ReadPolicy, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Types;
use super::handle::{Handle, detached, read_error, stopped};
use super::log::Log;
use super::membership::Asks;
use super::network::Network;
use super::state_machine::StateMachine;
use super::upkeep::Upkeep;
use super::word::Heard;
use crate::alarm::Alarms;
use crate::disk::persister::Persister;
use crate::disk::snapshot::remove_left;
use crate::disk::state::{Applied, StateDb};
use crate::disk::{Place, unblock};
use crate::lease::Lessor;
use crate::machine::Machine;
use crate::metrics::Stats;
use crate::mvcc::Window;
use crate::peer::client::Peers;
use crate::peer::server::{Incoming, LAST_WORDS};
use crate::peer::{self, Peering};
use crate::{Error, Options};

/// How long a member may take to lead and to apply what it finds in its log.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Why a member that was put out ends.
pub(crate) const REMOVED: &str =
    "this member was removed from the cluster; it can join again with an empty data directory";
/// A member without a leader for so long asks whether it was put out.
const LEADERLESS: Duration = Duration::from_secs(10);
/// A snapshot on its way from another member.
const INCOMING: &str = "incoming.snapshot";

/// How long a leader reads without asking after a majority has answered it; also the longest timeout of an election.
const LEASE: Duration = Duration::from_secs(1);

pub(crate) struct Node {
    pub handle: Handle,
    log: Log,
    persister: Arc<Persister>,
    place: Place,
    upkeep: Upkeep,
    pub alarms: Alarms,
    /// When a leader was last known, and whether the others have been asked since.
    led: Mutex<Instant>,
    /// Serves the other members; ends a little after raft.
    serving: Mutex<Option<JoinHandle<()>>>,
}

impl Node {
    /// Opens what is on disk into `machine`. Alone, it waits until this member leads; a member that joins, until it votes;
    /// otherwise it returns at once, for the others may come later.
    pub async fn open(
        place: Place,
        options: &Options,
        machine: Arc<Machine>,
        lessor: Arc<Lessor>,
        peering: Option<Peering>,
    ) -> Result<Self, Error> {
        let (node_id, window, threads) = (place.node_id, options.window(), place.threads);
        let (persister, log, applied) = {
            let (machine, place) = (machine.clone(), place.clone());
            let open = move || open_files(&place, window, &machine);
            unblock(threads, open).await??
        };
        let versions = options.versions;
        let peers = peering.as_ref().map(|peering| Peers::new(peering, versions));
        let peers = peers.transpose()?.map(Arc::new);
        let fresh = log.is_empty();
        let watched = Arc::downgrade(&machine);
        let state_machine = StateMachine { machine, persister: persister.clone(), window, applied };
        let config = Arc::new(config(options.snapshot_every.max(1), fresh || peering.is_none())?);
        let progress = Arc::new(OnceLock::new());
        let network = Network { peers: peers.clone(), threads, progress: progress.clone() };
        let raft = Raft::new(node_id, config, network, log.clone(), state_machine).await;
        let raft = raft.map_err(stopped)?;
        let _ = progress.set(raft.data_metrics());
        let (ending, ended) = watch::channel(None);
        let failure = failure(&raft, &persister);
        tokio::spawn(async move {
            let reason = failure.await;
            // Whoever watches learns that no more will come.
            if let Some(machine) = watched.upgrade() {
                machine.hub.stop(&reason);
            }
            ending.send_replace(Some(reason));
        });
        let upkeep = Upkeep::new(options.log_bytes);
        let stats = place.stats.clone();
        tokio::spawn(count_leaders(raft.server_metrics(), stats.clone()));
        let heard = Arc::new(watch::Sender::new(Heard { at: Instant::now(), committed: None }));
        let clock = options.clock.clone();
        let sworn = Instant::now() + if fresh { Duration::ZERO } else { LEASE };
        let handle = Handle {
            raft,
            node_id,
            peers,
            stats,
            heard,
            clock,
            proposals: TaskTracker::new(),
            ended,
            versions,
            lessor,
            sworn,
            gone: Arc::default(),
        };
        let (alarms, led, serving) = (Alarms::default(), Mutex::new(Instant::now()), Mutex::default());
        let node = Self { handle, log, upkeep, persister, place, alarms, led, serving };
        if let Err(error) = node.start(fresh, peering).await {
            let _ = node.shutdown().await;
            return Err(error);
        }
        Ok(node)
    }

    /// Takes the member's part in the cluster.
    async fn start(&self, fresh: bool, peering: Option<Peering>) -> Result<(), Error> {
        let handle = &self.handle;
        let Some(mut peering) = peering else { return self.lead(fresh, "").await };
        let (join, address) = (std::mem::take(&mut peering.join), peering.address.clone());
        let mut ended = handle.ended.clone();
        let end = async move { drop(ended.wait_for(Option::is_some).await) };
        let incoming = Incoming { path: self.place.dir.join(INCOMING), threads: self.place.threads };
        *self.serving.lock() = peer::server::serve(peering, handle.clone(), incoming, handle.versions, end)?;
        // From raft itself: its metrics may not have been told yet.
        let raft = handle.raft.clone();
        let known = detached(async move {
            let configured = |state: &RaftState<Types>| {
                let membership = state.membership_state.effective();
                let nodes: Vec<u64> = membership.nodes().map(|(id, _)| *id).collect();
                (membership.voter_ids().collect::<Vec<u64>>(), nodes)
            };
            raft.with_raft_state(configured).await
        });
        let (voters, nodes) = known.await?.map_err(stopped)?;
        if voters == [handle.node_id] || (fresh && join.is_empty()) {
            self.lead(fresh, &address).await?;
        } else if !voters.contains(&handle.node_id) {
            if !fresh && !nodes.contains(&handle.node_id) {
                return Err(Error::Invalid(REMOVED.into()));
            }
            let who = if fresh { Asks::First } else { Asks::Again };
            handle.join(who, &join, &address, Instant::now() + START_TIMEOUT).await?;
        }
        let stands = handle.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(stands.sworn).await;
            stands.raft.runtime_config().elect(true);
        });
        let handle = handle.clone();
        tokio::spawn(async move { handle.announce(&address).await });
        Ok(())
    }

    async fn lead(&self, fresh: bool, address: &str) -> Result<(), Error> {
        let Handle { raft, node_id, .. } = &self.handle;
        let node_id = *node_id;
        if fresh {
            let members = BTreeMap::from([(node_id, BasicNode::new(address))]);
            raft.initialize(members).await.map_err(stopped)?;
        } else {
            // Nobody else could lead: do not wait for the election timeout.
            raft.trigger().elect(false).await.map_err(stopped)?;
        }
        let wait = raft.wait(Some(START_TIMEOUT));
        let leads = wait.metrics(
            |metrics| metrics.running_state.is_err() || metrics.current_leader == Some(node_id),
            "this member leads",
        );
        leads.await.map_err(stopped)?.running_state.map_err(stopped)?;
        raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(read_error)?;
        Ok(())
    }

    /// Whether this member was put out of the cluster. The others are asked when it finds itself gone, or no leader.
    pub async fn put_out(&self) -> bool {
        let handle = &self.handle;
        if handle.peers.is_none() {
            return false;
        }
        let belongs = handle.members().iter().any(|member| member.id == handle.node_id);
        if belongs && handle.leader().0.is_some() {
            *self.led.lock() = Instant::now();
            return false;
        }
        if belongs && self.led.lock().elapsed() < LEADERLESS {
            return false;
        }
        *self.led.lock() = Instant::now();
        handle.was_removed().await
    }

    /// What is to be done now and then. Must not be dropped half way, see [`detached`].
    pub async fn upkeep(&self) {
        self.upkeep.run(&self.handle.raft, &self.log).await;
    }

    /// Bytes of the files of state and log, and what is left on the disk, where known.
    pub fn room(&self) -> (u64, u64, Option<u64>) {
        let files = &self.place.files;
        let size = |name| files.size(name).unwrap_or_default();
        (size("state.redb"), size("log.redb") + size("log.wal"), files.free())
    }

    /// Makes the files as small as what they hold; returns their bytes before and after.
    pub async fn defragment(&self) -> Result<(u64, u64), Error> {
        let bytes = || {
            let (state, log, _) = self.room();
            state + log
        };
        let before = bytes();
        let (persister, log) = (self.persister.clone(), self.log.clone());
        let done = move || persister.state().defragment().and_then(|()| log.defragment());
        unblock(self.place.threads, done).await??;
        Ok((before, bytes()))
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.handle.raft.is_leader()
    }

    /// Writes all of the state into one file.
    pub async fn save_snapshot(&self, path: &Path) -> Result<(), Error> {
        self.persister.flush().await.map_err(Error::Stopped)?;
        let state = self.persister.state();
        let view = state.view().map_err(|error| state.error(error))?;
        let path = path.to_owned();
        unblock(self.place.threads, move || view.save(&path)).await?
    }

    /// Stops raft, brings the state to disk and closes the files.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.handle.hand_over().await;
        self.handle.drain().await;
        let raft = self.handle.raft.clone();
        let core = detached(async move { raft.shutdown().await }).await?.map_err(stopped);
        let (log, persister) = (self.log.clone(), self.persister.clone());
        let place = self.place.clone();
        let files = unblock(place.threads, move || {
            let stopped = log.stop().and(persister.stop());
            place.files.close();
            stopped
        });
        let files = files.await?.map_err(Error::Stopped);
        let serving = self.serving.lock().take();
        if let Some(serving) = serving {
            // It bounds itself; but what tells it to end may not have come.
            let _ = tokio::time::timeout(LAST_WORDS * 2, serving).await;
        }
        core.and(files)
    }
}

/// Counts and tells changes of the leader. It holds nothing of raft, so that raft ends with its last handle.
async fn count_leaders(mut metrics: WatchReceiverOf<Types, RaftServerMetrics<Types>>, stats: Arc<Stats>) {
    let mut last = None;
    while metrics.changed().await.is_ok() {
        let (leader, term) = {
            let metrics = metrics.borrow_watched();
            (metrics.current_leader, metrics.vote.leader_id.term)
        };
        if leader.is_some() && leader != last {
            stats.led_by_another();
            tracing::info!(leader, term, "a member leads");
            last = leader;
        }
    }
}

/// Waits until the node cannot go on; returns why.
fn failure(
    raft: &Raft<Types, StateMachine>,
    persister: &Persister,
) -> impl Future<Output = String> + Send + 'static {
    let mut state = persister.watch();
    let raft = raft.wait(None);
    async move {
        let disk = async {
            let failed = state.wait_for(|durable| durable.is_err()).await;
            let reason = failed.ok().and_then(|durable| durable.as_ref().err().cloned());
            match reason {
                Some(reason) => reason,
                None => std::future::pending().await,
            }
        };
        let core = async {
            match raft.metrics(|metrics| metrics.running_state.is_err(), "raft stops").await {
                Ok(metrics) => metrics.running_state.err().map_or_else(String::new, |e| e.to_string()),
                Err(error) => error.to_string(),
            }
        };
        tokio::select! { reason = disk => reason, reason = core => reason }
    }
}

type Opened = (Arc<Persister>, Log, Applied);

fn open_files(place: &Place, window: Window, machine: &Machine) -> Result<Opened, Error> {
    let left = remove_left(&place.dir.join(INCOMING));
    left.map_err(crate::disk::io_error("removing a snapshot that did not arrive"))?;
    let state = StateDb::open(place)?;
    let (mvcc, applied, effects) = state.load(window, &machine.sealer)?;
    let persister = Persister::start(state, &applied);
    let persister = Arc::new(persister.map_err(crate::disk::io_error("starting the state's thread"))?);
    let log = Log::open(place, Some(persister.clone())).and_then(|log| match fits(place, &log, &applied) {
        Ok(()) => Ok(log),
        Err(error) => {
            let _ = log.stop();
            Err(error)
        }
    });
    let log = match log {
        Ok(log) => log,
        Err(error) => {
            let _ = persister.stop();
            return Err(error);
        }
    };
    // The window may be smaller than it was: its rows go with the next batch.
    persister.carry(effects.changes);
    machine.replace(mvcc);
    Ok((persister, log, applied))
}

/// Refuses a log and a state of which one was lost or taken from elsewhere.
fn fits(place: &Place, log: &Log, applied: &Applied) -> Result<(), Error> {
    let applied = applied.log_id.map(|id| id.index);
    if log.is_empty() && applied.is_some() {
        return Err(place.corrupt("log.redb", "it is empty and the state beside it is not"));
    }
    if log.purged() > applied {
        return Err(place.corrupt("state.redb", "the log has forgotten entries that are not part of it"));
    }
    Ok(())
}

fn config(snapshot_every: u64, elect: bool) -> Result<Config, Error> {
    let config = Config {
        // Its own vote counts like any other, see `Handle::may_vote`.
        enable_elect: elect,
        cluster_name: "coracle".into(),
        // A lost leader is replaced after its lease (the longest timeout) and one more timeout: within two seconds. A busy
        // member that takes it for lost too early is told otherwise by the others, which vote only when they agree.
        heartbeat_interval: 150,
        election_timeout_min: 600,
        election_timeout_max: LEASE.as_millis() as u64,
        // Sending is bounded by ourselves.
        install_snapshot_timeout: 600_000,
        backoff: "50ms 100ms ...500ms".into(),
        enable_pre_vote: Some(true),
        // Applying is not synced: a restarted leader must not serve before it has been elected anew.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        max_in_snapshot_log_to_keep: snapshot_every / 5,
        replication_lag_threshold: snapshot_every.saturating_mul(2),
        ..Config::default()
    };
    config.validate().map_err(|error| Error::Invalid(error.to_string()))
}
