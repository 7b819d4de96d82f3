//! TLS towards others: a guest trusts the authority whose certificate lies beside its service account's token, and no other.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use wasmtime_wasi_http::{Error, WasiBody};

use super::{Connector, pooled};
use crate::hosts::filesystem;
use crate::network::PodNetwork;
use crate::protocol::Mount;

/// Where a pod's service account is mounted.
const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const FILE: &str = "ca.crt";
/// The most bytes of certificates.
const MAX_BYTES: u64 = 1 << 20;

type Pool = Client<HttpsConnector<Connector>, WasiBody>;

/// Whom a container trusts.
pub(crate) struct Trust {
    folder: Option<PathBuf>,
    kept: Mutex<Option<Kept>>,
}

/// Connections, for as long as the certificates and the policies are the same.
struct Kept {
    pem: Vec<u8>,
    epoch: u64,
    pool: Pool,
}

impl Trust {
    /// Whom the owner of these mounts trusts.
    pub fn new(mounts: &[Mount]) -> Self {
        let mount = mounts.iter().find(|m| m.guest_path.trim_end_matches('/') == FOLDER);
        Self { folder: mount.map(|m| m.host_path.clone()), kept: Mutex::new(None) }
    }

    /// Connections to those who are trusted. The certificates are read each time, for they may be renewed.
    pub fn pool(&self, network: &Arc<PodNetwork>) -> Result<Pool, Error> {
        let pem = self.read().map_err(|error| {
            Error::InternalError(Some(format!(
                "https needs the certificate of an authority in {FOLDER}/{FILE}: {error}"
            )))
        })?;
        let epoch = network.policies_epoch();
        let mut kept = self.kept.lock();
        if let Some(known) = kept.as_ref().filter(|k| k.pem == pem && k.epoch == epoch) {
            return Ok(known.pool.clone());
        }
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config(&pem)?)
            .https_only()
            .enable_http1()
            .wrap_connector(Connector { network: network.clone(), led: false });
        let pool: Pool = pooled().build(connector);
        *kept = Some(Kept { pem, epoch, pool: pool.clone() });
        Ok(pool)
    }

    fn read(&self) -> std::io::Result<Vec<u8>> {
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "no service account is mounted");
        // Within the volume: what lies in it may be links that somebody else made.
        let dir = filesystem::open(self.folder.as_ref().ok_or_else(missing)?)?;
        let mut pem = Vec::new();
        dir.open(FILE)?.take(MAX_BYTES).read_to_end(&mut pem)?;
        Ok(pem)
    }
}

fn config(pem: &[u8]) -> Result<ClientConfig, Error> {
    let wrong = |words: String| Error::InternalError(Some(words));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
        // One that is not understood is not trusted; the others are.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(wrong(format!("{FOLDER}/{FILE} holds no certificate")));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(e.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
