//! The loop that every controller runs: take a key, bring the object to its wanted state, try again later on failure.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::cache::Key;
use crate::queue::WorkQueue;
use crate::write;

/// A controller: one call brings one object nearer to its wanted state, whatever happened before.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// The controller's name in logs.
    fn name(&self) -> &'static str;

    /// The queue that its handlers fill.
    fn queue(&self) -> &WorkQueue;

    /// How many objects it works on at a time.
    fn workers(&self) -> usize {
        8
    }

    /// Works on one object. `Some` asks to be called again after that time.
    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>>;
}

/// Runs a controller's workers until `shutdown`.
pub async fn run(controller: Arc<dyn Reconciler>, shutdown: CancellationToken) {
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..controller.workers() {
        let (controller, shutdown) = (controller.clone(), shutdown.clone());
        workers.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = shutdown.cancelled() => return,
                    key = controller.queue().next() => key,
                };
                work(controller.as_ref(), &key).await;
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            tracing::error!(controller = controller.name(), %error, "a worker failed");
        }
    }
}

async fn work(controller: &dyn Reconciler, key: &Key) {
    match controller.reconcile(key).await {
        Ok(again) => {
            controller.queue().done(key);
            if let Some(pause) = again {
                controller.queue().add_after(key.clone(), pause);
            }
        }
        Err(error) => {
            let failures = controller.queue().failed(key);
            let expected = error.downcast_ref::<kube::Error>().is_some_and(write::is_conflict);
            // A lost race is part of the work; only what stays wrong is worth a warning.
            if expected || failures < 3 {
                tracing::debug!(
                    controller = controller.name(),
                    key = &**key,
                    failures,
                    error = format!("{error:#}"),
                    "will try again"
                );
            } else {
                tracing::warn!(
                    controller = controller.name(),
                    key = &**key,
                    failures,
                    error = format!("{error:#}"),
                    "cannot reconcile"
                );
            }
        }
    }
}
