//! TLS of the node API: clients show a certificate of the cluster, and only administrators and the API server may in.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// As whom the API server calls a node.
pub const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// Administrators.
pub const MASTERS: &str = "system:masters";

/// Reads the PEM texts.
pub fn acceptor((certificate, key): &(String, String), client_ca: &str) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        roots.add(ca.context("read the client CA of the node API")?)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .context("the client CA of the node API")?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<_, _>>()
        .context("read the certificate of the node API")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| anyhow!("read the key of the node API: {e}"))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("the certificate of the node API")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Whether a client with this certificate, which was verified, may use the node API.
pub fn is_allowed(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let subject = certificate.subject();
    subject.iter_organization().any(|a| a.as_str().is_ok_and(|a| a == MASTERS))
        || subject.iter_common_name().any(|a| a.as_str().is_ok_and(|a| a == API_SERVER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(kind: rcgen::DnType, value: &str) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(kind, value);
        params.self_signed(&key).expect("a certificate").der().clone()
    }

    #[test]
    fn who_may_in() {
        let table = [
            (rcgen::DnType::OrganizationName, MASTERS, true),
            (rcgen::DnType::CommonName, API_SERVER, true),
            (rcgen::DnType::CommonName, MASTERS, false),
            (rcgen::DnType::OrganizationName, "system:nodes", false),
        ];
        for (kind, value, allowed) in table {
            assert_eq!(is_allowed(&certificate(kind, value)), allowed, "{value}");
        }
    }
}
