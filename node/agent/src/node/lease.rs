//! The node's Lease in `kube-node-lease`: its heartbeat.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::context::Context;

const NAMESPACE: &str = "kube-node-lease";
const RENEW: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// Without a renewal for so long the node counts as silent. Seconds.
const DURATION_SECONDS: i32 = 40;

/// Renews for ever.
pub async fn keep(context: &Context) {
    loop {
        let pause = match tokio::time::timeout(RENEW, renew(context)).await {
            Ok(Ok(())) => RENEW,
            Ok(Err(error)) => {
                tracing::debug!(%error, node = context.node_name, "could not renew the Lease");
                RETRY
            }
            Err(late) => {
                tracing::warn!(%late, node = context.node_name, "could not renew the Lease");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew(context: &Context) -> kube::Result<()> {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), NAMESPACE);
    let name = &context.node_name;
    let now = MicroTime(Timestamp::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.into()),
            ..Default::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..Default::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}
