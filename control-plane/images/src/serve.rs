//! The calls: one function an endpoint of the distribution specification.

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use coracle_apiserver::UserInfo;
use http::header::{self, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::blobs::Blobs;
use crate::error::Error;
use crate::manifests::{Manifest, Manifests};
use crate::route::{self, Route};
use crate::uploads::{self, Uploads};
use crate::{names, pages};

/// Most bytes of a manifest: 4 MiB.
pub const MANIFEST_MAX: usize = 4 << 20;
/// The realm of basic authentication.
pub const REALM: &str = "Basic realm=\"coracle\"";

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// What calls share.
pub struct Registry {
    pub manifests: Manifests,
    pub uploads: Uploads,
    pub blobs: Blobs,
}

type Answer = Result<Response<Body>, Error>;

/// Serves one call.
pub async fn call(State(registry): State<Arc<Registry>>, request: Request<Body>) -> Response<Body> {
    let known = request.extensions().get::<UserInfo>().is_some_and(|u| !u.in_group("system:unauthenticated"));
    let mut response = match known {
        true => registry.route(request).await.unwrap_or_else(|e| e.response()),
        false => {
            let mut response = Error::unauthorized().response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(REALM));
            response
        }
    };
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

fn answer(status: StatusCode, headers: &[(HeaderName, &str)], body: Body) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).map_err(|e| Error::internal("making a header", e))?;
        response.headers_mut().insert(name.clone(), value);
    }
    Ok(response)
}

fn list(body: &Value, next: Option<String>) -> Answer {
    let mut headers = vec![(header::CONTENT_TYPE, "application/json")];
    let link = next.map(|next| format!("<{next}>; rel=\"next\""));
    if let Some(link) = &link {
        headers.push((header::LINK, link));
    }
    answer(StatusCode::OK, &headers, Body::from(body.to_string()))
}

impl Registry {
    async fn route(&self, request: Request<Body>) -> Answer {
        let path = request.uri().path().to_string();
        let method = request.method().clone();
        let Some(route) = route::parse(&path) else { return Err(Error::not_found(&path)) };
        if let Route::Tags(r)
        | Route::Manifest(r, _)
        | Route::Blob(r, _)
        | Route::Uploads(r)
        | Route::Upload(r, _) = route
        {
            names::repository(r)?;
        }
        let read = matches!(method, Method::GET | Method::HEAD);
        if matches!(route, Route::Catalog | Route::Tags(_) | Route::Manifest(..)) {
            self.manifests.newest().await?;
        }
        match (route, &method) {
            (Route::Base, _) if read => {
                answer(StatusCode::OK, &[(header::CONTENT_TYPE, "application/json")], Body::from("{}"))
            }
            (Route::Catalog, &Method::GET) => {
                let (page, next) = pages::page(self.manifests.repositories()?, request.uri());
                list(&json!({"repositories": page}), next)
            }
            (Route::Tags(repository), &Method::GET) => self.tags(repository, &request),
            (Route::Manifest(repository, reference), _) if read => {
                self.get_manifest(repository, reference, &method)
            }
            (Route::Manifest(repository, reference), &Method::PUT) => {
                self.put_manifest(repository, reference, request).await
            }
            (Route::Manifest(repository, reference), &Method::DELETE) => {
                self.delete_manifest(repository, reference).await
            }
            (Route::Blob(_, digest), _) if read => self.get_blob(digest, request.into_parts().0).await,
            (Route::Uploads(repository), &Method::POST) => self.begin(repository, request).await,
            (Route::Upload(repository, id), &Method::PATCH) => self.append(repository, id, request).await,
            (Route::Upload(repository, id), &Method::PUT) => self.finish(repository, id, request).await,
            (Route::Upload(repository, id), &Method::GET) => {
                let size = self.uploads.size(repository, id).await?;
                progress(StatusCode::NO_CONTENT, repository, id, size)
            }
            (Route::Upload(repository, id), &Method::DELETE) => {
                self.uploads.cancel(repository, id).await?;
                answer(StatusCode::NO_CONTENT, &[], Body::empty())
            }
            _ => Err(Error::unsupported(format!("{method} is not supported on {path}"))),
        }
    }

    fn tags(&self, repository: &str, request: &Request<Body>) -> Answer {
        if !self.manifests.exists(repository)? {
            return Err(Error::name_unknown(repository));
        }
        let (page, next) = pages::page(self.manifests.tags(repository)?, request.uri());
        list(&json!({"name": repository, "tags": page}), next)
    }

    /// The digest that a reference (a tag or a digest) names.
    fn resolve(&self, repository: &str, reference: &str) -> Result<String, Error> {
        if reference.contains(':') {
            names::sha256(reference)?;
            return Ok(reference.to_string());
        }
        self.manifests
            .tag(repository, reference)
            .ok_or_else(|| Error::manifest_unknown(repository, reference))
    }

    fn get_manifest(&self, repository: &str, reference: &str, method: &Method) -> Answer {
        let digest = self.resolve(repository, reference)?;
        let manifest = self
            .manifests
            .get(repository, &digest)
            .ok_or_else(|| Error::manifest_unknown(repository, reference))?;
        let length = manifest.bytes.len().to_string();
        let headers = [
            (header::CONTENT_TYPE, manifest.media_type.as_str()),
            (header::CONTENT_LENGTH, &length),
            (CONTENT_DIGEST, &digest),
        ];
        let body = if method == Method::HEAD { Body::empty() } else { Body::from(manifest.bytes) };
        answer(StatusCode::OK, &headers, body)
    }

    async fn put_manifest(&self, repository: &str, reference: &str, request: Request<Body>) -> Answer {
        let declared =
            request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let declared = declared.split(';').next().unwrap_or_default().trim().to_string();
        let bytes = uploads::read(request.into_body(), MANIFEST_MAX).await?;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        let tag = match reference.contains(':') {
            true if names::sha256(reference)? != digest.trim_start_matches("sha256:") => {
                return Err(Error::digest_invalid(format!("the manifest is {digest}, not {reference}")));
            }
            true => None,
            false if names::is_tag(reference) => Some(reference),
            false => {
                return Err(Error::manifest_invalid(format!("{reference:?} is neither a tag nor a digest")));
            }
        };
        let media_type = self.check(repository, &bytes, &declared).await?;
        self.manifests.put(repository, &digest, tag, &Manifest { media_type, bytes }).await?;
        let location = format!("/v2/{repository}/manifests/{digest}");
        answer(
            StatusCode::CREATED,
            &[(header::LOCATION, &location), (CONTENT_DIGEST, &digest)],
            Body::empty(),
        )
    }

    /// A manifest must be JSON of a known shape, and what it refers to must be here. Answers its media type.
    async fn check(&self, repository: &str, bytes: &[u8], declared: &str) -> Result<String, Error> {
        let manifest: Value =
            serde_json::from_slice(bytes).map_err(|e| Error::manifest_invalid(format!("not JSON: {e}")))?;
        let own = manifest.get("mediaType").and_then(Value::as_str).unwrap_or_default();
        if !own.is_empty() && !declared.is_empty() && own != declared {
            return Err(Error::manifest_invalid(format!(
                "mediaType is {own}, but it was sent as {declared}"
            )));
        }
        let media_type = if own.is_empty() { declared } else { own };
        let fits = |t: &str| t.len() < 256 && t.bytes().all(|b| (0x21..0x7f).contains(&b));
        if media_type.is_empty() || !fits(media_type) {
            return Err(Error::manifest_invalid("neither mediaType nor Content-Type says what it is"));
        }
        let digest_of = |d: &Value| d.get("digest").and_then(Value::as_str).unwrap_or_default().to_string();
        let children = manifest.get("manifests").and_then(Value::as_array);
        if let Some(children) = children {
            for child in children {
                let digest = digest_of(child);
                names::sha256(&digest)?;
                if self.manifests.get(repository, &digest).is_none() {
                    return Err(Error::manifest_blob_unknown(&digest));
                }
            }
            return Ok(media_type.to_string());
        }
        let config = manifest
            .get("config")
            .ok_or_else(|| Error::manifest_invalid("it has neither config nor manifests"))?;
        let layers = manifest.get("layers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for blob in std::iter::once(config).chain(layers) {
            let digest = digest_of(blob);
            let size = self
                .blobs
                .size(names::sha256(&digest)?)
                .await
                .map_err(|e| Error::internal("reading a blob", e))?;
            if size.is_none() {
                return Err(Error::manifest_blob_unknown(&digest));
            }
        }
        Ok(media_type.to_string())
    }

    async fn delete_manifest(&self, repository: &str, reference: &str) -> Answer {
        let digest = self.resolve(repository, reference)?;
        if !reference.contains(':') {
            self.manifests.delete_tag(repository, reference).await?;
        } else if self.manifests.get(repository, &digest).is_some() {
            self.manifests.delete(repository, &digest).await?;
        } else {
            return Err(Error::manifest_unknown(repository, reference));
        }
        answer(StatusCode::ACCEPTED, &[], Body::empty())
    }

    async fn get_blob(&self, digest: &str, request: http::request::Parts) -> Answer {
        let found = self
            .blobs
            .open_blob(names::sha256(digest)?)
            .await
            .map_err(|e| Error::internal("reading a blob", e))?;
        let Some((mut file, size)) = found else { return Err(Error::blob_unknown(digest)) };
        let range = request
            .headers
            .get(header::RANGE)
            .and_then(|v| v.to_str().ok())
            .and_then(|r| r.strip_prefix("bytes="));
        let (status, first, length) = match range.map(|r| wanted(r, size)) {
            None => (StatusCode::OK, 0, size),
            Some(Some((first, length))) => (StatusCode::PARTIAL_CONTENT, first, length),
            Some(None) => return Err(Error::range(format!("the blob has {size} bytes"))),
        };
        let (length_text, range_text) =
            (length.to_string(), format!("bytes {first}-{}/{size}", (first + length).saturating_sub(1)));
        let mut headers = vec![
            (header::CONTENT_TYPE, "application/octet-stream"),
            (header::CONTENT_LENGTH, length_text.as_str()),
            (header::ACCEPT_RANGES, "bytes"),
            (CONTENT_DIGEST, digest),
        ];
        if status == StatusCode::PARTIAL_CONTENT {
            headers.push((header::CONTENT_RANGE, &range_text));
        }
        if request.method == Method::HEAD {
            return answer(status, &headers, Body::empty());
        }
        file.seek(SeekFrom::Start(first)).await.map_err(|e| Error::internal("reading a blob", e))?;
        let stream = ReaderStream::with_capacity(file.take(length), 64 << 10);
        answer(status, &headers, Body::from_stream(stream))
    }

    async fn begin(&self, repository: &str, request: Request<Body>) -> Answer {
        if let Some(digest) = pages::query(request.uri(), "mount") {
            let here = self
                .blobs
                .size(names::sha256(&digest)?)
                .await
                .map_err(|e| Error::internal("reading a blob", e))?;
            if here.is_some() {
                return stored(repository, &digest);
            }
        }
        let id = self.uploads.begin(repository).await?;
        let Some(digest) = pages::query(request.uri(), "digest") else {
            return progress(StatusCode::ACCEPTED, repository, &id, 0);
        };
        let done = self.uploads.finish(repository, &id, request.into_body(), None, &digest).await;
        if done.is_err() {
            let _ = self.uploads.cancel(repository, &id).await;
        }
        done?;
        stored(repository, &digest)
    }

    async fn append(&self, repository: &str, id: &str, request: Request<Body>) -> Answer {
        let start = chunk_start(&request)?;
        let size = self.uploads.append(repository, id, request.into_body(), start).await?;
        progress(StatusCode::ACCEPTED, repository, id, size)
    }

    async fn finish(&self, repository: &str, id: &str, request: Request<Body>) -> Answer {
        let Some(digest) = pages::query(request.uri(), "digest") else {
            return Err(Error::digest_invalid("the query must hold the digest of the whole blob"));
        };
        let start = chunk_start(&request)?;
        self.uploads.finish(repository, id, request.into_body(), start, &digest).await?;
        stored(repository, &digest)
    }
}

/// `Content-Range: <first>-<last>` of a chunk.
fn chunk_start(request: &Request<Body>) -> Result<Option<u64>, Error> {
    let Some(range) = request.headers().get(header::CONTENT_RANGE) else { return Ok(None) };
    let first = range
        .to_str()
        .ok()
        .map(|r| r.trim_start_matches("bytes "))
        .and_then(|r| r.split_once('-')?.0.trim().parse().ok());
    first
        .map(Some)
        .ok_or_else(|| Error::upload_invalid(format!("Content-Range {range:?} is not <first>-<last>")))
}

/// `<first>-<last>`, `<first>-` or `-<last bytes>` as first and length; `None` where that is not in the blob.
fn wanted(range: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = range.split_once('-')?;
    let end = size.checked_sub(1)?;
    let (first, last) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) => (first, last.min(end)),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, end),
        (Err(_), Ok(n)) if first.trim().is_empty() && n > 0 => (size.saturating_sub(n), end),
        _ => return None,
    };
    (first <= last && first <= end).then(|| (first, last - first + 1))
}

fn progress(status: StatusCode, repository: &str, id: &str, size: u64) -> Answer {
    let location = format!("/v2/{repository}/blobs/uploads/{id}");
    let range = format!("0-{}", size.saturating_sub(1));
    answer(status, &[(header::LOCATION, &location), (header::RANGE, &range), (UPLOAD_ID, id)], Body::empty())
}

fn stored(repository: &str, digest: &str) -> Answer {
    let location = format!("/v2/{repository}/blobs/{digest}");
    answer(StatusCode::CREATED, &[(header::LOCATION, &location), (CONTENT_DIGEST, digest)], Body::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("0-4", Some((0, 5))),
            ("5-", Some((5, 5))),
            ("-3", Some((7, 3))),
            ("-30", Some((0, 10))),
            ("8-99", Some((8, 2))),
            ("10-12", None),
            ("4-2", None),
            ("x", None),
            ("-0", None),
        ] {
            assert_eq!(wanted(range, 10), expected, "{range}");
        }
        assert_eq!(wanted("0-0", 0), None);
    }
}
