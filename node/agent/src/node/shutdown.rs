//! The end of the machine (SIGPWR): pods are ended in order while there is time, the critical ones last, and no new ones
//! are taken. An end of the agent alone ends no pod.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::eviction::rank::is_critical;
use crate::pods::source::Pods;
use crate::pods::state::Failed;
use crate::runtime::label;

const STEP: Duration = Duration::from_millis(200);
/// Kubernetes' words.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// Waits for the signal, until `shutdown`.
pub async fn run(context: Arc<Context>, pods: Pods, shutdown: CancellationToken) {
    let mut power = match signal(SignalKind::from_raw(libc::SIGPWR)) {
        Ok(power) => power,
        Err(error) => return tracing::warn!(%error, "the end of the machine will not be noticed"),
    };
    loop {
        tokio::select! {
            received = power.recv() => if received.is_none() { return },
            () = shutdown.cancelled() => return,
        }
        let times = context.tuning.shutdown;
        if times.grace.is_zero() {
            tracing::warn!("SIGPWR: pods run on, because --shutdown-grace-period is 0");
            continue;
        }
        tracing::warn!("the machine shuts down: pods are being ended");
        context.shutting_down.store(true, Ordering::Relaxed);
        context.pressure.send_modify(|_| ());
        context.recorder.own_node(
            &context.node_name,
            false,
            "Shutdown",
            "Shutdown manager detected shutdown event",
        );
        let critical = times.critical.min(times.grace);
        end(&context, &pods, times.grace - critical, false).await;
        end(&context, &pods, critical, true).await;
        tracing::warn!("the machine may shut down: pods are ended");
    }
}

/// Ends the pods of one kind, and waits for them as long as they may take.
async fn end(context: &Context, pods: &Pods, time: Duration, critical: bool) {
    let grace = i64::try_from(time.as_secs()).unwrap_or(i64::MAX).max(1);
    let mut chosen = HashSet::new();
    for pod in pods.list().into_iter().filter(|pod| is_critical(pod) == critical) {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if let (Some(uid), false) = (&pod.metadata.uid, matches!(phase, Some("Succeeded" | "Failed"))) {
            let failed = Failed {
                reason: REASON.into(),
                message: MESSAGE.into(),
                disrupted: true,
                grace: Some(grace),
            };
            pods.fail(uid, failed);
            chosen.insert(uid.clone());
        }
    }
    let until = Instant::now() + time;
    while Instant::now() < until && !chosen.is_empty() {
        let all = context.runtime.containers(HashMap::new()).await;
        let runs = |c: &coracle_cri_api::v1::Container| {
            c.state == 1 && c.labels.get(label::POD_UID).is_some_and(|uid| chosen.contains(uid))
        };
        if all.is_ok_and(|all| !all.iter().any(runs)) {
            return;
        }
        tokio::time::sleep(STEP).await;
    }
}
