//! One server behind an APIService.

use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coracle_api::Status;
use coracle_apiserver::ca::Identity;
use coracle_apiserver::delegate::{Remote, Trust};
use coracle_apiserver::{Delegated, Objects, UserInfo};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use serde_json::Value;

use super::availability::Verdict;
use super::{key, rank};
use crate::service::backends;
use crate::value::{at, flag, items, number, text};

/// How long a server may take to say what it serves.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a discovery document, and of an OpenAPI document.
const DISCOVERY_MAX: usize = 2 << 20;
const OPENAPI_MAX: usize = 8 << 20;
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
    resources: Value,
    openapi: Option<Bytes>,
    openapi_v2: Option<Bytes>,
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
        let (openapi, openapi_v2) = (said.openapi.clone(), said.openapi_v2.clone());
        Delegated { group, version, resources: said.resources.clone(), openapi, openapi_v2 }
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

    /// Whether it is there, and says what it serves.
    pub async fn check(&self, objects: &Objects) -> Verdict {
        let verdict = self.ask(objects).await.unwrap_or_else(|verdict| verdict);
        if !verdict.available {
            *self.said.lock() = Said::default();
        }
        verdict
    }

    async fn ask(&self, objects: &Objects) -> Result<Verdict, Verdict> {
        let remote = self.remote.as_ref().map_err(|why| Verdict::not("FailedDiscoveryCheck", why.clone()))?;
        let addresses = self.addresses(objects).await?;
        let Some((host, port)) = addresses.first() else { return Err(Verdict::not("MissingEndpoints", "")) };
        let (group, version) = &self.key;
        let path = format!("/apis/{group}/{version}");
        let bad = |why: String| {
            let words = format!("failing or missing response from https://{host}:{port}{path}: {why}");
            Verdict::not("FailedDiscoveryCheck", words)
        };
        let document = read(remote, (host, *port), &path, DISCOVERY_MAX).await.map_err(bad)?;
        let resources: Value = serde_json::from_slice(&document).map_err(|e| bad(e.to_string()))?;
        // Who has no such document is served all the same.
        let document = async |path: &str| {
            let found = read(remote, (host, *port), path, OPENAPI_MAX).await.ok();
            found.filter(|bytes| serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok())
        };
        let openapi = document(&format!("/openapi/v3{path}")).await;
        let openapi_v2 = document("/openapi/v2").await;
        *self.said.lock() = Said { resources, openapi, openapi_v2 };
        Ok(Verdict::passed())
    }
}

/// A document of another server; what is wrong with it, in words.
async fn read(remote: &Remote, address: (&str, u16), path: &str, max: usize) -> Result<Bytes, String> {
    let request = Request::builder().uri(path).header(header::ACCEPT, "application/json").body(Body::empty());
    let request = request.map_err(|e| e.to_string())?;
    let user = UserInfo::new(CHECKER, &["system:masters"]);
    let work = async {
        let response = remote.send(address, &user, request).await.map_err(|status| status.message)?;
        if !response.status().is_success() {
            return Err(format!("bad status from {path}: {}", response.status().as_u16()));
        }
        let body = Limited::new(response.into_body(), max).collect().await.map_err(|e| e.to_string())?;
        Ok(body.to_bytes())
    };
    tokio::time::timeout(CHECK_TIMEOUT, work).await.unwrap_or_else(|_| Err("it took too long".into()))
}
