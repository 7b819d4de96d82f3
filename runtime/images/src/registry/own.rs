//! A registry that wants to see a client certificate, or tokens that its token service gives for an identity token
//! (OAuth 2): reading manifests and blobs, with a password or a token beside it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::{Response, StatusCode, header};
use sha2::Digest as _;

use super::{ACCEPT, Refusal, Source, causes, clip};
use crate::Credentials;

/// The longest manifest or token answer that is read, in bytes.
const MAX_ANSWER: usize = 8 << 20;

/// A client for one registry; cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    scheme: &'static str,
    credentials: Credentials,
    /// Tokens by repository.
    tokens: Arc<Mutex<HashMap<String, String>>>,
}

impl Client {
    pub(super) fn new(source: &Source) -> Result<Self, Refusal> {
        let failed =
            |e: reqwest::Error| Refusal::Unreachable(format!("setting up the client: {}", causes(&e)));
        super::auth(&source.credentials)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .danger_accept_invalid_certs(source.trust.skip_verify);
        if super::is_loopback(super::host_of(&source.registry)) {
            builder = builder.no_proxy();
        }
        let mut more = Vec::new();
        for pem in &source.trust.more_pem {
            more.extend(reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(failed)?);
        }
        builder = match &source.trust.only_pem {
            None => builder.tls_certs_merge(more),
            Some(pem) => {
                builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem.as_bytes()).map_err(failed)?)
            }
        };
        if let Some(identity) = &source.trust.identity {
            builder = builder.identity(reqwest::Identity::from_pem(identity.0.as_bytes()).map_err(failed)?);
        }
        let scheme = if source.tls { "https" } else { "http" };
        Ok(Self {
            http: builder.build().map_err(failed)?,
            scheme,
            credentials: source.credentials.clone(),
            tokens: Arc::default(),
        })
    }

    /// A manifest's bytes and digest.
    pub(super) async fn manifest(&self, name: &oci_client::Reference) -> Result<(Bytes, String), Refusal> {
        let key = name.digest().or(name.tag()).unwrap_or("latest");
        let path = format!("manifests/{key}");
        let answer = self.get(name, &path, &[(header::ACCEPT, ACCEPT.join(", "))]).await?;
        let bytes = read(answer).await?;
        let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&bytes)));
        match name.digest() {
            Some(wanted) if wanted != digest => {
                Err(Refusal::Unreachable(format!("it answered {digest} for {wanted}")))
            }
            _ => Ok((bytes, digest)),
        }
    }

    /// A blob from `offset` on; true: all of it.
    pub(super) async fn blob(
        &self,
        name: &oci_client::Reference,
        digest: &str,
        offset: u64,
    ) -> Result<(BoxStream<'static, Result<Bytes, std::io::Error>>, bool), Refusal> {
        let range: &[_] = match offset {
            0 => &[],
            offset => &[(header::RANGE, format!("bytes={offset}-"))],
        };
        let answer = self.get(name, &format!("blobs/{digest}"), range).await?;
        let all = answer.status() != StatusCode::PARTIAL_CONTENT;
        let stream = answer.bytes_stream().map(|piece| piece.map_err(std::io::Error::other));
        Ok((stream.boxed(), all))
    }

    async fn get(
        &self,
        name: &oci_client::Reference,
        path: &str,
        headers: &[(header::HeaderName, String)],
    ) -> Result<Response, Refusal> {
        let repository = name.repository();
        let namespace = name.namespace().map(|ns| format!("?ns={ns}")).unwrap_or_default();
        let url = format!("{}://{}/v2/{repository}/{path}{namespace}", self.scheme, name.resolve_registry());
        let ask = async |token: Option<String>| {
            let mut request = self.http.get(&url);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = match (&token, &self.credentials) {
                (Some(token), _) | (None, Credentials::Bearer(token)) => request.bearer_auth(token),
                (None, Credentials::Basic { username, password }) => {
                    request.basic_auth(username, Some(password))
                }
                (None, Credentials::Anonymous | Credentials::Identity(_)) => request,
            };
            request.send().await.map_err(|e| Refusal::Unreachable(clip(&causes(&e))))
        };
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(repository).cloned();
        let answer = ask(known).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return check(answer);
        }
        let challenge = answer.headers().get(header::WWW_AUTHENTICATE).and_then(|h| h.to_str().ok());
        let Some(challenge) = challenge.and_then(challenge_of) else {
            return check(answer);
        };
        let token = self.token(repository, &challenge).await?;
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(repository.to_owned(), token.clone());
        check(ask(Some(token)).await?)
    }

    async fn token(&self, repository: &str, challenge: &HashMap<String, String>) -> Result<String, Refusal> {
        let realm = challenge.get("realm").map(String::as_str).unwrap_or_default();
        let mut url = reqwest::Url::parse(realm)
            .map_err(|e| Refusal::Unauthorized(format!("the address of its token service: {e}")))?;
        // Who speaks plainly itself may have a token service that does.
        if url.scheme() != "https" && !(self.scheme == "http" && url.scheme() == "http") {
            return Err(Refusal::Unauthorized("its token service has no https address".into()));
        }
        let scope = format!("repository:{repository}:pull");
        let mut asked = vec![("scope", scope.as_str())];
        asked.extend(challenge.get("service").map(|service| ("service", service.as_str())));
        let request = match &self.credentials {
            Credentials::Identity(token) => {
                asked.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "coracle"),
                ]);
                let form = reqwest::Url::parse_with_params("http://form/", &asked);
                let body = form.ok().and_then(|form| form.query().map(str::to_owned)).unwrap_or_default();
                let kind = "application/x-www-form-urlencoded";
                self.http.post(url).header(header::CONTENT_TYPE, kind).body(body)
            }
            other => {
                url.query_pairs_mut().extend_pairs(&asked);
                let request = self.http.get(url);
                match other {
                    Credentials::Basic { username, password } => request.basic_auth(username, Some(password)),
                    _ => request,
                }
            }
        };
        let answer = request.send().await.map_err(|e| Refusal::Unreachable(clip(&causes(&e))))?;
        let bytes = read(check(answer)?).await?;
        let answer: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let token = answer["token"].as_str().or(answer["access_token"].as_str());
        let sent = token.filter(|t| t.bytes().all(|b| b.is_ascii_graphic()));
        sent.map(str::to_owned)
            .ok_or_else(|| Refusal::Unauthorized("its token service answered no token".into()))
    }
}

/// What a `Bearer` challenge asks for.
fn challenge_of(header: &str) -> Option<HashMap<String, String>> {
    let rest = header.strip_prefix("Bearer ").or_else(|| header.strip_prefix("bearer "))?;
    let pairs = rest.split(',').take(16).filter_map(|pair| pair.trim().split_once('='));
    Some(pairs.map(|(k, v)| (k.to_owned(), v.trim_matches('"').to_owned())).collect())
}

fn check(answer: Response) -> Result<Response, Refusal> {
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::NOT_FOUND => Err(Refusal::NotFound("not found".into())),
        StatusCode::UNAUTHORIZED => {
            Err(Refusal::Unauthorized("it wants credentials, or other ones (401)".into()))
        }
        StatusCode::FORBIDDEN => Err(Refusal::Unauthorized("forbidden (403)".into())),
        status => Err(Refusal::Unreachable(format!("it answered {status}"))),
    }
}

async fn read(answer: Response) -> Result<Bytes, Refusal> {
    let mut stream = answer.bytes_stream();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.map_err(|e| Refusal::Unreachable(clip(&causes(&e))))?);
        if bytes.len() > MAX_ANSWER {
            return Err(Refusal::Unreachable(format!("its answer is longer than {MAX_ANSWER} bytes")));
        }
    }
    Ok(bytes.into())
}
