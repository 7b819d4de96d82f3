//! `coracle node`: the node agent and the Service table feed.
//!
//! A node belongs to a cluster by a kubeconfig and certificates that it is given, or joins one with a token: then it asks
//! for certificates itself, and renews them.

pub mod authority;
mod join;
pub mod tuning;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

use super::runtime::Network;
use crate::failover;
use crate::kubeconfig::write_secret;

#[derive(Args)]
pub struct Options {
    /// The kubeconfig of the cluster; its user is `system:node:NAME`. Otherwise the node joins with a token.
    #[arg(long, requires_all = ["tls_cert_file", "tls_private_key_file", "client_ca_file"])]
    pub kubeconfig: Option<PathBuf>,
    /// A server of the cluster to join, `https://HOST:PORT`; may be repeated. Only the first start needs it.
    #[arg(long, conflicts_with = "kubeconfig")]
    pub join: Vec<String>,
    /// The token to join with, as `coracle token create` makes it. Only the first start needs it.
    #[arg(long, conflicts_with = "kubeconfig", env = "CORACLE_NODE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The hash of the cluster's authority, `sha256:...`; without it, the token's signature vouches for it.
    #[arg(long, conflicts_with = "kubeconfig")]
    pub ca_cert_hash: Option<String>,
    /// The node's name.
    #[arg(long, default_value = "node-1")]
    pub name: String,
    /// The node's address.
    #[arg(long, default_value = "127.0.1.1")]
    pub node_ip: IpAddr,
    /// The port of the node API; 0 takes a free one.
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
    /// The port of the HTTP gateway (Ingresses, Knative routes); 8080 is taken instead where it needs a privilege.
    #[arg(long, default_value_t = 80)]
    pub gateway_port: u16,
    /// Addresses of the cluster's DNS, for pods that ask a server.
    #[arg(long, value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// The port at which this node answers DNS questions at the cluster's DNS address. Pods ask port 53, which needs a
    /// privilege.
    #[arg(long, default_value_t = 53)]
    pub dns_port: u16,
    /// Ask the resolvers of this host (/etc/resolv.conf) for names of other domains.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub forward_dns: bool,
    /// The network profile of the cluster.
    #[arg(long, value_enum, default_value_t = Network::Loopback)]
    pub network: Network,
    /// Addresses of Services; only profile `routed` asks for it.
    #[arg(long, default_value = "10.96.0.0/12")]
    pub service_cidr: String,
    /// Where device plugins have their sockets; `device-plugins` in the root directory where it is not said.
    #[arg(long)]
    pub device_plugin_dir: Option<PathBuf>,
    #[command(flatten)]
    pub tuning: tuning::Tuning,
    /// The domain of the cluster's names.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The CRI endpoint.
    #[arg(long)]
    pub runtime_endpoint: String,
    /// Where volumes and logs lie.
    #[arg(long)]
    pub root_dir: PathBuf,
    /// The node API's serving certificate.
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// The authority of the node API's clients.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| serve(options, shutdown))
}

/// What a node is towards its cluster.
struct Credentials {
    client: kube::Client,
    serving: (String, String),
    /// The authority of the node API's clients.
    ca_pem: String,
}

async fn serve(options: Options, shutdown: CancellationToken) -> Result<()> {
    match &options.kubeconfig {
        Some(path) => services(&options, given(&options, path).await?, shutdown).await,
        None => joined(&options, shutdown).await,
    }
}

/// Credentials from files.
async fn given(options: &Options, kubeconfig: &PathBuf) -> Result<Credentials> {
    let read = |path: &Option<PathBuf>| {
        let path = path
            .as_ref()
            .context("--kubeconfig needs the node API's certificate, key and client authority")?;
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    };
    let config = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("read the kubeconfig {}", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Credentials {
        client: failover::client(config, Some(options.root_dir.join("servers"))).await?,
        serving: (read(&options.tls_cert_file)?, read(&options.tls_private_key_file)?),
        ca_pem: read(&options.client_ca_file)?,
    })
}

/// How long after a failed renewal the next is tried.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);

/// Joins and serves; with new certificates it begins anew, which no pod notices.
async fn joined(options: &Options, shutdown: CancellationToken) -> Result<()> {
    let home = join::Home::new(&options.root_dir);
    let wish = join::Wish {
        join: &options.join,
        token: options.token.as_deref(),
        hash: options.ca_cert_hash.as_deref(),
        name: &options.name,
        ip: options.node_ip,
    };
    loop {
        let term = shutdown.child_token();
        let member = tokio::select! {
            member = join::member(&home, &wish) => member?,
            () = shutdown.cancelled() => return Ok(()),
        };
        write_registries(options, &member).await.context("the registries' configuration")?;
        let credentials = Credentials {
            client: member.client.clone(),
            serving: member.serving.clone(),
            ca_pem: member.ca_pem.clone(),
        };
        let mut services = std::pin::pin!(services(options, credentials, term.clone()));
        let renewing = async {
            let left = member.renew_at - Timestamp::now().as_second();
            tokio::time::sleep(Duration::from_secs(u64::try_from(left).unwrap_or_default())).await;
            while let Err(error) = join::renew(&home, &member.client, &options.name, options.node_ip).await {
                tracing::warn!(error = format!("{error:#}"), "cannot renew the node's certificates yet");
                tokio::time::sleep(RENEWAL_RETRY).await;
            }
        };
        tokio::select! {
            done = &mut services => return done,
            () = renewing => tracing::info!("the node's certificates are renewed"),
        }
        term.cancel();
        services.await?;
    }
}

/// Tells the runtime how to pull from the cluster's own registry: names without a registry mean it, and never a stranger's.
async fn write_registries(options: &Options, member: &join::Member) -> Result<()> {
    let request = http::Request::get("/image-token").body(Vec::new())?;
    let answer: serde_json::Value = member.client.request(request).await?;
    let token =
        answer.get("token").and_then(serde_json::Value::as_str).context("the server gave no token")?;
    let mirrors: Vec<serde_json::Value> = member
        .servers
        .iter()
        .map(|server| {
            serde_json::json!({"url": server, "caPem": member.ca_pem,
                "credentials": {"basic": {"username": "node", "password": token}}})
        })
        .collect();
    let registries = serde_json::json!({"defaultRegistry": null, "mirrors": mirrors});
    write_secret(&options.root_dir.join("registries.json"), &serde_json::to_string_pretty(&registries)?)
}

async fn services(options: &Options, credentials: Credentials, shutdown: CancellationToken) -> Result<()> {
    let cluster_dns = options.cluster_dns.first().map(|ip| SocketAddr::new(*ip, options.dns_port));
    let upstreams = if options.forward_dns { coracle_network::host_resolvers()? } else { Vec::new() };
    let gateway = coracle_gateway::Gateway::bind(coracle_gateway::Options {
        client: credentials.client.clone(),
        node_name: options.name.clone(),
        address: options.node_ip,
        port: options.gateway_port,
    })
    .await?;
    let agent = coracle_agent::Options {
        client: credentials.client.clone(),
        node_name: options.name.clone(),
        node_ip: options.node_ip,
        port: options.port,
        runtime_endpoint: options.runtime_endpoint.clone(),
        root_dir: options.root_dir.clone(),
        serving_cert: credentials.serving,
        client_ca_pem: credentials.ca_pem,
        max_pods: options.tuning.max_pods,
        more_routes: gateway.router(),
        tuning: options.tuning.agent()?,
        device_plugin_dir: options.device_plugin_dir.clone(),
        dns: coracle_agent::context::Dns {
            servers: options.cluster_dns.clone(),
            domain: options.cluster_domain.clone(),
        },
    };
    let feed = coracle_network::Options {
        client: credentials.client,
        node_ip: options.node_ip.to_string(),
        node_name: options.name.clone(),
        runtime_endpoint: options.runtime_endpoint.clone(),
        cluster_domain: options.cluster_domain.clone(),
        cluster_dns,
        upstreams,
        routed: (options.network == Network::Routed)
            .then(|| coracle_network::routed::Options { service_cidr: options.service_cidr.clone() }),
    };
    // One without the other is no node: a failure of either ends the process, so that it is seen and tried again.
    tokio::try_join!(
        async { coracle_agent::run(agent, shutdown.clone()).await.context("the node agent") },
        async { coracle_network::run_with(feed, shutdown.clone()).await.context("the Service table feed") },
        async { gateway.run(shutdown.clone()).await.context("the gateway") },
    )?;
    Ok(())
}
