//! `coracle runtime`: the CRI service.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use coracle_wasm::routes::Cidr;
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Options {
    /// The CRI socket to serve.
    #[arg(long)]
    pub socket: PathBuf,
    /// Where records, images and compiled code lie.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// The registries' configuration (JSON); without one, names are used as they are.
    #[arg(long)]
    pub registries: Option<PathBuf>,
    /// A folder with a folder for each registry (`hosts.toml`, certificates), as containerd has it.
    #[arg(long, default_value = "/etc/coracle/certs.d")]
    pub registry_config_dir: Vec<PathBuf>,
    /// Addresses of all pods of the cluster, as its servers have them. In profile `loopback` the node's pods take any of them
    /// until it is given its own part.
    #[arg(long, default_value = "127.64.0.0/11")]
    pub pod_cidr: Cidr,
    /// Addresses of Services.
    #[arg(long, default_value = "127.96.0.0/12")]
    pub service_cidr: Cidr,
    /// The network profile: `loopback`, or `routed`, which gives pods ordinary addresses and runs Linux containers.
    #[arg(long, value_enum, default_value_t = Network::Loopback)]
    pub network: Network,
    /// The collector that spans of wasm guests go to (OTLP over HTTP), `http://host:port`.
    #[arg(long)]
    pub otlp_endpoint: Option<String>,
    /// Memory mappings beyond which a host process gets no more pods and another one is started; three quarters of what
    /// the kernel allows a process, unless set.
    #[arg(long)]
    pub host_mappings: Option<u64>,
    /// A folder of CNI configurations; the first `.conf`, `.conflist` or `.json` in it is honoured (type `bridge`).
    #[arg(long)]
    pub cni_conf_dir: Option<PathBuf>,
    /// The OCI runtime for Linux containers: a program on the PATH, or a path.
    #[arg(long, default_value = "runc")]
    pub oci_runtime: PathBuf,
    /// A folder of CDI specifications; /etc/cdi and /var/run/cdi are read without being named.
    #[arg(long)]
    pub cdi_spec_dir: Vec<PathBuf>,
}

/// A network profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Network {
    /// Addresses inside 127/8, wasm pods only.
    Loopback,
    /// Ordinary addresses.
    Routed,
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| serve(options, shutdown))
}

async fn serve(options: Options, shutdown: CancellationToken) -> Result<()> {
    let me = std::env::current_exe().context("find this program's own file")?;
    let mut registries: coracle_images::RegistryConfig = match &options.registries {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?
        }
        None => Default::default(),
    };
    registries.host_dirs.extend(options.registry_config_dir);
    let mut wasm_host_command = vec![me.clone().into(), "wasm-host".into()];
    let ranges = [("--pod-cidr", options.pod_cidr), ("--service-cidr", options.service_cidr)];
    wasm_host_command
        .extend(ranges.into_iter().flat_map(|(flag, range)| [flag.into(), range.to_string().into()]));
    if let Some(endpoint) = options.otlp_endpoint {
        anyhow::ensure!(
            endpoint.starts_with("http://"),
            "--otlp-endpoint {endpoint} is not http://host:port"
        );
        wasm_host_command.extend(["--otlp-endpoint".into(), endpoint.into()]);
    }
    let routed = (options.network == Network::Routed).then(|| coracle_cri::Routed {
        cluster_cidr: options.pod_cidr.to_string(),
        cni_conf_dir: options.cni_conf_dir,
        oci_runtime: options.oci_runtime,
        shim_command: vec![me.clone().into(), "oci-shim".into()],
        cdi_dirs: options.cdi_spec_dir,
    });
    coracle_cri::serve(
        coracle_cri::Options {
            socket: options.socket,
            state_dir: options.state_dir,
            registries,
            host_mappings: options.host_mappings,
            wasm_host_command,
            compile_command: vec![me.into(), "compile-wasm".into()],
            // In profile routed pods wait for the node's own part: an address of another node's leads there.
            pod_cidr: if routed.is_some() { String::new() } else { options.pod_cidr.to_string() },
            routed,
        },
        shutdown,
    )
    .await
}
