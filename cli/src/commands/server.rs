//! `coracle server`: store, API server, registry of images, controllers and scheduler in one process.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_apiserver::authn::TokenKey;
use coracle_apiserver::ca::{ClusterCa, kubeconfig};
use coracle_apiserver::{ApiServer, KubeletProxy, UserInfo};
use coracle_registry::authz::component;
use coracle_registry::{Cidr, RegistryOptions};
use coracle_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::data_dir::make_private;
use crate::kubeconfig::write_secret;

#[derive(Args)]
pub struct Options {
    /// Where state, keys and images lie.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// Where to serve; port 0 takes a free one, and keeps it at the next start.
    #[arg(long, default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,
    /// Addresses of Services.
    #[arg(long, default_value = "127.96.0.0/12")]
    pub service_cidr: Cidr,
    /// Addresses of pods.
    #[arg(long, default_value = "127.64.0.0/11")]
    pub pod_cidr: Cidr,
    /// Where to write the administrator's kubeconfig.
    #[arg(long)]
    pub write_kubeconfig: Option<PathBuf>,
    /// Write credentials for a node of this name: `NAME=ADDRESS`.
    #[arg(long, value_parser = local_node)]
    pub local_node: Option<(String, IpAddr)>,
}

fn local_node(text: &str) -> Result<(String, IpAddr)> {
    let (name, address) = text.split_once('=').context("not NAME=ADDRESS")?;
    Ok((name.to_owned(), address.parse().with_context(|| format!("{address:?} is no IP address"))?))
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| serve(options, shutdown))
}

async fn serve(options: Options, shutdown: CancellationToken) -> Result<()> {
    let listener = listen(&options).await?;
    let address = listener.local_addr()?;
    let url = format!("https://{address}");
    let ca = ClusterCa::open(options.data_dir.join("pki")).context("the cluster's certificate authority")?;
    let admin_token = token(&options.data_dir.join("pki/admin.token"))?;
    let node_token = token(&options.data_dir.join("pki/node.token"))?;

    let store = Store::open(coracle_store::Options::new(options.data_dir.join("store")))
        .await
        .with_context(|| format!("open the store in {}", options.data_dir.join("store").display()))?;
    let kubelet = ca.ensure_client(
        "apiserver-kubelet-client",
        coracle_apiserver::kubelet_proxy::CLIENT_USER,
        &["system:masters"],
    )?;
    let registry_options = RegistryOptions {
        service_cidr: options.service_cidr,
        pod_cidr: options.pod_cidr,
        api_server: (address.ip(), address.port()),
        kubelet: Some(KubeletProxy::new(ca.client_config(Some(&kubelet))?)),
        token_key: Some(Arc::new(TokenKey::open(&ca.dir().join("sa.key"))?)),
        fixed_tokens: vec![
            (admin_token.clone(), UserInfo::new("kubernetes-admin", &["system:masters"])),
            (node_token.clone(), UserInfo::new("system:node:local", &["system:nodes"])),
        ],
        ..RegistryOptions::default()
    };
    let builtin = coracle_registry::builtin(&registry_options, &store)?;
    let images = coracle_image_registry::router(store.clone(), &options.data_dir.join("images"))?;
    let builder = ApiServer::builder(Arc::new(store.clone()))
        .mount("/v2", images)
        .advertise(address.to_string())
        .shutdown(shutdown.clone());
    let server = builtin.install(builder).build();

    let names = names(&options, address.ip());
    let identity = ca.ensure_server("apiserver", "kube-apiserver", &names)?;
    let serving = tokio::spawn({
        let (server, tls) = (server.clone(), ca.server_config(&identity)?);
        async move { server.serve(listener, tls).await }
    });
    coracle_registry::bootstrap(&server, &registry_options)
        .await
        .context("create the system's own objects")?;
    write_credentials(&options, &ca, &url, &admin_token, &node_token)?;

    let components = tokio::spawn(components(
        server.clone(),
        options.pod_cidr.to_string(),
        ca.cert_pem().to_owned(),
        shutdown.clone(),
    ));
    // Who does not read it is served all the same.
    let _ = writeln!(std::io::stdout(), "coracle server is ready: {url}");
    tracing::info!(%url, "ready");
    let served = serving.await.context("the API server's task")?;
    shutdown.cancel();
    components.await.context("the controllers' task")?;
    store.shutdown().await.context("close the store")?;
    served.context("serve")
}

/// Port 0 means a free port, but the same one after a restart, since clients know it.
async fn listen(options: &Options) -> Result<TcpListener> {
    // Secrets lie in all of them.
    for folder in ["pki", "store", "images", "node"] {
        let folder = options.data_dir.join(folder);
        make_private(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let kept = options.data_dir.join("port");
    let mut address = options.listen;
    if address.port() == 0
        && let Ok(text) = std::fs::read_to_string(&kept)
    {
        address.set_port(text.trim().parse().with_context(|| format!("read {}", kept.display()))?);
    }
    let listener = TcpListener::bind(address).await.with_context(|| {
        let hint = format!("; remove {} to take another port", kept.display());
        format!("listen on {address}{}", if options.listen.port() == 0 { hint.as_str() } else { "" })
    })?;
    if options.listen.port() == 0 {
        write_secret(&kept, &listener.local_addr()?.port().to_string())?;
    }
    Ok(listener)
}

fn names(options: &Options, ip: IpAddr) -> Vec<String> {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(String::from)
    .into();
    names.push(ip.to_string());
    if !ip.is_loopback() || ip.to_string() != "127.0.0.1" {
        names.push("127.0.0.1".into());
    }
    names.extend(first_address(options.service_cidr.base).map(|address| address.to_string()));
    names
}

/// The address of the Service `kubernetes`: the first of the range.
fn first_address(base: IpAddr) -> Option<std::net::Ipv4Addr> {
    let IpAddr::V4(base) = base else { return None };
    Some(std::net::Ipv4Addr::from(u32::from(base).checked_add(1)?))
}

/// A secret of 256 random bits, made once.
fn token(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => {
            bail!("{} is empty; remove it to make a new one", path.display())
        }
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    let bytes: [u8; 32] = rand::random();
    let text = hex::encode(bytes);
    write_secret(path, &text)?;
    Ok(text)
}

fn write_credentials(
    options: &Options,
    ca: &ClusterCa,
    url: &str,
    admin_token: &str,
    node_token: &str,
) -> Result<()> {
    let admin = ca.ensure_client("admin", "kubernetes-admin", &["system:masters"])?;
    let config = kubeconfig(url, ca.cert_pem(), &admin, Some(admin_token));
    if let Some(path) = &options.write_kubeconfig {
        write_secret(path, &config)?;
    }
    let Some((name, address)) = &options.local_node else { return Ok(()) };
    let dir = options.data_dir.join("node");
    let user = format!("system:node:{name}");
    let client = ca.ensure_client(&format!("node-{name}"), &user, &["system:nodes"])?;
    let serving =
        ca.ensure_server(&format!("node-{name}-serving"), &user, &[name.clone(), address.to_string()])?;
    write_secret(&dir.join("serving.crt"), &serving.cert_pem)?;
    write_secret(&dir.join("serving.key"), &serving.key_pem)?;
    write_secret(&dir.join("ca.crt"), ca.cert_pem())?;
    // A name without a registry means the built-in one, and never a stranger's.
    let registries = serde_json::json!({"defaultRegistry": null, "mirrors": [{
        "url": url, "caPem": ca.cert_pem(), "credentials": {"basic": {"username": "node", "password": node_token}},
    }]});
    write_secret(&dir.join("registries.json"), &serde_json::to_string_pretty(&registries)?)?;
    // Last: who waits for it finds the others.
    write_secret(&dir.join("kubeconfig"), &kubeconfig(url, ca.cert_pem(), &client, None))
}

async fn components(server: ApiServer, pod_cidr: String, root_ca_pem: String, shutdown: CancellationToken) {
    let controllers = {
        let server = server.clone();
        let client_for = Arc::new(move |name: &str| {
            kube::Client::new(server.service_as(component::controller(name)), "default")
        });
        coracle_controllers::Options {
            pod_cidr: Some(pod_cidr),
            root_ca_pem: Some(root_ca_pem),
            ..coracle_controllers::Options::new(client_for)
        }
    };
    let scheduler =
        kube::Client::new(server.service_as(component::scheduler()), "default");
    let (controllers, scheduler) = tokio::join!(
        coracle_controllers::run(controllers, shutdown.clone()),
        coracle_scheduler::run(scheduler, coracle_scheduler::Options::default(), shutdown.clone()),
    );
    for (part, result) in [("controllers", controllers), ("scheduler", scheduler)] {
        if let Err(error) = result {
            tracing::error!(part, error = format!("{error:#}"), "stopped");
        }
    }
    // A member without its controllers is of no use: end, so that the supervisor starts it again.
    shutdown.cancel();
}
