//! How a server joins a cluster: with a token that names the cluster's authority by the hash of its certificate, and
//! proves by a secret that it may.
//!
//! The secret opens everything: whoever joins gets the cluster's keys. The store keeps its hash alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use coracle_store::{OpResult, Store, Txn, Value};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use super::membership::{Keys, Membership};

/// Where the hash of the secret lies.
const SECRET_KEY: &[u8] = b"/coracle/join-secret";
/// The id of the next new member.
const NEXT_KEY: &[u8] = b"/coracle/next-member";
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER: usize = 1 << 20;
const ATTEMPTS: usize = 16;

/// What a server that wants to join says.
#[derive(Serialize, Deserialize)]
pub struct Ask {
    secret: String,
}

/// What it is told.
#[derive(Serialize, Deserialize)]
pub struct Answer {
    membership: Membership,
    keys: Keys,
}

impl Answer {
    /// What a new member is told.
    pub fn new(membership: Membership, keys: Keys) -> Self {
        Self { membership, keys }
    }
}

/// `HASH.SECRET`: the SHA-256 of the authority's certificate (DER), and 256 random bits, both in hexadecimal digits.
pub struct Token {
    authority: [u8; 32],
    secret: String,
}

impl Token {
    /// A new one for the cluster of this authority.
    pub fn new(ca_pem: &str) -> Result<Self> {
        let authority = Sha256::digest(CertificateDer::from_pem_slice(ca_pem.as_bytes())?).into();
        Ok(Self { authority, secret: hex::encode(rand::random::<[u8; 32]>()) })
    }

    /// Reads one.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = "a join token is two groups of 64 hexadecimal digits with a dot between";
        let (authority, secret) = text.trim().split_once('.').context(wrong)?;
        let mut hash = [0; 32];
        hex::decode_to_slice(authority, &mut hash).context(wrong)?;
        ensure!(secret.len() == 64 && hex::decode(secret).is_ok(), wrong);
        Ok(Self { authority: hash, secret: secret.to_owned() })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", hex::encode(self.authority), self.secret)
    }
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Makes a token and lets its secret in, and no other any more. `only_first`: `None` where there is one already.
pub async fn renew(store: &Store, ca_pem: &str, only_first: bool) -> Result<Option<Token>> {
    let token = Token::new(ca_pem)?;
    let (key, value) = (Bytes::from_static(SECRET_KEY), Value::raw(hash(&token.secret)));
    let txn = if only_first { Txn::create(key, value, None) } else { Txn::put(key, value) };
    Ok(store.txn(txn).await?.succeeded.then_some(token))
}

/// Whether this is the secret of the token that is in force.
pub async fn admits(store: &Store, ask: &Ask) -> Result<bool> {
    store.linearizable().await?;
    let Some(known) = store.get(SECRET_KEY) else { return Ok(false) };
    // Both are digests: comparing them tells nothing of the secret.
    Ok(known.value.json == hash(&ask.secret).as_bytes())
}

/// An id that no member has or had.
pub async fn next_member(store: &Store) -> Result<u64> {
    for _ in 0..ATTEMPTS {
        let known = store.get(NEXT_KEY);
        let kept =
            known.as_ref().and_then(|kv| std::str::from_utf8(&kv.value.json).ok()?.parse::<u64>().ok());
        let highest = store.members().iter().map(|member| member.id).max().unwrap_or(1);
        let id = kept.unwrap_or_default().max(highest + 1);
        let (key, value) = (Bytes::from_static(NEXT_KEY), Value::raw((id + 1).to_string()));
        let txn = match known {
            Some(kv) => Txn::update(key, kv.mod_revision, value, None),
            None => Txn::create(key, value, None),
        };
        let done = store.txn(txn).await?;
        if done.succeeded {
            return Ok(id);
        }
        debug_assert!(matches!(done.results.first(), Some(OpResult::Get(_))));
    }
    bail!("other servers join at the same time; try again")
}

/// Asks a server of the cluster to be let in.
pub async fn ask(url: &str, token: &str) -> Result<(Membership, Keys)> {
    let token = Token::parse(token)?;
    let doing = || format!("join the cluster at {url}");
    let answer = tokio::time::timeout(TIMEOUT, post(url, &token)).await;
    let answer = answer.map_err(|_| anyhow::anyhow!("no answer within {TIMEOUT:?}")).and_then(|done| done);
    let answer: Answer = serde_json::from_slice(&answer.with_context(doing)?).with_context(doing)?;
    Ok((answer.membership, answer.keys))
}

async fn post(url: &str, token: &Token) -> Result<Bytes> {
    let uri: http::Uri = url.parse().context("--join wants https://HOST:PORT")?;
    let host = uri.host().context("--join wants https://HOST:PORT")?.trim_matches(['[', ']']).to_owned();
    ensure!(uri.scheme_str() == Some("https"), "--join wants https://HOST:PORT");
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(6443))).await?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Pinned { authority: token.authority, provider: provider.clone() });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = tls.connect(ServerName::try_from(host.clone())?, stream).await.context("TLS")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let body = serde_json::to_vec(&Ask { secret: token.secret.clone() })?;
    let request = http::Request::post("/coracle/join")
        .header(http::header::HOST, &host)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(anyhow::Error::from_boxed)?;
    let body = body.to_bytes();
    if !status.is_success() {
        bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(body)
}

/// Trusts the one authority whose certificate has this hash. The server sends that certificate along.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let named = |certificate: &&CertificateDer<'_>| Sha256::digest(certificate)[..] == self.authority;
        let Some(authority) = intermediates.iter().find(named) else {
            let what = "the server is not of the cluster that the token names";
            return Err(TlsError::General(what.into()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|_| TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        Store::in_memory(&coracle_store::Options::new("unused"))
    }

    fn authority() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    #[tokio::test]
    async fn the_newest_token_alone_opens() {
        let (store, ca) = (store(), authority());
        let nobody = Ask { secret: String::new() };
        assert!(!admits(&store, &nobody).await.unwrap());
        let first = renew(&store, &ca, true).await.unwrap().unwrap();
        assert!(renew(&store, &ca, true).await.unwrap().is_none());
        let read = Token::parse(&format!(" {first}\n")).unwrap();
        assert!(admits(&store, &Ask { secret: read.secret }).await.unwrap());
        let second = renew(&store, &ca, false).await.unwrap().unwrap();
        assert!(!admits(&store, &Ask { secret: first.secret }).await.unwrap());
        assert!(admits(&store, &Ask { secret: second.secret }).await.unwrap());
        assert!(!admits(&store, &nobody).await.unwrap());
    }

    #[tokio::test]
    async fn ids_are_never_given_twice() {
        let store = store();
        assert_eq!(next_member(&store).await.unwrap(), 2);
        assert_eq!(next_member(&store).await.unwrap(), 3);
    }

    #[test]
    fn tokens_that_are_none() {
        for text in ["", "a.b", "..", &"0".repeat(129), &format!("{}.{}", "0".repeat(64), "g".repeat(64))] {
            assert!(Token::parse(text).is_err(), "{text}");
        }
    }
}
