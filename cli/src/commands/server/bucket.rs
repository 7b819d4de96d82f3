//! Where scheduled snapshots go: a directory, or a bucket of a store that speaks S3 (requests are signed with version 4).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusty_s3::actions::{DeleteObject, ListObjectsV2, PutObject};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use tokio_util::io::ReaderStream;

use super::schedule;
use crate::data_dir::{make_private, rename_durably};

/// For how long a signed request is good.
const SIGNED_FOR: Duration = Duration::from_secs(900);
/// Most bytes of an answer, and most answers of one list.
const MAX_ANSWER: usize = 8 << 20;
const MAX_PAGES: usize = 100;
/// What ends the name of a file that is not whole yet.
const PART: &str = ".part";

type Body = BoxBody<Bytes, std::io::Error>;
type Https = hyper_rustls::HttpsConnector<HttpConnector>;

/// Keeps files by name.
pub enum Place {
    /// A directory.
    Directory(PathBuf),
    /// A bucket.
    Bucket(Box<S3>),
}

/// A bucket, or the part of it below a prefix.
pub struct S3 {
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
    client: Client<Https, Body>,
}

impl Place {
    /// `s3://BUCKET/PREFIX` at an endpoint, with the credentials of the environment; or a directory, which is made.
    pub fn open(target: &str, endpoint: Option<&str>, region: &str) -> Result<Self> {
        let Some(path) = target.strip_prefix("s3://") else {
            let directory = PathBuf::from(target);
            make_private(&directory).with_context(|| format!("create {target}"))?;
            return Ok(Self::Directory(directory));
        };
        let credentials = Credentials::from_env();
        let credentials = credentials.context("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")?;
        Ok(Self::Bucket(Box::new(S3::new(path, endpoint, region, credentials)?)))
    }

    /// Keeps a file under a name. It is there whole or not at all.
    pub async fn put(&self, name: &str, file: &Path) -> Result<()> {
        match self {
            Self::Directory(directory) => {
                let (into, name, file) = (directory.clone(), name.to_owned(), file.to_owned());
                let doing = format!("write {name} to {}", directory.display());
                let copied = tokio::task::spawn_blocking(move || copy(&file, &into, &name));
                copied.await?.context(doing)
            }
            Self::Bucket(s3) => s3.put(name, file).await,
        }
    }

    /// The names of all files, in order.
    pub async fn list(&self) -> Result<Vec<String>> {
        let mut names = match self {
            Self::Directory(directory) => {
                let read = std::fs::read_dir(directory);
                let mut names = Vec::new();
                for entry in read.with_context(|| format!("list {}", directory.display()))? {
                    names.extend(entry?.file_name().into_string());
                }
                names
            }
            Self::Bucket(s3) => s3.list().await?,
        };
        names.sort();
        Ok(names)
    }

    /// Removes a file.
    pub async fn remove(&self, name: &str) -> Result<()> {
        match self {
            Self::Directory(directory) => {
                std::fs::remove_file(directory.join(name)).with_context(|| format!("remove {name}"))
            }
            Self::Bucket(s3) => s3.remove(name).await,
        }
    }
}

/// Copies a file into a directory, beside its place first. What copies before it left would fill the disk: it goes.
fn copy(file: &Path, directory: &Path, name: &str) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let left = entry?.path();
        if is_part(&left)
            && let Err(error) = std::fs::remove_file(&left)
        {
            tracing::warn!(%error, file = %left.display(), "half a snapshot cannot be removed");
        }
    }
    let part = directory.join(format!("{name}{PART}"));
    let copied = std::fs::copy(file, &part)
        .and_then(|_| std::fs::File::open(&part)?.sync_all())
        .and_then(|()| rename_durably(&part, &directory.join(name)));
    if copied.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    copied
}

/// Whether this is what a copy of a scheduled snapshot left. The directory may hold files of others.
fn is_part(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()?.strip_suffix(PART));
    name.is_some_and(|name| schedule::taken(name).is_some())
}

impl S3 {
    fn new(path: &str, endpoint: Option<&str>, region: &str, credentials: Credentials) -> Result<Self> {
        let (name, prefix) = path.split_once('/').unwrap_or((path, ""));
        let amazon = format!("https://s3.{region}.amazonaws.com");
        let endpoint = endpoint.unwrap_or(&amazon);
        let url = endpoint.parse().with_context(|| format!("the endpoint {endpoint}"))?;
        let bucket = Bucket::new(url, UrlStyle::Path, name.to_owned(), region.to_owned());
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .context("the machine's certificates")?
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { bucket: bucket.context("the bucket")?, credentials, prefix, client })
    }

    async fn put(&self, name: &str, file: &Path) -> Result<()> {
        let key = format!("{}{name}", self.prefix);
        let url = PutObject::new(&self.bucket, Some(&self.credentials), &key).sign(SIGNED_FOR);
        let file = tokio::fs::File::open(file).await?;
        let length = file.metadata().await?.len();
        let body = StreamBody::new(ReaderStream::new(file).map_ok(Frame::data)).boxed();
        self.ask(http::Method::PUT, url.as_str(), Some((length, body))).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut list = ListObjectsV2::new(&self.bucket, Some(&self.credentials));
            list.with_prefix(self.prefix.clone());
            if let Some(token) = &token {
                list.with_continuation_token(token.clone());
            }
            let answer = self.ask(http::Method::GET, list.sign(SIGNED_FOR).as_str(), None).await?;
            let answer = ListObjectsV2::parse_response(std::str::from_utf8(&answer)?).context("a list")?;
            let keys = answer.contents.iter().filter_map(|object| object.key.strip_prefix(&self.prefix));
            names.extend(keys.map(str::to_owned));
            token = answer.next_continuation_token;
            if token.is_none() {
                return Ok(names);
            }
        }
        bail!("the bucket has too many objects below {:?}", self.prefix)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let key = format!("{}{name}", self.prefix);
        let url = DeleteObject::new(&self.bucket, Some(&self.credentials), &key).sign(SIGNED_FOR);
        self.ask(http::Method::DELETE, url.as_str(), None).await.map(drop)
    }

    async fn ask(&self, method: http::Method, url: &str, body: Option<(u64, Body)>) -> Result<Bytes> {
        let doing = format!("{method} {}", url.split('?').next().unwrap_or_default());
        let mut request = http::Request::builder().method(method).uri(url);
        let body = match body {
            Some((length, body)) => {
                request = request.header(http::header::CONTENT_LENGTH, length);
                body
            }
            None => Empty::new().map_err(|never| match never {}).boxed(),
        };
        let answer = self.client.request(request.body(body)?).await.with_context(|| doing.clone())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        let words = String::from_utf8_lossy(body.get(..body.len().min(512)).unwrap_or_default()).into_owned();
        ensure!(status.is_success(), "{doing}: {status}: {words}");
        Ok(body)
    }
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
