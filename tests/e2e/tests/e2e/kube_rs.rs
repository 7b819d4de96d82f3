//! kube-rs against the real binary: typed objects, a watcher that resumes, conflicts and patches. Profile: loopback.

mod controller;

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coracle_e2e::{Cluster, Ended, Profile};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use serde_json::json;

/// Row: clients: kube-rs: create, list, patch, conflict, delete, and a watcher that goes on after the server was killed; a controller with a derived kind, finalizers and owned objects
#[test]
fn kube_rs_works_and_its_watch_survives_the_server() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    tokio::runtime::Runtime::new()?.block_on(drive(&cluster))?;
    cluster.stop()
}

async fn drive(cluster: &Cluster) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(cluster.data_dir().join("kubeconfig"))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
    ensure!(nodes.items.len() == 1, "{} nodes", nodes.items.len());

    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let selector = watcher::Config::default().labels("test=kube-rs");
    let mut events = pin!(watcher(maps.clone(), selector).default_backoff().applied_objects());
    let made = maps.create(&PostParams::default(), &config_map("a", "1")?).await?;
    ensure!(seen(&mut events).await? == ("a".to_owned(), "1".to_owned()));

    let patch = Patch::Merge(json!({"data": {"value": "2"}}));
    maps.patch("a", &PatchParams::default(), &patch).await?;
    ensure!(seen(&mut events).await? == ("a".to_owned(), "2".to_owned()));

    // `made` is of the revision before the patch.
    let stale = maps.replace("a", &PostParams::default(), &made).await;
    match stale {
        Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "Conflict" => {}
        other => bail!("a stale update was answered with {other:?}"),
    }

    cluster.kill("server")?;
    let again = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            match maps.create(&PostParams::default(), &config_map("b", "3")?).await {
                Ok(_) => return anyhow::Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    again.await.context("the API does not come back")??;
    // A watcher that had to list again tells "a" once more, and then "b".
    let mut told = seen(&mut events).await?;
    if told.0 == "a" {
        told = seen(&mut events).await?;
    }
    ensure!(told == ("b".to_owned(), "3".to_owned()), "{told:?}");

    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("test=kube-rs")).await?;
    let left = maps.list(&ListParams::default().labels("test=kube-rs")).await?;
    ensure!(left.items.is_empty());
    controller::drive(client).await
}

fn config_map(name: &str, value: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"test": "kube-rs"}}, "data": {"value": value},
    }))?)
}

/// The next object of a watch: its name and its value.
async fn seen(
    events: &mut (impl Stream<Item = watcher::Result<ConfigMap>> + Unpin),
) -> Result<(String, String)> {
    let next = async {
        loop {
            // An error is the watch that was cut; it goes on by itself.
            if let Some(Ok(map)) = events.next().await {
                return map;
            }
        }
    };
    let map = tokio::time::timeout(Duration::from_secs(30), next).await.context("the watch says nothing")?;
    let value = map.data.unwrap_or_default().remove("value").unwrap_or_default();
    Ok((map.metadata.name.unwrap_or_default(), value))
}
