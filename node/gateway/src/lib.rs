//! The HTTP gateway of a node: a reverse proxy for Ingresses and for Knative's routes, which holds the requests of a
//! revision that is scaled to zero until its first pod is ready.
//!
//! What goes where is one immutable [`table::Table`], built anew from watches of the API. How busy each revision is
//! leaves through [`Gateway::router`], which the node API serves.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

mod cluster;
pub mod demand;
mod forward;
pub mod knative;
mod meters;
mod pick;
mod server;
pub mod table;

/// The annotation of a Node that tells where its gateway listens, `ADDRESS:PORT`.
pub const ADDRESS_ANNOTATION: &str = "coracle.dev/gateway";

/// The port that is taken where [`Options::port`] needs a privilege that this process lacks.
const UNPRIVILEGED_PORT: u16 = 8080;

/// What a gateway needs to know.
pub struct Options {
    /// The API server, as the node.
    pub client: kube::Client,
    pub node_name: String,
    /// Where it listens.
    pub address: IpAddr,
    /// Usually 80. Where that needs privilege, 8080 is taken instead and the Node's annotation says so.
    pub port: u16,
}

/// A gateway that listens and does not serve yet.
pub struct Gateway {
    options: Options,
    listener: TcpListener,
    state: Arc<forward::State>,
}

impl Gateway {
    /// Binds. Fails when the address cannot be listened on.
    pub async fn bind(options: Options) -> anyhow::Result<Self> {
        let wanted = SocketAddr::new(options.address, options.port);
        let listener = match TcpListener::bind(wanted).await {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                let fallback = SocketAddr::new(options.address, UNPRIVILEGED_PORT);
                tracing::info!(%wanted, %fallback, "the gateway may not listen on its port and takes another");
                TcpListener::bind(fallback)
                    .await
                    .with_context(|| format!("bind the gateway to {fallback}"))?
            }
            bound => bound.with_context(|| format!("bind the gateway to {wanted}"))?,
        };
        Ok(Self { options, listener, state: Arc::new(forward::State::new()) })
    }

    /// `GET /gateway/demand`: how busy each revision is, one line of JSON a second, and at once when a request has to wait.
    pub fn router(&self) -> axum::Router {
        demand::router(self.state.clone())
    }

    /// Serves until `shutdown`, then lets open requests end.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let address = self.listener.local_addr().context("the address of the gateway")?;
        let cluster = cluster::follow(self.options.client.clone(), self.state.clone());
        let announced = cluster::announce(&self.options.client, &self.options.node_name, address);
        let background = async {
            tokio::join!(cluster, announced);
        };
        tokio::select! {
            () = background => {}
            () = server::serve(self.listener, self.state.clone(), shutdown.clone()) => {}
        }
        Ok(())
    }
}
