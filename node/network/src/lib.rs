//! The network of a node: Services, names and policies as one table, streamed to the runtime. Deciding (`plan`) is pure;
//! `cache` watches, `feed` sends.
//!
//! In profile `loopback` nothing here listens on a Service address: the runtime does, and it keeps the last table while this
//! process is away. Ingress and Knative routes are served by `node/gateway` (coracle-gateway), an HTTP reverse proxy of its own.
#![forbid(unsafe_code)]

pub mod cache;
pub mod events;
pub mod feed;
pub mod plan;
pub mod routed;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use cache::Cache;
use plan::Settings;

/// Changes that arrive within this time become one table.
const COALESCE: Duration = Duration::from_millis(5);

/// What the network of a node needs to know.
#[derive(Clone)]
pub struct Options {
    /// Reads Services, EndpointSlices, policies and pods; writes Events.
    pub client: Client,
    /// `unix:///path` of the CRI service, which serves the table too.
    pub runtime_endpoint: String,
    /// The name of this node.
    pub node_name: String,
    /// Where NodePorts listen.
    pub node_ip: String,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
    /// Where DNS questions are answered: the address of the Service `kube-system/kube-dns`. `None`: nowhere; wasm pods
    /// resolve names all the same.
    pub cluster_dns: Option<SocketAddr>,
    /// Who is asked for names of other domains; none: nobody.
    pub upstreams: Vec<SocketAddr>,
    /// Profile `routed`; `None` is profile `loopback`.
    pub routed: Option<routed::Options>,
}

/// Runs until `shutdown`; a server or runtime that is away is waited for.
pub async fn run_with(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (cache, watches) = Cache::new(&options.client);
    let settings = Settings {
        node_name: options.node_name.clone(),
        node_ip: options.node_ip.clone(),
        cluster_domain: options.cluster_domain.clone(),
        cluster_dns: options.cluster_dns,
        upstreams: options.upstreams.clone(),
        resolve_only: options.routed.is_some(),
    };
    let (tables, latest) = watch::channel(None);
    let feed = feed::Feed {
        client: options.client.clone(),
        runtime_endpoint: options.runtime_endpoint.clone(),
        node_name: options.node_name.clone(),
        cache: cache.clone(),
    };
    let dns = options.cluster_dns.and_then(|dns| match dns.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    let in_kernel = options.routed.is_some();
    let me = options.routed.clone().map(|routed| routed::Me {
        client: options.client.clone(),
        node_name: options.node_name.clone(),
        node_ip: options.node_ip.clone(),
        cluster_dns: dns,
        options: routed,
    });
    let (end, routes) = (shutdown.child_token(), latest.clone());
    let kernel = async {
        match me {
            Some(me) => me.run(routes, end.clone()).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(kernel);
    tokio::select! {
        () = watches => Ok(()),
        result = plan_tables(&cache, &settings, tables) => result,
        () = feed.run(latest) => Ok(()),
        // Its clean end takes a moment, and is waited for.
        result = &mut kernel => result,
        () = shutdown.cancelled(), if !in_kernel => Ok(()),
    }
}

/// The resolvers of this host, by `/etc/resolv.conf`.
///
/// # Errors
/// When there is no such file, or nobody in it.
pub fn host_resolvers() -> anyhow::Result<Vec<SocketAddr>> {
    let path = "/etc/resolv.conf";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let found = resolvers(&text);
    anyhow::ensure!(!found.is_empty(), "{path} names no resolver");
    Ok(found)
}

fn resolvers(text: &str) -> Vec<SocketAddr> {
    let address =
        |line: &str| Some(SocketAddr::new(line.strip_prefix("nameserver")?.trim().parse().ok()?, 53));
    text.lines().filter_map(address).collect()
}

/// Keeps the latest table up to date.
async fn plan_tables(
    cache: &Cache,
    settings: &Settings,
    tables: watch::Sender<Option<Arc<coracle_cri_api::network::Table>>>,
) -> anyhow::Result<()> {
    let mut changes = cache.changes();
    cache.ready().await?;
    loop {
        changes.mark_unchanged();
        let table = cache.table(settings).await?;
        tables.send_if_modified(|last| {
            let changed = last.as_deref() != Some(&table);
            if changed {
                *last = Some(Arc::new(table));
            }
            changed
        });
        changes.changed().await?;
        tokio::time::sleep(COALESCE).await;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn resolvers_of_the_host() {
        let text =
            "# nameserver 9.9.9.9\nsearch a.b\nnameserver 10.0.0.2\nnameserver\t10.0.0.3 \nnameserver x\n";
        let found: Vec<_> = super::resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.2:53", "10.0.0.3:53"]);
    }
}
