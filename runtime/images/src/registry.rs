//! Speaking to one registry, and telling its refusals apart.

mod own;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;

use crate::hosts::{self, Host, Trust};
use crate::{Credentials, Mirror, Reference, RegistryConfig};

const ACCEPT: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A registry that may have an image, and what the image is called there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// `host:port`.
    pub registry: String,
    pub repository: String,
    /// Tag or digest.
    pub key: String,
    /// The registry that it stands in for, where that goes by another name: it is told.
    pub namespace: Option<String>,
    pub tls: bool,
    pub trust: Trust,
    pub credentials: Credentials,
}

/// How a registry failed us.
#[derive(Debug)]
pub enum Refusal {
    NotFound(String),
    Unauthorized(String),
    Unreachable(String),
}

/// Who is asked for an image, in order. `given` are the credentials of the request: they go only to the registry that
/// the name says, never to a mirror that merely stands in for it. Beside them: what the node is told about the registry
/// itself and is not understood.
pub fn sources(
    image: &Reference,
    config: &RegistryConfig,
    given: &Credentials,
) -> (Vec<Source>, Option<String>) {
    let from_mirror = |mirror: &Mirror, named: bool| {
        let (authority, tls) = mirror.authority();
        let own = !named || *given == Credentials::Anonymous;
        Source {
            registry: authority.to_owned(),
            repository: image.mirror_repository().to_owned(),
            key: image.manifest_key().to_owned(),
            namespace: None,
            tls,
            trust: Trust { only_pem: mirror.ca_pem.clone(), ..Trust::default() },
            credentials: if own { mirror.credentials.clone() } else { given.clone() },
        }
    };
    let direct = |registry: &str| {
        let plain = is_plain(registry, config);
        let itself = || {
            vec![Host {
                authority: registry.to_owned(),
                tls: !plain,
                trust: Trust::default(),
                resolves: true,
                itself: true,
            }]
        };
        let hosts = match hosts::hosts(&config.host_dirs, registry, plain) {
            Ok(hosts) => hosts.unwrap_or_else(itself),
            Err(reason) => return (Vec::new(), Some(reason)),
        };
        let asked = hosts.into_iter().filter(|h| h.resolves || image.digest.is_some());
        let sources = asked.map(|host| Source {
            credentials: if host.itself { given.clone() } else { Credentials::Anonymous },
            namespace: (!host.itself).then(|| registry.to_owned()),
            registry: host.authority,
            repository: image.upstream_repository(),
            key: image.manifest_key().to_owned(),
            tls: host.tls,
            trust: host.trust,
        });
        (sources.collect(), None)
    };
    if image.is_default_registry() {
        let mirrors = config.mirrors.iter().map(|m| from_mirror(m, false));
        let (itself, wrong) = config.default_registry.as_deref().map(direct).unwrap_or_default();
        return (mirrors.chain(itself).collect(), wrong);
    }
    match config.mirrors.iter().find(|m| m.authority().0 == image.registry) {
        Some(mirror) => (vec![from_mirror(mirror, true)], None),
        None => {
            // What stands in for every registry keeps `gcr.io/a/b` under that whole name.
            let name = format!("{}/{}", image.registry, image.repository);
            let stand_ins =
                config.mirrors.iter().filter(|m| m.every_registry && !image.registry.contains(':'));
            let stand_ins = stand_ins.map(|m| Source { repository: name.clone(), ..from_mirror(m, false) });
            let (itself, wrong) = direct(&image.registry);
            (stand_ins.chain(itself).collect(), wrong)
        }
    }
}

fn is_plain(registry: &str, config: &RegistryConfig) -> bool {
    is_loopback(host_of(registry)) || config.insecure.iter().any(|r| r == registry)
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

/// Clients by registry and credentials: making one reads the system's certificates, which takes longer than a pull.
#[derive(Default)]
pub struct Pool(Mutex<Vec<(Source, Kind)>>);

/// The library's client, or ours where a certificate or an identity token has to be shown, which the library cannot.
#[derive(Clone)]
enum Kind {
    Usual(Box<oci_client::Client>),
    Own(own::Client),
}

/// Clients that are kept at most.
const POOLED: usize = 32;

impl Pool {
    fn get(&self, source: &Source) -> Result<Kind, Refusal> {
        let same = |kept: &Source| {
            (&kept.registry, kept.tls, &kept.trust, &kept.credentials)
                == (&source.registry, source.tls, &source.trust, &source.credentials)
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = kept.iter().find(|(s, _)| same(s)) {
            return Ok(client.clone());
        }
        let own = source.trust.identity.is_some() || matches!(source.credentials, Credentials::Identity(_));
        let client = match own {
            false => Kind::Usual(Box::new(connect(source)?)),
            true => Kind::Own(own::Client::new(source)?),
        };
        if kept.len() >= POOLED {
            kept.remove(0);
        }
        kept.push((source.clone(), client.clone()));
        Ok(client)
    }

    /// Forgets the clients of a registry, and the tokens that they hold: it refused them.
    pub fn forget(&self, registry: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(s, _)| s.registry != registry);
    }
}

fn connect(source: &Source) -> Result<oci_client::Client, Refusal> {
    let certificate =
        |pem: &String| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone().into_bytes() };
    let mut config = ClientConfig {
        protocol: if source.tls { ClientProtocol::Https } else { ClientProtocol::Http },
        tls_certs_only: source.trust.only_pem.iter().map(certificate).collect(),
        extra_root_certificates: source.trust.more_pem.iter().map(certificate).collect(),
        accept_invalid_certificates: source.trust.skip_verify,
        connect_timeout: Some(Duration::from_secs(10)),
        user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    let host = host_of(&source.registry);
    if is_loopback(host) {
        // Naming a proxy and excepting this host is how the library is told to leave the system's proxies aside.
        let nobody = Some("http://127.0.0.1:9".to_owned());
        config.https_proxy = nobody.clone();
        config.http_proxy = nobody;
        config.no_proxy = Some(host.to_owned());
    }
    oci_client::Client::try_from(config)
        .map_err(|e| Refusal::Unreachable(format!("setting up the client: {}", causes(&e))))
}

/// A connection to one source.
pub struct Client {
    client: Kind,
    name: oci_client::Reference,
    auth: RegistryAuth,
    /// How long nothing may come.
    patience: Duration,
}

/// The bytes of a blob as they come.
type Pieces = BoxStream<'static, Result<Bytes, std::io::Error>>;

impl Client {
    /// Prepares a client; nothing is sent yet. Its connections and tokens are shared with others of this source.
    pub fn new(source: &Source, pool: &Pool, patience: Duration) -> Result<Self, Refusal> {
        let auth = auth(&source.credentials)?;
        let registry = source.namespace.as_ref().unwrap_or(&source.registry).clone();
        let repository = source.repository.clone();
        let mut name = if crate::reference::is_digest(&source.key) {
            oci_client::Reference::with_digest(registry, repository, source.key.clone())
        } else {
            oci_client::Reference::with_tag(registry, repository, source.key.clone())
        };
        if source.namespace.is_some() {
            // It is told by `?ns=`, as containerd does: a mirror of several registries has to know which is meant.
            name.set_mirror_registry(source.registry.clone());
        }
        Ok(Self { client: pool.get(source)?, name, auth, patience })
    }

    async fn within<T>(&self, answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let late = |_| Err(Refusal::Unreachable(format!("no answer within {} s", self.patience.as_secs())));
        tokio::time::timeout(self.patience, answer).await.unwrap_or_else(late)
    }

    /// The same that fails when nothing comes for too long.
    fn patient(&self, pieces: Pieces) -> Pieces {
        let patience = self.patience;
        let next = move |mut pieces: Pieces| async move {
            let piece = match tokio::time::timeout(patience, pieces.next()).await {
                Ok(piece) => piece?,
                Err(_) => Err(std::io::Error::other(format!("nothing came for {} s", patience.as_secs()))),
            };
            Some((piece, pieces))
        };
        futures::stream::unfold(pieces, next).boxed()
    }

    /// A manifest's bytes and digest: of the name, or of one entry of the index that the name stands for.
    pub async fn manifest(&self, digest: Option<&str>) -> Result<(Bytes, String), Refusal> {
        let name = match digest {
            Some(digest) => &self.name.clone_with_digest(digest.to_owned()),
            None => &self.name,
        };
        self.read_manifest(name).await
    }

    async fn read_manifest(&self, name: &oci_client::Reference) -> Result<(Bytes, String), Refusal> {
        let read = async {
            match &self.client {
                Kind::Usual(client) => {
                    client.pull_manifest_raw(name, &self.auth, &ACCEPT).await.map_err(refusal)
                }
                Kind::Own(client) => client.manifest(name).await,
            }
        };
        self.within(read).await
    }

    /// The bytes of another tag's manifest in the same repository.
    pub async fn tagged(&self, tag: &str) -> Result<Bytes, Refusal> {
        let (registry, repository) = (self.name.registry().to_owned(), self.name.repository().to_owned());
        let mut name = oci_client::Reference::with_tag(registry, repository, tag.to_owned());
        if self.name.namespace().is_some() {
            name.set_mirror_registry(self.name.resolve_registry().to_owned());
        }
        Ok(self.read_manifest(&name).await?.0)
    }

    /// The rest of a blob from `offset` on, or all of it from a registry that knows no ranges; true: all of it.
    pub async fn blob_from(&self, digest: &str, offset: u64) -> Result<(Pieces, bool), Refusal> {
        let wanted = OciDescriptor { digest: digest.to_owned(), ..OciDescriptor::default() };
        let ask = async {
            let client = match &self.client {
                Kind::Usual(client) => client,
                Kind::Own(client) => return client.blob(&self.name, digest, offset).await,
            };
            let answer = client.pull_blob_stream_partial(&self.name, &wanted, offset, None).await;
            Ok(match answer.map_err(refusal)? {
                oci_client::client::BlobResponse::Full(stream) => (stream.stream, true),
                oci_client::client::BlobResponse::Partial(stream) => (stream.stream, false),
            })
        };
        let (pieces, all) = self.within(ask).await?;
        Ok((self.patient(pieces), all))
    }

    /// A blob as it comes; the caller checks it.
    pub async fn blob(&self, digest: &str) -> Result<Pieces, Refusal> {
        let wanted = OciDescriptor { digest: digest.to_owned(), ..OciDescriptor::default() };
        let ask = async {
            match &self.client {
                Kind::Usual(client) => {
                    Ok(client.pull_blob_stream(&self.name, &wanted).await.map_err(refusal)?.stream)
                }
                Kind::Own(client) => Ok(client.blob(&self.name, digest, 0).await?.0),
            }
        };
        Ok(self.patient(self.within(ask).await?))
    }
}

fn auth(credentials: &Credentials) -> Result<RegistryAuth, Refusal> {
    Ok(match credentials {
        Credentials::Anonymous => RegistryAuth::Anonymous,
        // RFC 7617: what comes after the first colon is the password.
        Credentials::Basic { username, .. } if username.contains(':') => {
            return Err(Refusal::Unauthorized(format!("the user name {username:?} has a colon")));
        }
        Credentials::Basic { username, password } => RegistryAuth::Basic(username.clone(), password.clone()),
        // Our own client shows it, to the token service alone.
        Credentials::Identity(_) => RegistryAuth::Anonymous,
        // The library puts it into a header as it is, and panics where that cannot be.
        Credentials::Bearer(token) if token.bytes().all(|b| b.is_ascii_graphic()) => {
            RegistryAuth::Bearer(token.clone())
        }
        Credentials::Bearer(_) => {
            return Err(Refusal::Unauthorized(
                "the token has characters that no HTTP header can carry".into(),
            ));
        }
    })
}

fn refusal(error: OciDistributionError) -> Refusal {
    match &error {
        OciDistributionError::ImageManifestNotFoundError(_) => Refusal::NotFound("not found".into()),
        OciDistributionError::UnauthorizedError { .. } => {
            Refusal::Unauthorized("it wants credentials, or other ones (401)".into())
        }
        OciDistributionError::AuthenticationFailure(reason) => {
            Refusal::Unauthorized(clip(&format!("its token service refused: {reason}")))
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let code = envelope.errors.first().map(|e| &e.code);
            let message = clip(&envelope.errors.first().map_or(String::new(), |e| e.message.clone()));
            match code {
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown,
                ) => Refusal::NotFound(if message.is_empty() { "not found".into() } else { message }),
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => {
                    Refusal::Unauthorized(format!("it refused: {message}"))
                }
                _ => Refusal::Unreachable(format!("it answered {code:?}: {message}")),
            }
        }
        OciDistributionError::ServerError { code: 404, .. } => Refusal::NotFound("not found".into()),
        OciDistributionError::ServerError { code: 403, .. } => {
            Refusal::Unauthorized("forbidden (403)".into())
        }
        OciDistributionError::ServerError { code, message, .. } => {
            Refusal::Unreachable(clip(&format!("it answered {code}: {message}")))
        }
        other => Refusal::Unreachable(clip(&causes(other))),
    }
}

/// An error and its causes in one line, each said once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    // A chain of causes is short; the bound guards against a cycle.
    for _ in 0..16 {
        let Some(cause) = next else { break };
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

fn clip(text: &str) -> String {
    text.chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RegistryConfig {
        RegistryConfig {
            mirrors: vec![Mirror {
                url: "https://127.0.0.1:6443/".into(),
                ca_pem: Some("pem".into()),
                credentials: Credentials::Bearer("node".into()),
                ..Mirror::default()
            }],
            default_registry: Some("docker.io".into()),
            ..RegistryConfig::default()
        }
    }

    #[test]
    fn mirrors_come_first_and_keep_their_own_credentials() {
        let mine = Credentials::Basic { username: "u".into(), password: "p".into() };
        let asked = sources(&"hello:v1".parse().unwrap(), &config(), &mine).0;
        let brief: Vec<_> = asked
            .iter()
            .map(|s| (s.registry.as_str(), s.repository.as_str(), s.tls, &s.credentials))
            .collect();
        let node = Credentials::Bearer("node".into());
        assert_eq!(
            brief,
            [("127.0.0.1:6443", "hello", true, &node), ("docker.io", "library/hello", true, &mine)]
        );
    }

    #[test]
    fn a_named_registry_is_asked_alone() {
        let mine = Credentials::Bearer("mine".into());
        let asked = sources(&"127.0.0.1:6443/hello".parse().unwrap(), &config(), &mine).0;
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].tls, &asked[0].credentials), (true, &mine));
        let asked = sources(&"127.0.0.1:5000/hello".parse().unwrap(), &config(), &Credentials::Anonymous).0;
        assert!(!asked[0].tls && asked[0].trust == Trust::default());
        let asked = sources(&"ghcr.io/a/hello".parse().unwrap(), &config(), &Credentials::Anonymous).0;
        assert_eq!((asked.len(), asked[0].registry.as_str(), asked[0].tls), (1, "ghcr.io", true));
        // Unless a mirror stands in for all, with its own credentials.
        let mut config = config();
        config.mirrors[0].every_registry = true;
        let asked = sources(&"ghcr.io/a/hello".parse().unwrap(), &config, &mine).0;
        let brief: Vec<_> =
            asked.iter().map(|s| (s.registry.as_str(), s.repository.as_str(), &s.credentials)).collect();
        let node = Credentials::Bearer("node".into());
        assert_eq!(brief, [("127.0.0.1:6443", "ghcr.io/a/hello", &node), ("ghcr.io", "a/hello", &mine)]);
    }

    #[test]
    fn what_is_not_understood_of_a_registry_comes_after_its_mirrors() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("docker.io")).unwrap();
        std::fs::write(dir.path().join("docker.io/hosts.toml"), "sever = 1").unwrap();
        let config = RegistryConfig { host_dirs: vec![dir.path().into()], ..config() };
        let (asked, wrong) = sources(&"hello:v1".parse().unwrap(), &config, &Credentials::Anonymous);
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(wrong.is_some_and(|words| words.contains("sever")));
    }

    #[test]
    fn credentials_that_no_header_can_carry_are_refused() {
        let colon = Credentials::Basic { username: "system:node:a".into(), password: "p".into() };
        assert!(matches!(auth(&colon), Err(Refusal::Unauthorized(_))));
        assert!(matches!(auth(&Credentials::Bearer("a\nb".into())), Err(Refusal::Unauthorized(_))));
    }
}
