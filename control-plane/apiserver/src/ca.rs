//! The cluster's certificate authority: made once, kept in a directory, reused at every start.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// What goes wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A key or certificate could not be made or read.
    #[error("certificate for {subject}: {reason}")]
    Certificate {
        /// Whose certificate.
        subject: String,
        /// What was wrong.
        reason: String,
    },
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate chain.
    pub cert_pem: String,
    /// The private key (PKCS #8).
    pub key_pem: String,
}

/// The certificate authority of one cluster.
pub struct ClusterCa {
    dir: PathBuf,
    cert_pem: String,
    key_pem: String,
}

const LEAF_YEARS: i64 = 1;
const CA_YEARS: i64 = 10;
/// A certificate that ends sooner is made anew.
const RENEW_DAYS: i64 = 30;

impl ClusterCa {
    /// Opens `dir`, creating it with a new authority (`ca.crt`, `ca.key`) where there is none.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|source| Error::File { path: dir.clone(), source })?;
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        if cert.exists() && key.exists() {
            let read =
                |p: &Path| fs::read_to_string(p).map_err(|source| Error::File { path: p.into(), source });
            let (cert_pem, key_pem) = (read(&cert)?, read(&key)?);
            KeyPair::from_pem(&key_pem).map_err(|e| wrong("the cluster authority", e))?;
            return Ok(Self { dir, cert_pem, key_pem });
        }
        let pair = KeyPair::generate().map_err(|e| wrong("the cluster authority", e))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "coracle-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, CA_YEARS);
        let signed = params.self_signed(&pair).map_err(|e| wrong("the cluster authority", e))?;
        let (cert_pem, key_pem) = (signed.pem(), pair.serialize_pem());
        write_file(&key, &key_pem, 0o600)?;
        write_file(&cert, &cert_pem, 0o644)?;
        Ok(Self { dir, cert_pem, key_pem })
    }

    /// The authority's certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The directory that holds it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A new certificate for a server (and, as nodes need, a client) that is reached under `names` (DNS names or addresses).
    pub fn server(&self, common_name: &str, names: &[String]) -> Result<Identity, Error> {
        let mut params = CertificateParams::new(names.to_vec()).map_err(|e| wrong(common_name, e))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, common_name, &[])
    }

    /// A new client certificate: the common name is the user, the organizations are its groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity, Error> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, user, groups)
    }

    /// A server certificate kept as `<file>.crt` and `<file>.key`; renewed when it is about to end or lacks a name.
    pub fn ensure_server(&self, file: &str, common_name: &str, names: &[String]) -> Result<Identity, Error> {
        self.ensure(file, |identity| covers(&identity.cert_pem, names), || self.server(common_name, names))
    }

    /// A client certificate kept as `<file>.crt` and `<file>.key`; renewed when it is about to end.
    pub fn ensure_client(&self, file: &str, user: &str, groups: &[&str]) -> Result<Identity, Error> {
        self.ensure(file, |_| true, || self.client(user, groups))
    }

    fn ensure(
        &self,
        file: &str,
        usable: impl Fn(&Identity) -> bool,
        make: impl FnOnce() -> Result<Identity, Error>,
    ) -> Result<Identity, Error> {
        let (cert, key) = (self.dir.join(format!("{file}.crt")), self.dir.join(format!("{file}.key")));
        if let (Ok(cert_pem), Ok(key_pem)) = (fs::read_to_string(&cert), fs::read_to_string(&key)) {
            let kept = Identity { cert_pem, key_pem };
            if fresh(&kept.cert_pem) && KeyPair::from_pem(&kept.key_pem).is_ok() && usable(&kept) {
                return Ok(kept);
            }
        }
        let made = make()?;
        write_file(&key, &made.key_pem, 0o600)?;
        write_file(&cert, &made.cert_pem, 0o644)?;
        Ok(made)
    }

    fn sign(&self, mut params: CertificateParams, subject: &str, groups: &[&str]) -> Result<Identity, Error> {
        let issuer = self.issuer()?;
        let pair = KeyPair::generate().map_err(|e| wrong(subject, e))?;
        params.distinguished_name = DistinguishedName::new();
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.distinguished_name.push(DnType::CommonName, subject);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, LEAF_YEARS);
        let signed = params.signed_by(&pair, &issuer).map_err(|e| wrong(subject, e))?;
        Ok(Identity { cert_pem: signed.pem(), key_pem: pair.serialize_pem() })
    }

    /// Signs a request (PEM) for these usages, in the words of `certificates.k8s.io`, and this many seconds. Of the request only
    /// its key, subject and alternative names are taken over. Whether they may be is for others to decide.
    pub fn sign_request(&self, request: &str, usages: &[String], seconds: i64) -> Result<String, Error> {
        let asked = CertificateSigningRequestParams::from_pem(request).map_err(|e| wrong("a request", e))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = asked.params.distinguished_name.clone();
        params.subject_alt_names = asked.params.subject_alt_names.clone();
        for usage in usages {
            match usage.as_str() {
                "signing" | "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "client auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
                "server auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
                other => return Err(wrong("a request", format!("usage {other:?} is not signed here"))),
            }
        }
        params.use_authority_key_identifier_extension = true;
        let now = std::time::SystemTime::now();
        let after = |s: i64| Duration::from_secs(s.unsigned_abs());
        // Clocks may be a little apart.
        params.not_before = (now - after(300)).into();
        params.not_after = (now + after(seconds)).into();
        let request = CertificateSigningRequestParams { params, public_key: asked.public_key };
        let signed = request.signed_by(&self.issuer()?).map_err(|e| wrong("a request", e))?;
        Ok(signed.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        let authority = KeyPair::from_pem(&self.key_pem).map_err(|e| wrong("the cluster authority", e))?;
        Issuer::from_ca_cert_pem(&self.cert_pem, authority).map_err(|e| wrong("the cluster authority", e))
    }

    /// TLS for a server with this identity: HTTP/2 and HTTP/1.1, client certificates of this authority welcome but not required.
    pub fn server_config(&self, identity: &Identity) -> Result<Arc<rustls::ServerConfig>, Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| wrong("the cluster authority", e))?;
        let (chain, key) = identity.parts()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong("the server", e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| wrong("the server", e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS for a client that trusts this authority alone.
    pub fn client_config(&self, identity: Option<&Identity>) -> Result<rustls::ClientConfig, Error> {
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong("the client", e))?
            .with_root_certificates(self.roots()?);
        match identity {
            None => Ok(builder.with_no_client_auth()),
            Some(identity) => {
                let (chain, key) = identity.parts()?;
                builder.with_client_auth_cert(chain, key).map_err(|e| wrong("the client", e))
            }
        }
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(self.cert_pem.as_bytes()) {
            let cert = cert.map_err(|e| wrong("the cluster authority", e))?;
            roots.add(cert).map_err(|e| wrong("the cluster authority", e))?;
        }
        Ok(roots)
    }
}

impl Identity {
    pub(crate) fn parts(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let chain = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| wrong("the identity", e))?;
        let key =
            PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|e| wrong("the identity", e))?;
        Ok((chain, key))
    }
}

/// A kubeconfig with one cluster, one user and one context, all named `coracle`. The user shows a client certificate and, if
/// given, a token, which is also the password of the image registry. JSON is YAML, and needs no quoting rules.
pub fn kubeconfig(server_url: &str, ca_pem: &str, identity: &Identity, token: Option<&str>) -> String {
    use base64::Engine;
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let mut user = serde_json::json!({
        "client-certificate-data": encode(&identity.cert_pem),
        "client-key-data": encode(&identity.key_pem),
    });
    if let Some(token) = token {
        user["token"] = token.into();
    }
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "coracle", "cluster": {
            "server": server_url, "certificate-authority-data": encode(ca_pem),
        }}],
        "users": [{"name": "coracle", "user": user}],
        "contexts": [{"name": "coracle", "context": {"cluster": "coracle", "user": "coracle"}}],
        "current-context": "coracle",
    });
    format!("{config:#}\n")
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn wrong(subject: &str, reason: impl std::fmt::Display) -> Error {
    Error::Certificate { subject: subject.into(), reason: reason.to_string() }
}

fn set_validity(params: &mut CertificateParams, years: i64) {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let from = today.saturating_sub(1.day());
    let to = today.saturating_add(years.years());
    let at = |d: jiff::civil::Date| {
        rcgen::date_time_ymd(d.year().into(), d.month().unsigned_abs(), d.day().unsigned_abs())
    };
    params.not_before = at(from);
    params.not_after = at(to);
}

fn fresh(cert_pem: &str) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(&der) else { return false };
    cert.validity().not_after.timestamp() - Timestamp::now().as_second() > RENEW_DAYS * 24 * 3600
}

fn covers(cert_pem: &str, names: &[String]) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
    let Ok((_, cert)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let Ok(Some(san)) = cert.subject_alternative_name() else { return names.is_empty() };
    let has = |name: &String| {
        san.value.general_names.iter().any(|general| match general {
            GeneralName::DNSName(dns) => *dns == name.as_str(),
            GeneralName::IPAddress(bytes) => match name.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) => *bytes == ip.octets().as_slice(),
                Ok(IpAddr::V6(ip)) => *bytes == ip.octets().as_slice(),
                Err(_) => false,
            },
            _ => false,
        })
    };
    names.iter().all(has)
}

pub(crate) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let fail = |source| Error::File { path: path.into(), source };
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)
}
