//! One server behind an APIService.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coracle_api::Status;
use coracle_apiserver::ca::Identity;
use coracle_apiserver::delegate::{Remote, Trust};
use coracle_apiserver::{Delegated, Objects, UserInfo};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use serde_json::Value;

use super::availability::Verdict;
use super::documents::{self, Document};
use super::{key, rank};
use crate::service::backends;
use crate::value::{at, flag, items, number, remove, text};

/// How long a server may take to say what it serves.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a discovery document.
const DISCOVERY_MAX: usize = 2 << 20;
/// As whom this server asks what another serves.
const CHECKER: &str = "system:kube-aggregator";

/// A server, and what it said last of itself.
pub struct Backend {
    /// Group and version.
    pub key: (String, String),
    spec: Value,
    remote: Result<Remote, String>,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    /// Null while it is not there.
    resources: Value,
    openapi: Option<Document>,
    /// Of all that the server serves, not of this group alone.
    openapi_v2: Option<Document>,
}

impl Backend {
    /// The server that an APIService names.
    pub fn new(service: &Value, identity: Option<&Identity>) -> Self {
        let spec = at(service, "/spec").clone();
        let name = format!("{}.{}.svc", text(&spec, "/service/name"), text(&spec, "/service/namespace"));
        let bundle = STANDARD.decode(text(&spec, "/caBundle")).unwrap_or_default();
        let remote = if flag(&spec, "/insecureSkipTLSVerify") {
            Remote::new(&name, &Trust::Anyone, identity).map_err(|e| e.to_string())
        } else {
            Remote::new(&name, &Trust::Bundle(&bundle), identity).map_err(|e| e.to_string())
        };
        Self { key: key(service), spec, remote, said: Mutex::default() }
    }

    /// Whether it is the one of this APIService, unchanged.
    pub fn is(&self, service: &Value) -> bool {
        self.spec == *at(service, "/spec")
    }

    /// The most important first.
    pub fn rank(&self) -> (i64, String, i64) {
        rank(&serde_json::json!({"spec": self.spec}))
    }

    /// What it serves, as far as it is known.
    pub fn delegated(&self) -> Delegated {
        let (group, version) = self.key.clone();
        let said = self.said.lock();
        let bytes = |document: &Option<Document>| document.as_ref().map(|d| d.bytes.clone());
        let (openapi, openapi_v2) = (bytes(&said.openapi), bytes(&said.openapi_v2));
        Delegated { group, version, resources: said.resources.clone(), openapi, openapi_v2 }
    }

    /// What tells its server from others: several groups and versions may have the same.
    pub fn server(&self) -> String {
        let mut spec = self.spec.clone();
        for own in ["group", "version", "groupPriorityMinimum", "versionPriority"] {
            remove(&mut spec, own);
        }
        spec.to_string()
    }

    /// Its addresses, or why there are none.
    async fn addresses(&self, objects: &Objects) -> Result<Vec<(String, u16)>, Verdict> {
        let (namespace, name) = (text(&self.spec, "/service/namespace"), text(&self.spec, "/service/name"));
        let failed = |status: Status| Verdict::not("ServiceAccessError", status.to_string());
        let service = objects.get("", "services", Some(namespace), name).await.map_err(failed)?;
        let Some(service) = service else {
            let words = format!("service/{name} in {namespace:?} is not present");
            return Err(Verdict::not("ServiceNotFound", words));
        };
        let wanted = number(&self.spec, "/service/port");
        if text(&service, "/spec/type") == "ExternalName" {
            let port = u16::try_from(wanted).unwrap_or_default();
            return Ok(vec![(text(&service, "/spec/externalName").to_owned(), port)]);
        }
        let Some(port) = items(&service, "/spec/ports").iter().find(|p| number(p, "/port") == wanted) else {
            let words = format!("service/{name} in {namespace:?} is not listening on port {wanted}");
            return Err(Verdict::not("ServicePortError", words));
        };
        let port_name = text(port, "/name");
        let found = backends::ready(objects, namespace, name, port_name).await.map_err(failed)?;
        if found.is_empty() {
            let words = format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
            );
            return Err(Verdict::not("MissingEndpoints", words));
        }
        Ok(found)
    }

    /// Passes a call on to any of its addresses.
    pub async fn send(
        &self,
        objects: &Objects,
        user: &UserInfo,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let unavailable = |why: &str| {
            tracing::debug!(
                group = self.key.0,
                version = self.key.1,
                why,
                "an aggregated API is not available"
            );
            Status::service_unavailable("service unavailable")
        };
        let remote = self.remote.as_ref().map_err(|why| unavailable(why))?;
        let addresses = self.addresses(objects).await.map_err(|verdict| unavailable(&verdict.message))?;
        // Any will do; the clock spreads calls well enough.
        let turn = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() as usize;
        let (host, port) =
            addresses.get(turn % addresses.len().max(1)).ok_or_else(|| unavailable("no address"))?;
        remote.send((host, *port), user, request).await
    }

    /// Whether it is there and says what it serves; and whether it says something else than before.
    pub async fn check(&self, objects: &Objects) -> (Verdict, bool) {
        let (verdict, resources) = match self.ask(objects).await {
            Ok(resources) => (Verdict::passed(), resources),
            Err(verdict) => (verdict, Value::Null),
        };
        let mut said = self.said.lock();
        let changed = said.resources != resources;
        match verdict.available {
            true => said.resources = resources,
            false => *said = Said::default(),
        }
        (verdict, changed)
    }

    async fn ask(&self, objects: &Objects) -> Result<Value, Verdict> {
        let remote = self.remote.as_ref().map_err(|why| Verdict::not("FailedDiscoveryCheck", why.clone()))?;
        let addresses = self.addresses(objects).await?;
        let Some((host, port)) = addresses.first() else { return Err(Verdict::not("MissingEndpoints", "")) };
        let (group, version) = &self.key;
        let path = format!("/apis/{group}/{version}");
        let bad = |why: String| {
            let words = format!("failing or missing response from https://{host}:{port}{path}: {why}");
            Verdict::not("FailedDiscoveryCheck", words)
        };
        let (status, _, document) =
            read(remote, (host, *port), &path, DISCOVERY_MAX, None).await.map_err(bad)?;
        if !status.is_success() {
            return Err(bad(format!("bad status from {path}: {}", status.as_u16())));
        }
        serde_json::from_slice(&document).map_err(|e| bad(e.to_string()))
    }

    /// Reads again the document of its group and version; true if it is another one.
    pub async fn read_v3(&self, objects: &Objects) -> bool {
        let (group, version) = &self.key;
        let known = self.said.lock().openapi.clone();
        let found = self.read_again(objects, &format!("/openapi/v3/apis/{group}/{version}"), known).await;
        self.says(|said| said.openapi = found)
    }

    /// Reads again the document of the whole server, for all that it serves; true if it is another one.
    pub async fn read_v2(&self, objects: &Objects, all: &[Arc<Self>]) -> bool {
        let known = all.iter().find_map(|backend| backend.said.lock().openapi_v2.clone());
        let found = self.read_again(objects, "/openapi/v2", known).await;
        let mut changed = false;
        for backend in all {
            changed |= backend.says(|said| said.openapi_v2.clone_from(&found));
        }
        changed
    }

    async fn read_again(&self, objects: &Objects, path: &str, known: Option<Document>) -> Option<Document> {
        let Ok(remote) = &self.remote else { return known };
        let Ok(addresses) = self.addresses(objects).await else { return known };
        let Some((host, port)) = addresses.first() else { return known };
        documents::read_again(remote, (host, *port), path, known).await
    }

    /// Whether it answered when it was asked last.
    pub fn is_there(&self) -> bool {
        !self.said.lock().resources.is_null()
    }

    /// Notes what it says, if it is there; true if that is something else.
    fn says(&self, change: impl FnOnce(&mut Said)) -> bool {
        let mut said = self.said.lock();
        if said.resources.is_null() {
            return false;
        }
        let before = (said.openapi.clone(), said.openapi_v2.clone());
        change(&mut said);
        before != (said.openapi.clone(), said.openapi_v2.clone())
    }
}

/// What another server answers to a read, in full; what is wrong with it, in words.
pub(super) async fn read(
    remote: &Remote,
    address: (&str, u16),
    path: &str,
    max: usize,
    known: Option<HeaderValue>,
) -> Result<(StatusCode, HeaderMap, Bytes), String> {
    let mut request = Request::builder().uri(path).header(header::ACCEPT, "application/json");
    if let Some(etag) = known {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    let request = request.body(Body::empty()).map_err(|e| e.to_string())?;
    let user = UserInfo::new(CHECKER, &["system:masters"]);
    let work = async {
        let response = remote.send(address, &user, request).await.map_err(|status| status.message)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, max).collect().await.map_err(|e| e.to_string())?;
        Ok((parts.status, parts.headers, body.to_bytes()))
    };
    tokio::time::timeout(CHECK_TIMEOUT, work).await.unwrap_or_else(|_| Err("it took too long".into()))
}
