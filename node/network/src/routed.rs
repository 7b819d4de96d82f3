//! Profile `routed`: routes to the pods of other nodes, and nftables that lead connections to Services to endpoints.
//!
//! What is made here stays when this process is killed, so that traffic goes on, and is taken over by the next one; a clean
//! stop removes it. Bridges and cables of pods are the runtime's.

mod act;
mod nft;
mod routes;

use std::net::Ipv4Addr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache;
use crate::feed::Latest;

/// Nothing is carried out more often than this.
const PACE: Duration = Duration::from_millis(50);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(2);

/// What this profile needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses of Services, such as `10.96.0.0/12`.
    pub service_cidr: String,
}

/// The node that this is about.
pub struct Me {
    pub client: Client,
    pub node_name: String,
    pub node_ip: String,
    pub cluster_dns: Option<Ipv4Addr>,
    pub options: Options,
}

impl Me {
    /// Keeps the kernel's routes and tables as the API wants them, until `shutdown`; then removes them.
    ///
    /// # Errors
    /// When the device for Services cannot be made: without root, or iproute2.
    pub async fn run(self, mut tables: Latest, shutdown: CancellationToken) -> anyhow::Result<()> {
        act::prepare(&self.options.service_cidr, &self.node_ip, self.cluster_dns).await?;
        let (changed, mut changes) = watch::channel(0_u64);
        let (nodes, drive) = cache::reflect::<Node>(&self.client, changed, strip);
        let work = async {
            let mut done = act::Done::default();
            loop {
                changes.mark_unchanged();
                let table = tables.borrow_and_update().clone();
                let nodes = nodes.state();
                let plan = routes::plan(nodes.iter().map(AsRef::as_ref), &self.node_name);
                let mut fine = done.routes(&plan).await;
                if let Some(table) = table {
                    let balanced = routes::announced(
                        nodes.iter().map(AsRef::as_ref),
                        &self.node_name,
                        &table,
                        &self.options.service_cidr,
                    );
                    fine &= done.addresses(&balanced).await;
                    let script =
                        nft::script(&table, &self.options.service_cidr, self.cluster_dns, plan.gateway);
                    fine &= done.nft(script).await;
                }
                tokio::time::sleep(PACE).await;
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    changed = tables.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep(RETRY), if !fine => {}
                }
            }
        };
        tokio::select! {
            () = drive => {}
            () = work => {}
            () = shutdown.cancelled() => {}
        }
        act::remove().await;
        Ok(())
    }
}

/// Leaves of a node what routes ask about.
fn strip(node: &mut Node) {
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
        status.capacity = None;
        status.allocatable = None;
    }
}
