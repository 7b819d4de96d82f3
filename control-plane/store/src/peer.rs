//! The way between members: HTTP/2 over mutual TLS, with bodies in postcard. Whoever shows no certificate of the
//! members' own authority is refused in the handshake; whoever belongs to another cluster, by the header of its first call.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use futures::future::BoxFuture;
use http::{Request, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpListener;

use crate::Error;

pub(crate) mod client;
pub(crate) mod server;
mod version;
pub(crate) mod wire;

pub(crate) use version::HEADER as VERSIONS;
pub use version::Versions;

/// How a member meets the others.
pub struct Peering {
    /// How calls travel.
    pub way: Way,
    /// The `host:port` under which they reach it.
    pub address: String,
    /// The cluster's id; members of different clusters refuse each other.
    pub cluster: String,
    /// Members of the cluster that this one joins, as id and `host:port`. Empty: it makes a cluster of its own. Without
    /// meaning where the data directory is not empty.
    pub join: Vec<(u64, String)>,
    /// What else members serve each other, below paths of its own.
    pub routes: Router,
}

/// How calls travel between members.
pub enum Way {
    /// HTTP/2 over mutual TLS.
    Sockets {
        /// Where this member listens for the others.
        listener: TcpListener,
        /// Certificates.
        tls: PeerTls,
        /// Where to connect for an address; `None`: there. For tests.
        dial: Option<Dial>,
    },
    /// A network that is none, for simulations.
    Simulated(Arc<dyn Transport>),
}

/// Carries calls between members in a simulation.
pub trait Transport: Send + Sync {
    /// Whoever calls this address from now on is answered by this router.
    fn serve(&self, address: &str, router: Router);

    /// Carries a request to an address and the answer back.
    fn send(&self, address: &str, request: Request<Body>)
    -> BoxFuture<'static, Result<Response<Body>, Lost>>;
}

/// Why a simulated call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The request did not arrive.
    Unsent,
    /// The request may have arrived; no answer came.
    Unknown,
}

/// Turns a member's address into the one that is connected to.
pub type Dial = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// The certificates of a member, PEM. All are signed by one authority, which signs for nobody but members.
#[derive(Clone)]
pub struct PeerTls {
    /// The authority.
    pub ca_pem: String,
    /// Certificate and key for serving; its name is [`PeerTls::name`].
    pub server: (String, String),
    /// Certificate and key for calling.
    pub client: (String, String),
}

impl PeerTls {
    /// The DNS name that the certificate of a member bears, so that a wrong address is noticed.
    pub fn name(member: u64) -> String {
        format!("member-{member}.coracle.internal")
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            roots.add(certificate.map_err(wrong)?).map_err(wrong)?;
        }
        Ok(Arc::new(roots))
    }

    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider());
        let (chain, key) = parts(&self.server)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_client_cert_verifier(verifier.build().map_err(wrong)?)
            .with_single_cert(chain, key);
        let mut config = config.map_err(wrong)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    pub(crate) fn client_config(&self) -> Result<Arc<ClientConfig>, Error> {
        let (chain, key) = parts(&self.client)?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key);
        let mut config = config.map_err(wrong)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls").finish_non_exhaustive()
    }
}

fn parts(
    (cert, key): &(String, String),
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().map_err(wrong)?;
    Ok((chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(wrong)?))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn wrong(error: impl fmt::Display) -> Error {
    Error::Invalid(format!("certificates of the members: {error}"))
}

/// A member as the cluster's configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where the others reach it.
    pub address: String,
    /// Whether it votes; otherwise it only follows, as a new member does until it has caught up.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
}
