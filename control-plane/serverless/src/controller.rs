//! What the loops share: errors, pauses and the time.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::ObjectRef;

/// Between two tries of an object whose writes fail.
const RETRY: Duration = Duration::from_secs(1);
/// Each object is looked at this often even if nothing seems to have changed.
const RESYNC: Duration = Duration::from_secs(600);

/// Why an object could not be brought to where it should be.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] kube::Error);

/// What a reconciliation that went well asks for.
pub fn done() -> Action {
    Action::requeue(RESYNC)
}

/// What follows a failure: another try.
pub fn failed<K, C>(_: Arc<K>, error: &Error, _: Arc<C>) -> Action {
    tracing::debug!(%error, "try again");
    Action::requeue(RETRY)
}

/// The time of a condition's transition.
pub fn now() -> Time {
    Time(jiff::Timestamp::now())
}

/// Runs a controller's stream to its end, telling what fails.
pub async fn drive<K, W>(
    name: &str,
    results: impl futures::Stream<Item = Result<(ObjectRef<K>, Action), controller::Error<Error, W>>>,
) where
    K: kube::Resource<DynamicType = ()>,
    W: std::error::Error + 'static,
{
    let mut results = std::pin::pin!(results);
    while let Some(result) = results.next().await {
        match result {
            Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
            Err(error) => tracing::warn!(controller = name, %error, "cannot reconcile"),
        }
    }
}
