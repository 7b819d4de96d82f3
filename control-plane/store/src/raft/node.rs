//! A running raft node: opened, asked, stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{BasicNode, Config, Raft, ReadPolicy, SnapshotPolicy};

use tokio::sync::watch;

use super::log::Log;
use super::network::Network;
use super::state_machine::StateMachine;
use super::upkeep::Upkeep;
use super::{Request, Types};
use crate::disk::Place;
use crate::disk::persister::Persister;
use crate::disk::state::{Applied, StateDb};
use crate::machine::Machine;
use crate::mvcc::{Command, Window};
use crate::{Error, Options, TxnResponse};

/// How long a member may take to lead and to apply what it finds in its log.
const START_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    raft: Raft<Types, StateMachine>,
    log: Log,
    persister: Arc<Persister>,
    place: Place,
    upkeep: Upkeep,
    node_id: u64,
    /// Why raft ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

impl Node {
    /// Opens what is on disk into `machine` and waits until this member leads.
    pub async fn open(place: Place, options: &Options, machine: Arc<Machine>) -> Result<Self, Error> {
        let (node_id, window) = (place.node_id, options.window());
        let (persister, log, applied) = {
            let (machine, place) = (machine.clone(), place.clone());
            let open = move || open_files(&place, window, &machine);
            tokio::task::spawn_blocking(open).await.map_err(|error| Error::Stopped(error.to_string()))??
        };
        let fresh = log.is_empty();
        let watched = Arc::downgrade(&machine);
        let state_machine = StateMachine { machine, persister: persister.clone(), window, applied };
        let config = Arc::new(config(options.snapshot_every.max(1))?);
        let raft = Raft::new(node_id, config, Network, log.clone(), state_machine).await;
        let raft = raft.map_err(stopped)?;
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
        let node = Self { raft, log, upkeep, persister, place, node_id, ended };
        if let Err(error) = node.lead(fresh).await {
            let _ = node.shutdown().await;
            return Err(error);
        }
        Ok(node)
    }

    async fn lead(&self, fresh: bool) -> Result<(), Error> {
        if fresh {
            let members = BTreeMap::from([(self.node_id, BasicNode::default())]);
            self.raft.initialize(members).await.map_err(stopped)?;
        } else {
            // Nobody else could lead: do not wait for the election timeout.
            self.raft.trigger().elect(false).await.map_err(stopped)?;
        }
        let wait = self.raft.wait(Some(START_TIMEOUT));
        let leads = wait.metrics(
            |metrics| metrics.running_state.is_err() || metrics.current_leader == Some(self.node_id),
            "this member leads",
        );
        leads.await.map_err(stopped)?.running_state.map_err(stopped)?;
        self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(read_error)?;
        Ok(())
    }

    /// Proposes a command; returns when it is on disk and applied.
    pub async fn propose(&self, command: Command) -> Result<Option<TxnResponse>, Error> {
        let (responder, answer) = ProgressResponder::complete_only();
        let (raft, request) = (self.raft.clone(), Request(Arc::new(command)));
        detached(async move { raft.client_write_ff(request, Some(responder)).await })
            .await?
            .map_err(stopped)?;
        match self.unless_ended(answer).await? {
            Ok(Ok(response)) => Ok(response.data.0),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: forward.leader_id })
            }
            Ok(Err(error)) => Err(stopped(error)),
            Err(_) => Err(Error::Stopped("raft ended".into())),
        }
    }

    /// Returns when what is in memory is the newest state.
    pub async fn linearizable(&self) -> Result<(), Error> {
        if self.is_alone() {
            // No other member can lead, and every write is applied here before it is answered.
            return Ok(());
        }
        let raft = self.raft.clone();
        detached(async move { raft.ensure_linearizable(ReadPolicy::LeaseRead).await })
            .await?
            .map_err(read_error)?;
        Ok(())
    }

    /// Waits for raft's answer or its end: a request that is sent while raft ends may never be answered.
    async fn unless_ended<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let mut ended = self.ended.clone();
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            reason = ended.wait_for(Option::is_some) => {
                let reason = reason.ok().and_then(|reason| reason.clone());
                Err(Error::Stopped(reason.unwrap_or_else(|| "raft ended".into())))
            }
        }
    }

    fn is_alone(&self) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.current_leader == Some(self.node_id) && metrics.membership_config.voter_ids().count() == 1
    }

    /// What is to be done now and then. Must not be dropped half way, see [`detached`].
    pub async fn upkeep(&self) {
        self.upkeep.run(&self.raft, &self.log).await;
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// Writes all of the state into one file.
    pub async fn save_snapshot(&self, path: &Path) -> Result<(), Error> {
        self.persister.flush().await.map_err(Error::Stopped)?;
        let state = self.persister.state();
        let view = state.view().map_err(|error| state.error(error))?;
        let path = path.to_owned();
        let saved = tokio::task::spawn_blocking(move || view.save(&path)).await;
        saved.map_err(|error| Error::Stopped(error.to_string()))?
    }

    /// Stops raft, brings the state to disk and closes the files.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let raft = self.raft.clone();
        let core = detached(async move { raft.shutdown().await }).await?.map_err(stopped);
        let (log, persister) = (self.log.clone(), self.persister.clone());
        let place = self.place.clone();
        let files = tokio::task::spawn_blocking(move || {
            let stopped = log.stop().and(persister.stop());
            place.files.close();
            stopped
        });
        let files = files.await;
        core.and(files.map_err(|error| Error::Stopped(error.to_string()))?.map_err(Error::Stopped))
    }
}

/// Runs a call of raft to its end even if the caller goes away: those that wait for raft's end must not be dropped
/// meanwhile, or the others that wait for it panic (openraft 0.10.0-alpha.37, `join_core_task`).
async fn detached<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
    let mut call = Box::pin(call);
    match futures::poll!(call.as_mut()) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => tokio::spawn(call).await.map_err(stopped),
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
    let state = StateDb::open(place)?;
    let (mvcc, applied, effects) = state.load(window)?;
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

fn config(snapshot_every: u64) -> Result<Config, Error> {
    let config = Config {
        cluster_name: "coracle".into(),
        heartbeat_interval: 150,
        election_timeout_min: 500,
        election_timeout_max: 1000,
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

fn stopped(error: impl std::fmt::Display) -> Error {
    Error::Stopped(error.to_string())
}

fn read_error(error: RaftError<Types, LinearizableReadError<Types>>) -> Error {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            Error::NotLeader { leader: forward.leader_id }
        }
        error => stopped(error),
    }
}
