//! The server: built once from resources and chains, then served over TLS and inside the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use coracle_store::Store;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::audit::Audit;
use crate::authn::{Anonymous, PeerIdentity, TokenAuthenticator, TokenList, cert};
use crate::authz::{AdminsOnly, Authorizer};
use crate::catalog::Catalog;
use crate::delegate::Delegates;
use crate::dynamic::{self, Dynamic, ResourceSource};
use crate::flow::{self, FlowSource, Flows};
use crate::handler;
use crate::inprocess::InProcess;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::request::UserInfo;
use crate::resource::ResourceDef;
use crate::stall::{self, Connection};
use crate::state::Shared;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 16_384;
/// How long a TLS handshake and the head of a request may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long open calls are waited for at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_STREAMS: u32 = 1000;

/// What follows the objects of a server in which it runs, on every member of a cluster.
#[async_trait::async_trait]
pub trait Follower: Send + Sync + 'static {
    /// Runs until it is dropped.
    async fn follow(&self, server: ApiServer);
}

/// Collects what a server is made of.
pub struct ApiServerBuilder {
    store: Arc<Store>,
    resources: Vec<Arc<ResourceDef>>,
    tokens: Vec<(String, UserInfo)>,
    authenticators: Vec<Arc<dyn TokenAuthenticator>>,
    anonymous: Anonymous,
    authorizer: Arc<dyn Authorizer>,
    admission: Vec<Arc<dyn Admission>>,
    mounts: Vec<(String, Router)>,
    passwords: Vec<String>,
    source: Option<Arc<dyn ResourceSource>>,
    delegates: Option<Arc<dyn Delegates>>,
    followers: Vec<Arc<dyn Follower>>,
    flow_source: Option<Arc<dyn FlowSource>>,
    audit: Option<Arc<Audit>>,
    stall: Duration,
    address: String,
    shutdown: CancellationToken,
}

impl ApiServerBuilder {
    /// A server over this store, without resources, that lets administrators do everything.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            resources: Vec::new(),
            tokens: Vec::new(),
            authenticators: Vec::new(),
            anonymous: Anonymous::default(),
            authorizer: Arc::new(AdminsOnly),
            admission: Vec::new(),
            mounts: Vec::new(),
            passwords: Vec::new(),
            source: None,
            delegates: None,
            followers: Vec::new(),
            flow_source: None,
            audit: None,
            stall: stall::PERIOD,
            address: "127.0.0.1:6443".into(),
            shutdown: CancellationToken::new(),
        }
    }

    /// Adds a resource.
    pub fn resource(mut self, def: ResourceDef) -> Self {
        self.resources.push(Arc::new(def));
        self
    }

    /// Adds resources.
    pub fn resources(mut self, defs: impl IntoIterator<Item = ResourceDef>) -> Self {
        self.resources.extend(defs.into_iter().map(Arc::new));
        self
    }

    /// Adds a bearer token (which is also the password of basic authentication).
    pub fn token(mut self, token: impl Into<String>, user: UserInfo) -> Self {
        self.tokens.push((token.into(), user));
        self
    }

    /// Adds bearer tokens.
    pub fn tokens(mut self, tokens: impl IntoIterator<Item = (String, UserInfo)>) -> Self {
        self.tokens.extend(tokens);
        self
    }

    /// Adds a source of bearer tokens that is asked after the fixed ones.
    pub fn authenticator(mut self, authenticator: Arc<dyn TokenAuthenticator>) -> Self {
        self.authenticators.push(authenticator);
        self
    }

    /// Who may call without credentials.
    pub fn anonymous(mut self, anonymous: Anonymous) -> Self {
        self.anonymous = anonymous;
        self
    }

    /// Replaces [`AdminsOnly`].
    pub fn authorizer(mut self, authorizer: Arc<dyn Authorizer>) -> Self {
        self.authorizer = authorizer;
        self
    }

    /// Appends an admission plugin to the chain.
    pub fn admission(mut self, plugin: Arc<dyn Admission>) -> Self {
        self.admission.push(plugin);
        self
    }

    /// Serves a router below a path prefix such as `/v2`. Its requests keep the whole path and carry the caller as a
    /// [`UserInfo`] extension; the authorizer has allowed them.
    pub fn mount(mut self, prefix: impl Into<String>, router: Router) -> Self {
        self.mounts.push((prefix.into(), router));
        self
    }

    /// The same for clients that know passwords and no tokens: who may not call is asked for one (401), as registries of images do.
    pub fn mount_with_passwords(mut self, prefix: impl Into<String>, router: Router) -> Self {
        let prefix = prefix.into();
        self.passwords.push(prefix.clone());
        self.mount(prefix, router)
    }

    /// Serves resources that objects define, beside the fixed ones. Needs a tokio runtime when the server is built.
    pub fn source(mut self, source: Arc<dyn ResourceSource>) -> Self {
        self.source = Some(source);
        self
    }

    /// Runs beside the server until shutdown. Needs a tokio runtime when the server is built.
    pub fn follower(mut self, follower: Arc<dyn Follower>) -> Self {
        self.followers.push(follower);
        self
    }

    /// Passes on calls to groups that others serve.
    pub fn delegates(mut self, delegates: Arc<dyn Delegates>) -> Self {
        self.delegates = Some(delegates);
        self
    }

    /// Shares the server out among its callers as these objects say. Needs a tokio runtime when the server is built.
    pub fn flows(mut self, source: Arc<dyn FlowSource>) -> Self {
        self.flow_source = Some(source);
        self
    }

    /// How often open streams are looked at: a client that takes nothing of one between two looks loses its connection.
    pub fn stall_period(mut self, period: Duration) -> Self {
        self.stall = period;
        self
    }

    /// Tells calls to an audit log.
    pub fn audit(mut self, audit: Arc<Audit>) -> Self {
        self.audit = Some(audit);
        self
    }

    /// The `host:port` that discovery tells clients.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Stops serving, watches included, when this is cancelled.
    pub fn shutdown(mut self, token: CancellationToken) -> Self {
        self.shutdown = token;
        self
    }

    /// The server.
    pub fn build(self) -> ApiServer {
        let mut tokens: Vec<Arc<dyn TokenAuthenticator>> = vec![Arc::new(TokenList::new(self.tokens))];
        tokens.extend(self.authenticators);
        let shared = Shared {
            catalog: arc_swap::ArcSwap::from_pointee(Catalog::new(&self.resources, &self.address)),
            delegates: self.delegates,
            dynamic: self.source.map(|s| Arc::new(Dynamic::new(s, self.resources.clone()))),
            objects: Objects::new(self.store, self.resources),
            tokens,
            anonymous: self.anonymous,
            authorizer: self.authorizer,
            admission: self.admission,
            mounts: self.mounts,
            passwords: self.passwords,
            metrics: Arc::new(Metrics::default()),
            shutdown: self.shutdown,
            flows: Flows::default(),
            audit: self.audit,
            stall: self.stall,
        };
        let server = ApiServer { shared: Arc::new(shared) };
        dynamic::follow(server.clone());
        if let Some(source) = self.flow_source {
            flow::follow(server.shared.clone(), source);
        }
        for follower in self.followers {
            let (server, shutdown) = (server.clone(), server.shutdown_token());
            tokio::spawn(async move {
                shutdown.run_until_cancelled(follower.follow(server)).await;
            });
        }
        server
    }
}

/// A server; clones share everything.
#[derive(Clone)]
pub struct ApiServer {
    shared: Arc<Shared>,
}

impl ApiServer {
    /// Starts collecting what a server is made of.
    pub fn builder(store: Arc<Store>) -> ApiServerBuilder {
        ApiServerBuilder::new(store)
    }

    /// The server as a tower service for callers in this process, under this identity: `kube::Client::new(service, "default")`.
    pub fn service_as(&self, user: UserInfo) -> InProcess {
        InProcess::new(self.shared.clone(), user)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Reads and guarded writes without a call.
    pub fn objects(&self) -> &Objects {
        &self.shared.objects
    }

    /// Cancelled when the server stops.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shared.shutdown.clone()
    }

    /// Accepts TLS connections until shutdown, then waits a little for open calls.
    ///
    /// # Errors
    /// Only if the listener itself fails for good.
    pub async fn serve(&self, listener: TcpListener, tls: Arc<rustls::ServerConfig>) -> std::io::Result<()> {
        let acceptor = TlsAcceptor::from(tls);
        let mut graceful = GracefulShutdown::new();
        let mut adrift = self.shared.objects.store().adrift();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut failures = 0_u32;
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shared.shutdown.cancelled() => break,
                Ok(()) = adrift.changed() => {
                    if *adrift.borrow_and_update() {
                        // Clients come again, here or at a server that is ready.
                        let old = std::mem::replace(&mut graceful, GracefulShutdown::new());
                        tokio::spawn(old.shutdown());
                    }
                    continue;
                }
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a connection that was reset before it was accepted: both pass.
                    failures += 1;
                    tracing::warn!(%error, "accept");
                    if failures > 1000 {
                        return Err(error);
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            failures = 0;
            let (acceptor, watcher, shared) = (acceptor.clone(), graceful.watcher(), self.shared.clone());
            tokio::spawn(async move {
                let _slot = slot;
                connection(shared, acceptor, watcher, stream, peer).await;
            });
        }
        drop(listener);
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("some calls were still open when the server stopped");
        }
        Ok(())
    }
}

async fn connection(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    watcher: hyper_util::server::graceful::Watcher,
    stream: TcpStream,
    address: SocketAddr,
) {
    // Without it small answers wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake"),
        Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
    };
    let user = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(cert::user_of);
    let peer = PeerIdentity { user, address: Some(address) };
    let end = CancellationToken::new();
    let connection = Connection { end: end.clone(), period: shared.stall };
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (shared, peer, connection) = (shared.clone(), peer.clone(), connection.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(connection);
            Ok::<_, std::convert::Infallible>(handler::serve(shared, request, None).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        // A client may give up all that it asks at once, and a slow moment have it all arrive together.
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .enable_connect_protocol();
    let served = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::select! {
        served = watcher.watch(served.into_owned()) => {
            if let Err(error) = served {
                tracing::debug!(%address, %error, "connection");
            }
        }
        () = end.cancelled() => tracing::debug!(%address, "connection cut off"),
    }
}
