//! The endpoints of the Service `kubernetes`: every server that lives. Each says so in the store under a key that ends by
//! itself, and each brings the EndpointSlices up to date with what all of them say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use coracle_store::{Op, Range, Store, Txn, Value};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const PREFIX: &str = "/coracle/servers/";
const SERVICE: &str = "kubernetes.io/service-name=kubernetes";
/// How often a server says that it lives, and after what silence it is forgotten.
const EVERY: Duration = Duration::from_secs(4);
const FORGOTTEN_MS: u64 = 12_000;

/// Says that this server lives, and publishes who does, until shutdown.
pub async fn publish(
    store: Store,
    client: Client,
    member: u64,
    address: SocketAddr,
    shutdown: CancellationToken,
) {
    let key = bytes::Bytes::from(format!("{PREFIX}{member}"));
    while !shutdown.is_cancelled() {
        let value = Value::raw(address.to_string());
        let put = Op::Put { key: key.clone(), value, ttl_ms: Some(FORGOTTEN_MS) };
        let said = store.txn(Txn { success: vec![put], ..Txn::default() }).await;
        let published = match said {
            Ok(_) => reconcile(&store, &client).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = published {
            tracing::debug!(
                error = format!("{error:#}"),
                "the endpoints of the API server are not up to date"
            );
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    let gone = store.txn(Txn { success: vec![Op::Delete { key }], ..Txn::default() });
    let _ = tokio::time::timeout(Duration::from_secs(2), async {
        let _ = gone.await;
        let _ = reconcile(&store, &client).await;
    })
    .await;
}

async fn reconcile(store: &Store, client: &Client) -> Result<()> {
    let live = store.range(&Range::prefix(PREFIX))?;
    let live = live.kvs.iter().filter_map(|kv| std::str::from_utf8(&kv.value.json).ok()?.parse().ok());
    let wanted = slices(live.collect());
    let api = Api::<EndpointSlice>::namespaced(client.clone(), "default");
    let found = api.list(&ListParams::default().labels(SERVICE)).await?.items;
    for (name, slice) in &wanted {
        let old = found.iter().find(|old| old.metadata.name.as_deref() == Some(name));
        match old {
            None => drop(api.create(&PostParams::default(), slice).await?),
            Some(old) if old.endpoints == slice.endpoints && old.ports == slice.ports => {}
            Some(old) => {
                let mut new = slice.clone();
                new.metadata.resource_version.clone_from(&old.metadata.resource_version);
                api.replace(name, &PostParams::default(), &new).await?;
            }
        }
    }
    for old in found.iter().filter_map(|old| old.metadata.name.as_ref()) {
        if !wanted.contains_key(old) {
            api.delete(old, &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

/// One slice for each port and family, since a slice names its ports for all of its endpoints. The first is `kubernetes`.
fn slices(live: BTreeSet<SocketAddr>) -> BTreeMap<String, EndpointSlice> {
    let mut groups: BTreeMap<(u16, bool), Vec<IpAddr>> = BTreeMap::new();
    for address in live {
        groups.entry((address.port(), address.is_ipv6())).or_default().push(address.ip());
    }
    let named = groups.into_iter().enumerate().filter_map(|(i, ((port, v6), addresses))| {
        let name = if i == 0 { "kubernetes".to_owned() } else { format!("kubernetes-{port}{}", if v6 { "-v6" } else { "" }) };
        let endpoints: Vec<_> =
            addresses.iter().map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}})).collect();
        let slice = json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        });
        Some((name, serde_json::from_value(slice).ok()?))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_for_each_port() {
        let live = ["127.0.0.1:6443", "127.0.0.2:6443", "127.0.0.3:7443"].map(|a| a.parse().unwrap());
        let slices = slices(live.into());
        let shown: Vec<_> = slices
            .iter()
            .map(|(name, slice)| (name.as_str(), slice.endpoints.iter().flatten().count()))
            .collect();
        assert_eq!(shown, [("kubernetes", 2), ("kubernetes-7443", 1)]);
    }
}
