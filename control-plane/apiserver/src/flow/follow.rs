//! Keeps levels and schemas as the objects say.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::select_all;

use super::FlowSource;
use crate::state::Shared;

/// How long is waited before a watch that ended is begun again.
const RETRY: Duration = Duration::from_secs(1);

/// Follows the source until shutdown. Must run in a tokio runtime.
pub(crate) fn follow(shared: Arc<Shared>, source: Arc<dyn FlowSource>) {
    let shutdown = shared.shutdown.clone();
    tokio::spawn(async move {
        let work = async {
            loop {
                run(&shared, &*source).await;
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    });
}

async fn run(shared: &Shared, source: &dyn FlowSource) {
    let store = shared.objects.store();
    let revision = store.revision();
    let watches = source.prefixes().into_iter().filter_map(|p| store.watch(p.into(), revision).ok());
    let mut watches = select_all(watches);
    loop {
        shared.flows.replace(source.load(&shared.objects).await);
        if !matches!(watches.next().await, Some(Ok(_))) {
            return;
        }
        // Objects come in groups.
        tokio::time::sleep(Duration::from_millis(20)).await;
        while let Some(Some(event)) = futures::FutureExt::now_or_never(watches.next()) {
            if event.is_err() {
                return;
            }
        }
    }
}
