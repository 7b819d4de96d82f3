//! `coracle bench`: loads for a control plane.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use coracle_controllers::hollow;
use tokio_util::sync::CancellationToken;

use crate::kubeconfig::Cluster;

#[derive(Subcommand)]
pub enum Command {
    /// Play nodes that exist in the API only and say of each pod that it runs, in the manner of kubemark and KWOK. They, and
    /// the pods made here, go away at the end.
    HollowNodes(HollowNodes),
}

#[derive(Args)]
pub struct HollowNodes {
    /// How many nodes.
    count: usize,
    /// Make so many pods, say how fast they became ready, and end; without it nodes are played until Ctrl-C.
    #[arg(long)]
    pods: Option<usize>,
    /// Seconds that the pods may take.
    #[arg(long, default_value_t = 600)]
    patience: u64,
    /// The names of the nodes are this, a hyphen and a number.
    #[arg(long, default_value = "hollow")]
    prefix: String,
    #[command(flatten)]
    cluster: Cluster,
}

/// Runs the load.
pub fn run(command: Command) -> Result<()> {
    let Command::HollowNodes(options) = command;
    super::run_service(|shutdown| async move {
        let (client, _) = options.cluster.client().await?;
        hollow_nodes(client, options, shutdown).await
    })
}

async fn hollow_nodes(client: kube::Client, options: HollowNodes, shutdown: CancellationToken) -> Result<()> {
    let nodes = hollow::Options { prefix: options.prefix, ..hollow::Options::new(options.count) };
    let (ready, pods) = tokio::sync::oneshot::channel();
    let (stop, unplayed) = (CancellationToken::new(), client.clone());
    let playing = hollow::run(client.clone(), nodes.clone(), |pods| drop(ready.send(pods)), stop.clone());
    let loading = async {
        let pods = pods.await.context("the nodes were not made")?;
        println!("{} hollow nodes are ready", options.count);
        let Some(number) = options.pods else {
            shutdown.cancelled().await;
            return Ok(());
        };
        let patience = Duration::from_secs(options.patience);
        let load = hollow::Load { pods: number, patience, prefix: "hollow-load".into() };
        let measured = tokio::select! {
            measured = hollow::measure(client.clone(), &pods, &load) => measured.map(Some),
            () = shutdown.cancelled() => Ok(None),
        };
        if let Ok(Some(figures)) = &measured {
            println!("{figures}");
        }
        hollow::take_away(client, &pods, &load).await.and(measured.map(drop))
    };
    let ended = async {
        let ended = loading.await;
        stop.cancel();
        ended
    };
    let (played, ended): (Result<()>, Result<()>) = tokio::join!(playing, ended);
    let removed = hollow::remove(unplayed, &nodes).await;
    played.and(ended).and(removed)
}
