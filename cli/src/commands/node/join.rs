//! Joining: from a token to certificates of one's own, and their renewal.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority;
use crate::failover;
use crate::kubeconfig::write_secret;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long one request for a certificate is waited for.
const ISSUED_IN: Duration = Duration::from_secs(300);
/// How long the cluster and its signature are waited for.
const DISCOVERED_IN: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);
/// A certificate is renewed when this part of its life is over, in percent.
const RENEW_AT: i64 = 80;

/// Where a node keeps what it got by joining.
#[derive(Clone)]
pub struct Home(PathBuf);

impl Home {
    /// Below the node's root directory.
    pub fn new(root: &Path) -> Self {
        Self(root.join("pki"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.file(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// A certificate with its key, if it is there and good for a while.
    fn identity(&self, name: &str) -> Option<(String, String)> {
        let pair = (self.read(&format!("{name}.crt")).ok()?, self.read(&format!("{name}.key")).ok()?);
        (renewal(&pair.0)? > Timestamp::now().as_second()).then_some(pair)
    }

    fn keep(&self, name: &str, (cert, key): &(String, String)) -> Result<()> {
        write_secret(&self.file(&format!("{name}.key")), key)?;
        write_secret(&self.file(&format!("{name}.crt")), cert)
    }

    /// The servers that were learned of, as `host port` lines.
    fn memory(&self) -> PathBuf {
        self.file("servers")
    }

    /// The URLs of all servers that are known.
    fn servers(&self, wish: &Wish<'_>) -> Vec<String> {
        let mut urls: Vec<String> = wish.join.iter().map(|u| u.trim_end_matches('/').to_owned()).collect();
        for line in self.read("servers").unwrap_or_default().lines() {
            let Some((host, port)) = line.rsplit_once(' ') else { continue };
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            let url = format!("https://{host}:{port}");
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        urls
    }

    /// Keeps the servers that the user named for those who connect.
    fn keep_servers(&self, urls: &[String]) -> Result<()> {
        let mut lines = String::new();
        for url in urls {
            let uri: http::Uri = url.parse().with_context(|| format!("{url:?} is not https://HOST:PORT"))?;
            ensure!(uri.scheme_str() == Some("https"), "{url:?} is not https://HOST:PORT");
            let host = uri.host().with_context(|| format!("{url:?} is not https://HOST:PORT"))?;
            lines += &format!("{} {}\n", host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(443));
        }
        write_secret(&self.memory(), &lines)
    }
}

/// What to join, and as whom.
pub struct Wish<'a> {
    /// The servers that the user named.
    pub join: &'a [String],
    /// The bootstrap token.
    pub token: Option<&'a str>,
    /// The authority's hash.
    pub hash: Option<&'a str>,
    /// The node's name and address.
    pub name: &'a str,
    /// See `name`.
    pub ip: IpAddr,
}

/// A node that belongs to a cluster.
pub struct Member {
    /// The API server, as the node.
    pub client: Client,
    /// The node API's certificate and key.
    pub serving: (String, String),
    /// The authority.
    pub ca_pem: String,
    /// The URLs of the servers.
    pub servers: Vec<String>,
    /// When a certificate is to be renewed, in Unix seconds.
    pub renew_at: i64,
}

/// When a certificate should be renewed, in Unix seconds.
fn renewal(cert_pem: &str) -> Option<i64> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
    let (_, cert) = X509Certificate::from_der(&der).ok()?;
    let (from, to) = (cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp());
    Some(from + (to - from) * RENEW_AT / 100)
}

/// A client of a server, and of the others when that one is lost.
async fn connect(
    home: &Home,
    url: &str,
    ca_pem: &str,
    credentials: impl FnOnce(&mut kube::config::AuthInfo),
) -> Result<Client> {
    let mut config = kube::Config::new(url.parse().with_context(|| format!("{url:?} is no URL"))?);
    config.root_cert = Some(vec![CertificateDer::from_pem_slice(ca_pem.as_bytes())?.to_vec()]);
    credentials(&mut config.auth_info);
    failover::client(config, Some(home.memory())).await
}

/// Whether a text is a bootstrap token, `ID.SECRET`, which Kubernetes has as 6 and 16 lowercase letters and digits.
fn check(token: &str) -> Result<()> {
    let is = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let good = token.split_once('.').is_some_and(|(id, secret)| is(id, 6) && is(secret, 16));
    ensure!(
        good,
        "the token is malformed: a node joins with 6 and 16 lowercase letters and digits and a dot between, as `coracle \
         token create` makes them{}",
        if token.len() > 100 { "; this looks like a token that servers join with" } else { "" }
    );
    Ok(())
}

/// Joins, or takes up what was joined before.
pub async fn member(home: &Home, wish: &Wish<'_>) -> Result<Member> {
    // A node that belongs to its cluster already needs none.
    if let Some(token) =
        wish.token.filter(|_| home.read("ca.crt").is_err() || home.identity("client").is_none())
    {
        check(token.trim())?;
    }
    let servers = home.servers(wish);
    let first =
        servers.first().context("which cluster? Name a server with --join, or a --kubeconfig")?.clone();
    home.keep_servers(&servers)?;
    let ca_pem = match home.read("ca.crt") {
        Ok(pem) => pem,
        Err(_) => {
            let pem = discover(&servers, wish).await.context("learn the cluster's authority")?;
            write_secret(&home.file("ca.crt"), &pem)?;
            pem
        }
    };
    let user = format!("system:node:{}", wish.name);
    let identity = match home.identity("client") {
        Some(identity) => identity,
        None => {
            let token = wish.token.context("the node has no certificate (any more): a --token is needed")?;
            let with_token = |auth: &mut kube::config::AuthInfo| auth.token = Some(token.to_owned().into());
            let bootstrap = connect(home, &first, &ca_pem, with_token).await?;
            let made = request(bootstrap, &user, CLIENT_SIGNER, Vec::new()).await;
            let made = made.context("get a certificate with the token")?;
            home.keep("client", &made)?;
            made
        }
    };
    let client = as_node(home, &first, &ca_pem, &identity).await?;
    let serving = match home.identity("serving").filter(|(cert, _)| covers(cert, wish.ip)) {
        Some(identity) => identity,
        None => {
            let names = vec![wish.name.to_owned(), wish.ip.to_string()];
            let made = request(client.clone(), &user, SERVING_SIGNER, names).await;
            let made = made.context("get a certificate for the node API")?;
            home.keep("serving", &made)?;
            made
        }
    };
    let due = [&identity.0, &serving.0].into_iter().filter_map(|cert| renewal(cert)).min();
    Ok(Member { client, serving, ca_pem, servers, renew_at: due.unwrap_or(i64::MAX) })
}

/// New certificates in the place of those that end soon. The next [`member`] takes them up.
pub async fn renew(home: &Home, client: &Client, name: &str, ip: IpAddr) -> Result<()> {
    let user = format!("system:node:{name}");
    let identity = request(client.clone(), &user, CLIENT_SIGNER, Vec::new()).await?;
    let names = vec![name.to_owned(), ip.to_string()];
    let serving = request(client.clone(), &user, SERVING_SIGNER, names).await?;
    home.keep("client", &identity)?;
    home.keep("serving", &serving)
}

async fn as_node(home: &Home, url: &str, ca_pem: &str, (cert, key): &(String, String)) -> Result<Client> {
    use base64::Engine;
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let with_certificate = |auth: &mut kube::config::AuthInfo| {
        auth.client_certificate_data = Some(encode(cert));
        auth.client_key_data = Some(encode(key).into());
    };
    connect(home, url, ca_pem, with_certificate).await
}

fn covers(cert_pem: &str, ip: IpAddr) -> bool {
    use x509_parser::extensions::GeneralName;
    let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
    let Ok((_, cert)) = X509Certificate::from_der(&der) else { return false };
    let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    names.value.general_names.iter().any(|n| matches!(n, GeneralName::IPAddress(b) if *b == bytes.as_slice()))
}

/// Reads `cluster-info` without trust, and trusts what the hash or the token's signature vouches for.
async fn discover(servers: &[String], wish: &Wish<'_>) -> Result<String> {
    let token = wish.token.context("--join needs --token")?;
    let started = tokio::time::Instant::now();
    let mut last = anyhow::anyhow!("no server is known");
    while started.elapsed() < DISCOVERED_IN {
        for url in servers {
            match read_untrusted(url).await.map(|info| authority::trusted(&info, token, wish.hash)) {
                Ok(Ok(Some(pem))) => return Ok(pem),
                Ok(Ok(None)) => {
                    last = anyhow::anyhow!(
                        "cluster-info is not signed by this token: it is unknown or over, or --ca-cert-hash is needed"
                    );
                }
                Ok(Err(error)) => return Err(error),
                Err(error) => last = error,
            }
        }
        tracing::info!(error = format!("{last:#}"), "the cluster cannot be trusted yet");
        tokio::time::sleep(RETRY).await;
    }
    Err(last)
}

/// `cluster-info` as some server says it. Only what is then checked by hash or signature may be used.
async fn read_untrusted(url: &str) -> Result<ConfigMap> {
    let mut config = kube::Config::new(url.parse().with_context(|| format!("{url:?} is no URL"))?);
    config.accept_invalid_certs = true;
    let maps: Api<ConfigMap> = Api::namespaced(Client::try_from(config)?, "kube-public");
    maps.get("cluster-info").await.with_context(|| format!("read kube-public/cluster-info from {url}"))
}

/// Asks for a certificate and waits until it is issued. Answers it with its key.
async fn request(client: Client, user: &str, signer: &str, names: Vec<String>) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let usage = if signer == SERVING_SIGNER { "server auth" } else { "client auth" };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, user);
    let pem = params.serialize_request(&key)?.pem()?;
    let mut object = CertificateSigningRequest {
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            ..Default::default()
        },
        ..Default::default()
    };
    object.metadata.generate_name = Some("csr-".into());
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let name = requests.create(&PostParams::default(), &object).await?.name_any();
    tracing::info!(request = name, signer, "waiting for a certificate");
    let decided = await_condition(requests, &name, |csr: Option<&CertificateSigningRequest>| {
        csr.and_then(|c| c.status.as_ref()).is_some_and(|s| {
            s.certificate.is_some()
                || s.conditions.iter().flatten().any(|c| matches!(c.type_.as_str(), "Denied" | "Failed"))
        })
    });
    let csr = tokio::time::timeout(ISSUED_IN, decided).await.with_context(|| {
        format!(
            "nobody approved the request {name} within {ISSUED_IN:?} (kubectl certificate approve {name})"
        )
    })??;
    let status = csr.and_then(|c| c.status).unwrap_or_default();
    match status.certificate {
        Some(ByteString(cert)) => Ok((String::from_utf8(cert)?, key.serialize_pem())),
        None => {
            let why = status.conditions.into_iter().flatten().find_map(|c| c.message).unwrap_or_default();
            bail!("the request {name} for a certificate was refused: {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_tokens_are_told_from_good_ones() {
        assert!(check("abc123.0123456789abcdef").is_ok());
        let servers = format!("{}.{}", "0".repeat(64), "0".repeat(64));
        for wrong in ["", "x", "abc123", "ABC123.0123456789abcdef", "abc123.0123456789abcde", &servers] {
            let words = check(wrong).unwrap_err().to_string();
            assert!(words.contains("is malformed") && words.contains("coracle token create"), "{words}");
        }
        assert!(check(&servers).unwrap_err().to_string().contains("servers join with"));
    }

    #[test]
    fn certificates_are_renewed_before_they_end() {
        let mut params = CertificateParams::new(vec!["127.0.2.1".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 11);
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let at: Timestamp = "2026-01-09T00:00:00Z".parse().unwrap();
        assert_eq!(renewal(&pem), Some(at.as_second()));
        assert!(covers(&pem, "127.0.2.1".parse().unwrap()));
        assert!(!covers(&pem, "127.0.1.1".parse().unwrap()));
    }
}
