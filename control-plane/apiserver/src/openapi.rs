//! OpenAPI documents, made on first use and kept.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use bytes::Bytes;
use coracle_api::Gvk;
use coracle_api::openapi::{self, Foreign, OpenapiResource};
use http::header::{ACCEPT, CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::request::Parts;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::delegate::Delegated;
use crate::resource::ResourceDef;
use crate::respond;

/// The type asked for has an `@`, which no media type may have; the type answered has a dot there, as in Kubernetes.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

const JSON: &str = "application/json";

/// A document and its entity tag.
struct Document {
    bytes: Bytes,
    etag: String,
}

impl Document {
    fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let etag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&bytes)));
        Self { bytes, etag }
    }
}

/// The documents of one server.
pub(crate) struct OpenApi {
    served: Vec<OpenapiResource>,
    v2_json: OnceLock<Document>,
    v2_protobuf: OnceLock<Document>,
    /// With what other servers say, as they said it last.
    v2_merged: Mutex<Option<Arc<Merged>>>,
    index: OnceLock<Document>,
    /// By path: `api/v1`, `apis/apps/v1`.
    v3: BTreeMap<String, Part>,
}

/// Both forms of the v2 document with what other servers say of their groups.
struct Merged {
    /// What they said.
    of: Vec<(String, String, Bytes)>,
    json: Document,
    protobuf: Document,
}

/// The document of one group and version.
struct Part {
    group: String,
    version: String,
    defs: Vec<Arc<ResourceDef>>,
    document: Arc<OnceLock<Document>>,
}

impl Part {
    /// Whether it is about the same resources, so that its document is the same.
    fn is(&self, other: &Self) -> bool {
        self.defs.len() == other.defs.len()
            && self.defs.iter().zip(&other.defs).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl OpenApi {
    /// The documents of these resources; those that are as they were `before` are taken over.
    pub fn new(resources: &[Arc<ResourceDef>], before: Option<&Self>) -> Self {
        let mut v3: BTreeMap<String, Part> = BTreeMap::new();
        for def in resources {
            let path = match def.group.as_str() {
                "" => format!("api/{}", def.version),
                group => format!("apis/{group}/{}", def.version),
            };
            let part = v3.entry(path).or_insert_with(|| Part {
                group: def.group.clone(),
                version: def.version.clone(),
                defs: Vec::new(),
                document: Arc::default(),
            });
            part.defs.push(def.clone());
        }
        for (path, part) in &mut v3 {
            if let Some(known) = before.and_then(|b| b.v3.get(path)).filter(|known| known.is(part)) {
                part.document = known.document.clone();
            }
        }
        let served = resources.iter().flat_map(|def| entries(def)).collect();
        Self {
            served,
            v2_json: OnceLock::new(),
            v2_protobuf: OnceLock::new(),
            v2_merged: Mutex::default(),
            index: OnceLock::new(),
            v3,
        }
    }

    fn part<'a>(&self, part: &'a Part) -> &'a Document {
        part.document.get_or_init(|| Document::new(openapi::v3(&part.group, &part.version, &self.served)))
    }

    /// The document at a path below `/openapi/`.
    pub fn serve(&self, request: &Parts, others: &[Delegated]) -> Option<Response<Body>> {
        let header = |name| request.headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        let mut response = self.document(request.uri.path(), header(ACCEPT), others)?;
        let etag = response.extensions().get::<Tag>().map(|t| t.0.clone())?;
        if header(IF_NONE_MATCH).is_some_and(|known| known.contains(&etag)) {
            response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        if let Ok(etag) = HeaderValue::from_str(&etag) {
            response.headers_mut().insert(ETAG, etag);
        }
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        // A path with a hash never changes its content.
        let forever = request.uri.query().is_some_and(|q| q.contains("hash="));
        let caching = if forever { "public, immutable" } else { "no-cache, private" };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(caching));
        Some(response)
    }

    fn document(&self, path: &str, accept: Option<&str>, others: &[Delegated]) -> Option<Response<Body>> {
        if path == "/openapi/v2" {
            return Some(self.v2(accept.unwrap_or(""), others));
        }
        let rest = path.strip_prefix("/openapi/v3")?.trim_matches('/');
        let of_others: BTreeMap<String, Document> = others
            .iter()
            .filter_map(|o| {
                Some((format!("apis/{}/{}", o.group, o.version), Document::new(o.openapi.clone()?)))
            })
            .collect();
        if let Some(document) = of_others.get(rest) {
            return Some(tagged(JSON, document));
        }
        if rest.is_empty() {
            let hashes =
                || self.v3.iter().map(|(path, part)| (path.as_str(), self.part(part).etag.trim_matches('"')));
            if !of_others.is_empty() {
                let others = of_others.iter().map(|(path, d)| (path.as_str(), d.etag.trim_matches('"')));
                return Some(tagged(JSON, &Document::new(openapi::v3_index(hashes().chain(others)))));
            }
            let index = self.index.get_or_init(|| Document::new(openapi::v3_index(hashes())));
            return Some(tagged(JSON, index));
        }
        Some(tagged(JSON, self.part(self.v3.get(rest)?)))
    }

    /// The v2 document with what others say; made anew when they say something else.
    fn merged(&self, others: &[Delegated]) -> Option<Arc<Merged>> {
        let said = |o: &Delegated| Some((o.group.clone(), o.version.clone(), o.openapi_v2.clone()?));
        let of: Vec<(String, String, Bytes)> = others.iter().filter_map(said).collect();
        if of.is_empty() {
            return None;
        }
        let mut known = self.v2_merged.lock();
        if let Some(known) = known.as_ref().filter(|known| known.of == of) {
            return Some(known.clone());
        }
        let foreign: Vec<Foreign<'_>> =
            of.iter().map(|(group, version, document)| Foreign { group, version, document }).collect();
        let (json, protobuf) = openapi::v2_merged(&self.served, &foreign);
        let new = Arc::new(Merged { json: Document::new(json), protobuf: Document::new(protobuf), of });
        *known = Some(new.clone());
        Some(new)
    }

    fn v2(&self, accept: &str, others: &[Delegated]) -> Response<Body> {
        let is_json = !accept.contains("proto-openapi.spec.v2");
        if let Some(merged) = self.merged(others) {
            return if is_json { tagged(JSON, &merged.json) } else { tagged(PROTOBUF, &merged.protobuf) };
        }
        if is_json {
            let json = self.v2_json.get_or_init(|| Document::new(openapi::v2_json(&self.served)));
            return tagged(JSON, json);
        }
        let bytes = self.v2_protobuf.get_or_init(|| Document::new(openapi::v2_protobuf(&self.served)));
        tagged(PROTOBUF, bytes)
    }
}

/// The entity tag of a document.
#[derive(Clone)]
struct Tag(String);

fn tagged(content_type: &'static str, document: &Document) -> Response<Body> {
    let content_type = HeaderValue::from_static(content_type);
    let mut response = respond::with_type(StatusCode::OK, content_type, document.bytes.clone());
    response.extensions_mut().insert(Tag(document.etag.clone()));
    response
}

fn entries(def: &ResourceDef) -> Vec<OpenapiResource> {
    let entry = |gvk: Gvk, subresource: Option<String>, verbs: &[String], own: bool| OpenapiResource {
        gvk,
        group: def.group.clone(),
        version: def.version.clone(),
        plural: def.plural.clone(),
        subresource,
        namespaced: def.namespaced,
        verbs: verbs.to_vec(),
        custom: def.published.clone().filter(|_| own),
    };
    let mut all = vec![entry(def.gvk(), None, &def.verbs, true)];
    for sub in &def.subresources {
        let gvk = match &sub.group_version {
            Some((group, version)) => Gvk::new(group.as_str(), version.as_str(), sub.kind.as_str()),
            None => Gvk::new(def.group.as_str(), def.version.as_str(), sub.kind.as_str()),
        };
        let own = sub.group_version.is_none();
        all.push(entry(gvk, Some(sub.name.clone()), &sub.verbs, own));
    }
    all
}
