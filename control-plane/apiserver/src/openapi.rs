//! OpenAPI documents, made on first use and kept.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use bytes::Bytes;
use coracle_api::Gvk;
use coracle_api::openapi::{self, OpenapiResource};
use http::header::HeaderValue;
use http::{Response, StatusCode};

use crate::resource::ResourceDef;
use crate::respond;

/// The type asked for has an `@`, which no media type may have; the type answered has a dot there, as in Kubernetes.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents of one server.
pub(crate) struct OpenApi {
    served: Vec<OpenapiResource>,
    v2_json: OnceLock<Bytes>,
    v2_protobuf: OnceLock<Bytes>,
    index: OnceLock<Bytes>,
    /// By path: `api/v1`, `apis/apps/v1`.
    v3: BTreeMap<String, (String, String, OnceLock<Bytes>)>,
}

impl OpenApi {
    pub fn new(resources: &[Arc<ResourceDef>]) -> Self {
        let mut v3 = BTreeMap::new();
        for def in resources {
            let path = match def.group.as_str() {
                "" => format!("api/{}", def.version),
                group => format!("apis/{group}/{}", def.version),
            };
            v3.entry(path).or_insert_with(|| (def.group.clone(), def.version.clone(), OnceLock::new()));
        }
        let served = resources.iter().flat_map(|def| entries(def)).collect();
        Self { served, v2_json: OnceLock::new(), v2_protobuf: OnceLock::new(), index: OnceLock::new(), v3 }
    }

    /// The document at a path below `/openapi/`.
    pub fn serve(&self, path: &str, accept: Option<&str>) -> Option<Response<Body>> {
        if path == "/openapi/v2" {
            return Some(self.v2(accept.unwrap_or("")));
        }
        let rest = path.strip_prefix("/openapi/v3")?.trim_matches('/');
        if rest.is_empty() {
            let index = self.index.get_or_init(|| openapi::v3_index(&self.served).into());
            return Some(respond::json_bytes(StatusCode::OK, index.clone()));
        }
        let (group, version, document) = self.v3.get(rest)?;
        let document = document.get_or_init(|| openapi::v3(group, version, &self.served).into());
        Some(respond::json_bytes(StatusCode::OK, document.clone()))
    }

    fn v2(&self, accept: &str) -> Response<Body> {
        if !accept.contains("proto-openapi.spec.v2") {
            let json = self.v2_json.get_or_init(|| openapi::v2_json(&self.served).into());
            return respond::json_bytes(StatusCode::OK, json.clone());
        }
        let bytes = self.v2_protobuf.get_or_init(|| openapi::v2_protobuf(&self.served).into());
        respond::with_type(StatusCode::OK, HeaderValue::from_static(PROTOBUF), bytes.clone())
    }
}

fn entries(def: &ResourceDef) -> Vec<OpenapiResource> {
    let entry = |gvk: Gvk, subresource: Option<String>, verbs: &[String]| OpenapiResource {
        gvk,
        group: def.group.clone(),
        version: def.version.clone(),
        plural: def.plural.clone(),
        subresource,
        namespaced: def.namespaced,
        verbs: verbs.to_vec(),
    };
    let mut all = vec![entry(def.gvk(), None, &def.verbs)];
    for sub in &def.subresources {
        let gvk = match &sub.group_version {
            Some((group, version)) => Gvk::new(group.as_str(), version.as_str(), sub.kind.as_str()),
            None => Gvk::new(def.group.as_str(), def.version.as_str(), sub.kind.as_str()),
        };
        all.push(entry(gvk, Some(sub.name.clone()), &sub.verbs));
    }
    all
}
