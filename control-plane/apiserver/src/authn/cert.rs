//! Client certificates: the common name is the user, organizations are groups.

use rustls_pki_types::CertificateDer;

use crate::request::UserInfo;

/// What TLS says of the peer; a request extension of every connection.
#[derive(Clone, Debug, Default)]
pub struct PeerIdentity {
    /// The user of a verified client certificate.
    pub user: Option<UserInfo>,
    /// The peer's address, for logs.
    pub address: Option<std::net::SocketAddr>,
}

/// The user that a verified certificate names, or `None` without a common name.
pub fn user_of(certificate: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, cert) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups: Vec<&str> = cert.subject().iter_organization().filter_map(|o| o.as_str().ok()).collect();
    if name.is_empty() { None } else { Some(UserInfo::new(&name, &groups)) }
}
