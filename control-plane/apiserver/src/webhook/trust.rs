//! Whom a webhook's certificate has to be signed by.
//!
//! Stricter than Go nowhere: a self-signed certificate that is itself in the bundle is trusted, even if it calls itself an authority.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Where systems keep what they trust.
const SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Most certificates of a bundle.
const CERTIFICATES_MAX: usize = 4096;

/// The client side of TLS that trusts this bundle (PEM), or the system's where it is empty; the error is in words.
pub(crate) fn config(bundle: &[u8]) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier(bundle)?)
        .with_no_client_auth();
    Ok(config)
}

/// What checks the certificates of servers that this bundle (PEM) vouches for, or the system's where it is empty.
pub(crate) fn verifier(bundle: &[u8]) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let system = || SYSTEM.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
    let given = !bundle.is_empty();
    let read = if given { bundle.to_vec() } else { system() };
    let bundle: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&read).take(CERTIFICATES_MAX).filter_map(Result::ok).collect();
    if given && bundle.is_empty() {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(bundle.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let inner = match roots.is_empty() {
        true => None,
        false => Some(
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| e.to_string())?,
        ),
    };
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    Ok(Arc::new(Verifier { inner, bundle, provider, schemes }))
}

struct Verifier {
    inner: Option<Arc<WebPkiServerVerifier>>,
    bundle: Vec<CertificateDer<'static>>,
    provider: Arc<rustls::crypto::CryptoProvider>,
    schemes: Vec<SignatureScheme>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} certificates)", self.bundle.len())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let wrong = match inner.verify_server_cert(end, others, name, ocsp, now) {
            Ok(verified) => return Ok(verified),
            Err(wrong) => wrong,
        };
        // The certificate of an authority that serves with it itself, and is trusted by name.
        if !self.bundle.iter().any(|known| known.as_ref() == end.as_ref()) || !is_valid(end, now) {
            return Err(wrong);
        }
        verify_server_name(&ParsedCertificate::try_from(end)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

fn is_valid(cert: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert.as_ref()) else { return false };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp()
}

/// A TLS error in Go's words, as far as clients look for them.
pub(super) fn words(error: &Error) -> String {
    let x509 = |why: &str| format!("tls: failed to verify certificate: x509: {why}");
    match error {
        // An authority of the same name with another key is unknown, too.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            x509("certificate signed by unknown authority")
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => x509(&format!("certificate is not valid for the name that was asked for ({error})")),
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => x509("certificate has expired or is not yet valid"),
        Error::InvalidCertificate(why) => x509(&why.to_string()),
        other => format!("tls: {other}"),
    }
}
