//! `coracle logs`: what a pod wrote.

use anyhow::{Context, Result};
use clap::Args;
use futures::AsyncReadExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, LogParams};
use kube::core::Selector;

use crate::kubeconfig::Cluster;

#[derive(Args)]
pub struct Options {
    /// A pod, or `deploy/NAME` for the first pod of a Deployment.
    target: String,
    /// Go on as more is written.
    #[arg(short, long)]
    follow: bool,
    /// Of the container before its last restart.
    #[arg(short, long)]
    previous: bool,
    /// Only this many lines from the end.
    #[arg(long)]
    tail: Option<i64>,
    /// The container, if the pod has several.
    #[arg(short, long)]
    container: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
}

pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let (client, namespace) = options.cluster.client().await?;
        let name = pod_of(&client, &namespace, &options.target).await?;
        let params = LogParams {
            follow: options.follow,
            previous: options.previous,
            tail_lines: options.tail,
            container: options.container,
            ..LogParams::default()
        };
        let pods: Api<Pod> = Api::namespaced(client, &namespace);
        // Bytes as they come: what a program writes may be no text, and no line.
        let mut stream = pods.log_stream(&name, &params).await?;
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = stream.read(&mut buffer).await.context("read the logs")?;
            match buffer.get(..count) {
                None | Some([]) => return Ok(()),
                Some(bytes) => super::print(bytes)?,
            }
        }
    })
}

async fn pod_of(client: &kube::Client, namespace: &str, target: &str) -> Result<String> {
    let Some((kind, name)) = target.split_once('/') else { return Ok(target.to_owned()) };
    if ["pod", "pods", "po"].contains(&kind) {
        return Ok(name.to_owned());
    }
    if !["deploy", "deployment", "deployments"].contains(&kind) {
        anyhow::bail!("logs of a {kind}: give a pod or deploy/NAME");
    }
    let deployment = Api::<Deployment>::namespaced(client.clone(), namespace).get(name).await?;
    let spec = deployment.spec.with_context(|| format!("deployment {name} has no spec"))?;
    let selector =
        Selector::try_from(spec.selector).with_context(|| format!("the selector of deployment {name}"))?;
    let pods = Api::<Pod>::namespaced(client.clone(), namespace)
        .list(&ListParams::default().labels_from(&selector))
        .await?;
    let mut pods = pods.items;
    // One that stays, and has something to say.
    pods.sort_by_key(|pod| {
        let running = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
        (pod.metadata.deletion_timestamp.is_some(), !running)
    });
    pods.into_iter()
        .find_map(|pod| pod.metadata.name)
        .with_context(|| format!("deployment {name} has no pods"))
}
