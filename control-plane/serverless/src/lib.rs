//! Knative Serving (`serving.knative.dev/v1`): Services, Configurations, Revisions and Routes become Deployments and
//! routes of the nodes' gateways, and an autoscaler follows what these gateways see, down to zero pods.
//!
//! Kinds are custom resources ([`definitions`]). Deciding is pure ([`plan`], [`autoscaler::decide`]); the rest is an API client.
#![forbid(unsafe_code)]

use kube::Client;
use tokio_util::sync::CancellationToken;

pub mod autoscaler;
mod configuration;
mod controller;
mod definitions;
mod ensure;
mod ingress;
pub mod plan;
mod revision;
mod route;
mod service;
pub mod types;

/// The identity that the controllers act as; in Kubernetes it would be the ServiceAccount of that name in `kube-system`.
pub const IDENTITY: &str = "serverless-controller";

/// What the controllers need to know.
#[derive(Clone)]
pub struct Options {
    /// The API server, as [`IDENTITY`].
    pub client: Client,
    /// The domain of routes: a Service `a` of namespace `b` is `a.b.<domain>`. Knative's default is `example.com`.
    pub domain: String,
    /// The cluster's own domain, such as `cluster.local`.
    pub cluster_domain: String,
}

/// Installs the kinds and runs the controllers until `shutdown`.
pub async fn run(options: Options, shutdown: CancellationToken) {
    let client = options.client.clone();
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = definitions::install(&client) => {}
    }
    let work = async {
        tokio::join!(
            service::run(client.clone()),
            configuration::run(client.clone()),
            revision::run(client.clone()),
            route::run(options.clone()),
            ingress::run(client.clone()),
            autoscaler::run(client.clone()),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = work => {}
    }
}
