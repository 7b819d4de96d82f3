//! `coracle server`: store, API server, registry of images, controllers and scheduler in one process.
//!
//! Several of them make a cluster of which any one may be lost: the first makes it, the others join with `--join`.

mod admin;
pub mod archive;
mod ask;
pub mod audit;
pub mod authentication;
mod bucket;
mod components;
mod credentials;
pub mod encryption;
mod endpoints;
mod join;
pub mod membership;
pub mod schedule;
pub mod sealed;
pub mod tuning;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use coracle_apiserver::authn::TokenKey;
use coracle_apiserver::ca::ClusterCa;
use coracle_apiserver::{ApiServer, KubeletProxy, UserInfo};
use coracle_image_registry::{Fetch, ImageRegistry};
use coracle_registry::authz::component;
use coracle_registry::{Cidr, RegistryOptions};
use coracle_store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::membership::Membership;
use crate::data_dir::{check_restored, clear_temporary, make_private};
use crate::kubeconfig::write_secret;

/// How often it is looked at what Services hold of addresses and node ports, as kube-apiserver does.
const REPAIR: Duration = Duration::from_secs(180);
/// How often it is looked whether the system's Services and their range are there, as kube-apiserver does.
const KEEP: Duration = Duration::from_secs(10);

/// `coracle server`, or what operators ask of servers that run.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Command {
    #[command(subcommand)]
    ask: Option<ask::Ask>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
pub struct Options {
    /// Where state, keys and images lie; required.
    // Not by clap: whoever only asks running servers has none.
    #[arg(long, default_value = "", hide_default_value = true, value_parser = any_path)]
    pub data_dir: PathBuf,
    /// Where to serve; port 0 takes a free one, and keeps it at the next start.
    #[arg(long, default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,
    /// The address that clients and other servers are told; needed where --listen names none of this host.
    #[arg(long)]
    pub advertise: Option<IpAddr>,
    /// Where to listen for the other servers; otherwise a free port, kept, at the address that is advertised.
    #[arg(long)]
    pub peer_listen: Option<SocketAddr>,
    /// Join the cluster of this server (https://HOST:PORT). Only the first start needs it.
    #[arg(long, requires = "credential")]
    pub join: Option<String>,
    /// The cluster's join token: the file `server-token` of its first server, or `coracle member token`.
    #[arg(long, group = "credential", env = "CORACLE_JOIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// A file that holds the join token.
    #[arg(long, group = "credential")]
    pub token_file: Option<PathBuf>,
    /// Addresses of Services, fixed when the cluster is made [default: 127.96.0.0/12].
    #[arg(long)]
    pub service_cidr: Option<Cidr>,
    /// Addresses of pods, fixed when the cluster is made [default: 127.64.0.0/11].
    #[arg(long)]
    pub pod_cidr: Option<Cidr>,
    #[command(flatten)]
    pub encrypting: encryption::Encrypting,
    #[command(flatten)]
    pub auditing: audit::Auditing,
    /// Admission plugins that are off unless asked for.
    #[arg(long, value_delimiter = ',', value_parser = ["OwnerReferencesPermissionEnforcement"])]
    pub enable_admission_plugins: Vec<String>,
    /// Accept Ingresses in the versions that Kubernetes removed (extensions/v1beta1, networking.k8s.io/v1beta1).
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub legacy_manifests: bool,
    /// Seconds that pods stay on a node that is not ready, unless they say otherwise.
    #[arg(long, default_value_t = 300)]
    pub default_not_ready_toleration_seconds: i64,
    /// Seconds that pods stay on a node that cannot be reached, unless they say otherwise.
    #[arg(long, default_value_t = 300)]
    pub default_unreachable_toleration_seconds: i64,
    /// Forget versions and events that are older than so many minutes; otherwise the newest 100,000 are kept.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub history_minutes: Option<u64>,
    #[command(flatten)]
    pub schedule: schedule::Schedule,
    #[command(flatten)]
    pub tuning: tuning::Tuning,
    #[command(flatten)]
    pub authentication: authentication::Authentication,
    /// Where to write the administrator's kubeconfig.
    #[arg(long)]
    pub write_kubeconfig: Option<PathBuf>,
    /// Write credentials for a node of this name: `NAME=ADDRESS`.
    #[arg(long, value_parser = local_node)]
    pub local_node: Option<(String, IpAddr)>,
}

/// An empty one too, which stands for none.
fn any_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.into())
}

fn local_node(text: &str) -> Result<(String, IpAddr)> {
    let (name, address) = text.split_once('=').context("not NAME=ADDRESS")?;
    Ok((name.to_owned(), address.parse().with_context(|| format!("{address:?} is no IP address"))?))
}

pub fn run(command: Command) -> Result<()> {
    if let Some(ask) = command.ask {
        return ask::run(ask);
    }
    ensure!(!command.options.data_dir.as_os_str().is_empty(), "--data-dir DATA_DIR is required");
    super::run_service(|shutdown| serve(command.options, shutdown))
}

async fn serve(options: Options, shutdown: CancellationToken) -> Result<()> {
    let listener = listen(&options).await?;
    let address = advertised(&options, listener.local_addr()?)?;
    let url = format!("https://{address}");
    let membership = member_of(&options, address).await?;
    let (service_cidr, pod_cidr) =
        (membership.services(options.service_cidr)?, membership.pods(options.pod_cidr)?);
    let ca = ClusterCa::open(options.data_dir.join("pki")).context("the cluster's certificate authority")?;
    let ca = Arc::new(ca);
    let admin_token = credentials::token(&options.data_dir.join("pki/admin.token"))?;
    let node_token = credentials::token(&options.data_dir.join("pki/node.token"))?;

    let images = ImageRegistry::open(&options.data_dir.join("images"))?;
    let own = Arc::new(OnceLock::new());
    let routes = images.member_router().merge(admin::member_router(own.clone()));
    let source = open_store(&options, &membership, address.ip(), routes).await?;
    let store = source.store.clone();
    // The store is locked: nobody else works here.
    clear_temporary(&options.data_dir).context("remove what an earlier start left unfinished")?;
    // Nobody else sets it.
    let _ = own.set(store.clone());
    let taker = options.schedule.taker(&source)?;
    let kubelet = ca.ensure_client(
        "apiserver-kubelet-client",
        coracle_apiserver::kubelet_proxy::CLIENT_USER,
        &["system:masters"],
    )?;
    let registry_options = RegistryOptions {
        service_cidr,
        pod_cidr,
        api_server: (address.ip(), address.port()),
        kubelet: Some(KubeletProxy::new(ca.client_config(Some(&kubelet))?)),
        ca_pem: Some(ca.cert_pem().to_owned()),
        front_proxy: Some(ca.ensure_client(
            coracle_registry::FRONT_PROXY,
            coracle_registry::FRONT_PROXY,
            &[],
        )?),
        legacy_manifests: options.legacy_manifests,
        enforce_owner_permissions: !options.enable_admission_plugins.is_empty(),
        toleration_seconds: (
            options.default_not_ready_toleration_seconds,
            options.default_unreachable_toleration_seconds,
        ),
        token_key: Some(Arc::new(TokenKey::open(&ca.dir().join("sa.key"))?)),
        authenticators: options.authentication.authenticators()?,
        anonymous: options.authentication.anonymous()?,
        fixed_tokens: [
            (admin_token.clone(), UserInfo::new("kubernetes-admin", &["system:masters"])),
            (node_token.clone(), UserInfo::new("system:node:local", &["system:nodes"])),
        ]
        .into_iter()
        .chain(options.authentication.fixed_tokens()?)
        .collect(),
        ..RegistryOptions::default()
    };
    let builtin = coracle_registry::builtin(&registry_options, &store)?;
    let fetch: Fetch = Arc::new({
        let store = store.clone();
        move |path| {
            let store = store.clone();
            Box::pin(async move { store.fetch_from_members(&path).await })
        }
    });
    let admin = admin::router(admin::Admin { source, ca_pem: ca.cert_pem().to_owned() });
    let metrics = coracle_metrics::Objects::default();
    let builder = ApiServer::builder(Arc::new(store.clone()))
        .resources(coracle_metrics::resources(&metrics))
        .mount_with_passwords("/v2", images.router(store.clone(), Some(fetch)))
        .mount("/coracle", admin)
        .mount(coracle_ui::PATH, coracle_ui::router())
        .advertise(address.to_string())
        .shutdown(shutdown.clone());
    let audit = options.auditing.open()?;
    let builder = match &audit {
        Some(audit) => builder.audit(audit.clone()),
        None => builder,
    };
    let server = builtin.install(builder).build();

    let mut identity =
        ca.ensure_server("apiserver", "kube-apiserver", &credentials::names(service_cidr, address.ip()))?;
    // Servers that join know the authority by its hash, and find it here.
    identity.cert_pem += ca.cert_pem();
    let serving = tokio::spawn({
        let (server, tls) = (server.clone(), ca.server_config(&identity)?);
        async move { server.serve(listener, tls).await }
    });
    let ended = tokio::spawn({
        let (store, shutdown) = (store.clone(), shutdown.clone());
        async move {
            let reason = store.ended().await;
            shutdown.cancel();
            reason
        }
    });
    let started = async {
        bootstrap(&server, &registry_options, &shutdown).await?;
        if let Some(token) = join::renew(&store, ca.cert_pem(), true).await.context("make a join token")? {
            write_secret(&options.data_dir.join("server-token"), &format!("{token}\n"))?;
        }
        credentials::write(&options, &ca, &url, &admin_token, &node_token)
    };
    let started = started.await;
    if started.is_ok() {
        // Who does not read it is served all the same.
        let _ = writeln!(std::io::stdout(), "coracle server is ready: {url}");
        tracing::info!(%url, "ready");
        let publisher = kube::Client::new(
            server.service_as(UserInfo::new("system:apiserver", &["system:masters"])),
            "default",
        );
        let member = membership.member;
        tokio::join!(
            encryption::renew(store.clone(), shutdown.clone()),
            components::run(
                &server,
                member,
                pod_cidr.to_string(),
                &options.tuning,
                ca.clone(),
                shutdown.clone()
            ),
            coracle_metrics::run(
                kube::Client::new(
                    server.service_as(component::controller(coracle_metrics::IDENTITY)),
                    "default"
                ),
                metrics,
                options.tuning.metrics(),
                shutdown.clone(),
            ),
            endpoints::publish(store.clone(), publisher, member, address, shutdown.clone()),
            options.schedule.run(taker, shutdown.clone()),
            coracle_registry::service::repair::run(server.objects(), REPAIR, shutdown.cancelled()),
            coracle_registry::bootstrap::keep_services(
                &server,
                &registry_options,
                KEEP,
                shutdown.cancelled()
            ),
        );
    }
    shutdown.cancel();
    let served = serving.await.context("the API server's task")?;
    if ended.is_finished() {
        bail!("the store ended: {}", ended.await?);
    }
    if let Some(audit) = audit {
        audit.flush().await;
    }
    store.shutdown().await.context("close the store")?;
    started?;
    served.context("serve")
}

/// Which cluster this server belongs to: the one it was in before, the one it is to join, or a new one.
async fn member_of(options: &Options, address: SocketAddr) -> Result<Membership> {
    check_restored(&options.data_dir)?;
    if let Some(membership) = Membership::read(&options.data_dir)? {
        return Ok(membership);
    }
    let membership = match &options.join {
        None => {
            // Before anything is stored: neither can be changed later.
            let default = RegistryOptions::default();
            let service_cidr = options.service_cidr.unwrap_or(default.service_cidr);
            let pod_cidr = options.pod_cidr.unwrap_or(default.pod_cidr);
            ensure!(
                pod_cidr.base.is_loopback() || !address.ip().is_loopback(),
                "--pod-cidr {pod_cidr}: pods of this range do not reach the API server at {address}: give --listen an \
                 address of the host's network, or take a range in 127.64.0.0/10"
            );
            RegistryOptions { service_cidr, pod_cidr, ..default }.check()?;
            Membership::first(service_cidr, pod_cidr)
        }
        Some(url) => {
            let token = match (&options.token, &options.token_file) {
                (Some(token), _) => token.clone(),
                (None, Some(path)) => {
                    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?
                }
                (None, None) => bail!("--join needs --token or --token-file"),
            };
            if options.data_dir.join("store/state.redb").exists() {
                bail!("{} holds a cluster of its own, and cannot join another", options.data_dir.display());
            }
            let (membership, keys) = join::ask(url, &token).await?;
            membership::write_keys(&options.data_dir.join("pki"), &keys)?;
            membership
        }
    };
    membership.write(&options.data_dir)?;
    Ok(membership)
}

async fn open_store(
    options: &Options,
    membership: &Membership,
    ip: IpAddr,
    routes: axum::Router,
) -> Result<archive::Source> {
    let asked = options.peer_listen.unwrap_or(SocketAddr::new(ip, 0));
    let listener = bind(asked, &options.data_dir.join("peer-port")).await?;
    let address = SocketAddr::new(ip, listener.local_addr()?.port());
    let mut peering = membership.peering(&options.data_dir.join("pki"), listener, address)?;
    peering.routes = routes;
    let dir = options.data_dir.join("store");
    membership.check_store(&dir)?;
    let new = membership.join.is_empty() && !dir.join("state.redb").exists();
    let named = options.encrypting.encryption_provider_config.as_deref();
    let (sealer, encryption) = encryption::sealer(named, &options.data_dir.join("pki"), new)?.unzip();
    let history_age = options.history_minutes.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
    let node_id = membership.member;
    let store = coracle_store::Options { node_id, sealer, history_age, ..coracle_store::Options::new(&dir) };
    let opened = Store::open_member(store, peering).await;
    let store = opened.with_context(|| format!("open the store in {}", dir.display()))?;
    membership.enter(&options.data_dir)?;
    let (membership, data_dir) = (membership.to_share(), options.data_dir.clone());
    Ok(archive::Source { store, membership, data_dir, encryption })
}

/// Creates the system's own objects. Without a leader it is tried until there is one.
async fn bootstrap(
    server: &ApiServer,
    options: &RegistryOptions,
    shutdown: &CancellationToken,
) -> Result<()> {
    loop {
        let status = match coracle_registry::bootstrap(server, options).await {
            Ok(()) => return Ok(()),
            Err(status) => status,
        };
        // Another server may do the same at the same time.
        if !matches!(status.code, 409 | 429 | 500..=599) {
            return Err(status).context("create the system's own objects");
        }
        tracing::warn!(error = %status, "the system's own objects cannot be created yet");
        tokio::select! {
            () = shutdown.cancelled() => bail!("stopped before the system's own objects were there"),
            () = tokio::time::sleep(std::time::Duration::from_millis(500)) => {}
        }
    }
}

/// The address that others are told.
fn advertised(options: &Options, listening: SocketAddr) -> Result<SocketAddr> {
    let ip = options.advertise.unwrap_or(listening.ip());
    if ip.is_unspecified() {
        bail!("--listen {listening} names no address that others can reach: give --advertise ADDRESS");
    }
    Ok(SocketAddr::new(ip, listening.port()))
}

/// Port 0 means a free port, but the same one after a restart, since clients know it.
async fn listen(options: &Options) -> Result<TcpListener> {
    // Secrets lie in all of them.
    for folder in ["pki", "store", "images", "node"] {
        let folder = options.data_dir.join(folder);
        make_private(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    bind(options.listen, &options.data_dir.join("port")).await
}

async fn bind(asked: SocketAddr, kept: &Path) -> Result<TcpListener> {
    let mut address = asked;
    if address.port() == 0
        && let Ok(text) = std::fs::read_to_string(kept)
    {
        address.set_port(text.trim().parse().with_context(|| format!("read {}", kept.display()))?);
    }
    let listener = TcpListener::bind(address).await.with_context(|| {
        let hint = format!("; remove {} to take another port", kept.display());
        format!("listen on {address}{}", if asked.port() == 0 { hint.as_str() } else { "" })
    })?;
    if asked.port() == 0 {
        write_secret(kept, &listener.local_addr()?.port().to_string())?;
    }
    Ok(listener)
}
