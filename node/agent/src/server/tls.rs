//! TLS of the node API, and what a client's certificate says. A client without one shows a token.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::authentication::v1::UserInfo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

use super::auth::Certified;

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
        .allow_unauthenticated()
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

/// Who showed this certificate, which was verified; `None`: it names nobody.
pub fn certified(certificate: &CertificateDer<'_>) -> Option<Certified> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let text = |value: &AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    let name = subject.iter_common_name().next().and_then(text).filter(|name| !name.is_empty());
    let mut groups: Vec<String> = subject.iter_organization().filter_map(text).collect();
    let trusted = groups.iter().any(|group| group == MASTERS) || name.as_deref() == Some(API_SERVER);
    if name.is_none() && !trusted {
        return None;
    }
    groups.push("system:authenticated".to_owned());
    Some(Certified { user: UserInfo { username: name, groups: Some(groups), ..Default::default() }, trusted })
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
            (rcgen::DnType::OrganizationName, MASTERS, Some(true)),
            (rcgen::DnType::CommonName, API_SERVER, Some(true)),
            (rcgen::DnType::CommonName, MASTERS, Some(false)),
            (rcgen::DnType::OrganizationName, "system:nodes", None),
        ];
        for (kind, value, trusted) in table {
            let certified = certified(&certificate(kind, value));
            assert_eq!(certified.map(|known| known.trusted), trusted, "{value}");
        }
        let known = certified(&certificate(rcgen::DnType::CommonName, "jane")).expect("somebody");
        assert_eq!(known.user.username.as_deref(), Some("jane"));
        assert_eq!(known.user.groups, Some(vec!["system:authenticated".to_owned()]));
    }
}
