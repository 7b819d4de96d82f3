//! `coracle node`: the node agent and the Service table feed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

use super::runtime::Network;

#[derive(Args)]
pub struct Options {
    /// The kubeconfig of the cluster to join; its user is `system:node:NAME`.
    #[arg(long)]
    pub kubeconfig: PathBuf,
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
    /// Most pods at a time.
    #[arg(long, default_value_t = 1000)]
    pub max_pods: u32,
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
    pub tls_cert_file: PathBuf,
    /// Its key.
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// The authority of the node API's clients.
    #[arg(long)]
    pub client_ca_file: PathBuf,
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| serve(options, shutdown))
}

async fn serve(options: Options, shutdown: CancellationToken) -> Result<()> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let kubeconfig = Kubeconfig::read_from(&options.kubeconfig)
        .with_context(|| format!("read the kubeconfig {}", options.kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let cluster_dns = options.cluster_dns.first().map(|ip| SocketAddr::new(*ip, options.dns_port));
    let upstreams = if options.forward_dns { coracle_network::host_resolvers()? } else { Vec::new() };
    let gateway = coracle_gateway::Gateway::bind(coracle_gateway::Options {
        client: client.clone(),
        node_name: options.name.clone(),
        address: options.node_ip,
        port: options.gateway_port,
    })
    .await?;
    let agent = coracle_agent::Options {
        client: client.clone(),
        node_name: options.name.clone(),
        node_ip: options.node_ip,
        port: options.port,
        runtime_endpoint: options.runtime_endpoint.clone(),
        root_dir: options.root_dir.clone(),
        serving_cert: (read(&options.tls_cert_file)?, read(&options.tls_private_key_file)?),
        client_ca_pem: read(&options.client_ca_file)?,
        max_pods: options.max_pods,
        more_routes: gateway.router(),
        device_plugin_dir: options.device_plugin_dir,
        dns: coracle_agent::context::Dns {
            servers: options.cluster_dns,
            domain: options.cluster_domain.clone(),
        },
    };
    let feed = coracle_network::Options {
        client,
        node_ip: options.node_ip.to_string(),
        node_name: options.name,
        runtime_endpoint: options.runtime_endpoint,
        cluster_domain: options.cluster_domain,
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
