//! Paths that are no resources: discovery, OpenAPI, version, health, metrics.

use axum::body::Body;
use coracle_api::Status;
use futures::FutureExt;
use http::{Method, Response, StatusCode, header};
use serde_json::json;

use crate::negotiate::{self, Encoding, Form};
use crate::query::Query;
use crate::respond;
use crate::state::Shared;

/// The Kubernetes version whose API this is.
pub const KUBERNETES_VERSION: &str = "v1.36.2";

const FIXED: [&str; 9] = [
    "/healthz",
    "/livez",
    "/livez/ping",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/readyz",
    "/readyz/ping",
    "/version",
];

/// Answers such a path.
pub(crate) async fn serve(shared: &Shared, request: &http::request::Parts) -> Result<Response<Body>, Status> {
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    let path = request.uri.path();
    let accept = request.headers.get(header::ACCEPT).and_then(|a| a.to_str().ok());
    match path {
        "/" => Ok(index(shared)),
        "/version" | "/version/" => Ok(version()),
        "/healthz" | "/livez" | "/readyz" => health(shared, request).await,
        _ if ["/healthz/", "/livez/", "/readyz/"].iter().any(|root| path.starts_with(root)) => {
            health(shared, request).await
        }
        "/metrics" => Ok(respond::text(StatusCode::OK, crate::metrics::all(shared))),
        _ if path.starts_with("/openapi/") => {
            shared.catch_up().await;
            shared
                .catalog
                .load()
                .openapi
                .serve(request, &shared.delegated())
                .ok_or_else(Status::resource_not_found)
        }
        _ => {
            let json = negotiate::Accepted { encoding: Encoding::Json, form: Form::Object, stream: false };
            let accepted = negotiate::accept(accept).unwrap_or(json);
            shared.catch_up().await;
            match shared.catalog.load().discovery.serve(path, &accepted, &shared.delegated()) {
                Some(response) => Ok(response),
                None if path.starts_with("/apis/") => {
                    Ok(respond::text(StatusCode::NOT_FOUND, "404 page not found\n"))
                }
                None => Err(Status::resource_not_found()),
            }
        }
    }
}

fn index(shared: &Shared) -> Response<Body> {
    let catalog = shared.catalog.load();
    let mut paths: Vec<&str> = catalog.discovery.paths().chain(FIXED).collect();
    paths.sort_unstable();
    respond::json_bytes(StatusCode::OK, crate::codec::to_bytes(&json!({"paths": paths})))
}

fn version() -> Response<Body> {
    let (major, minor) = ("1", "36");
    let body = json!({
        "major": major, "minor": minor,
        "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": "35",
        "gitVersion": format!("{KUBERNETES_VERSION}+coracle.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    });
    respond::json_bytes(StatusCode::OK, crate::codec::to_bytes(&body))
}

/// 500 where a check fails, as in Kubernetes, and which one. `?verbose` lists them all, `?exclude=NAME` passes one over.
async fn health(shared: &Shared, request: &http::request::Parts) -> Result<Response<Body>, Status> {
    let path = request.uri.path().trim_start_matches('/');
    let (name, only) = path.split_once('/').unwrap_or((path, ""));
    let query = Query::parse(request.uri.query());
    let mut checks = vec![("ping", true)];
    if name != "livez" {
        checks.push(("store", shared.objects.store().linearizable().boxed().await.is_ok()));
        checks.push(("shutdown", name != "readyz" || !shared.shutdown.is_cancelled()));
    }
    if !only.is_empty() {
        checks.retain(|(check, _)| *check == only);
    }
    if checks.is_empty() {
        return Err(Status::resource_not_found());
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let is_excluded = |check: &str| excluded.contains(&check);
    let well = checks.iter().all(|(check, ok)| *ok || is_excluded(check));
    let code = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if well && query.get("verbose").is_none() {
        return Ok(respond::text(code, "ok"));
    }
    let line = |(check, ok): &(&str, bool)| match ok {
        _ if is_excluded(check) => format!("[+]{check} excluded: ok\n"),
        true => format!("[+]{check} ok\n"),
        false => format!("[-]{check} failed: reason withheld\n"),
    };
    let mut lines: String = checks.iter().map(line).collect();
    let unknown = excluded.iter().filter(|name| !checks.iter().any(|(check, _)| check == *name));
    let unknown: Vec<String> = unknown.map(|name| format!("{name:?}")).collect();
    if !unknown.is_empty() {
        let names = unknown.join(", ");
        lines.push_str(&format!("warn: some health checks cannot be excluded: no matches for {names}\n"));
    }
    Ok(respond::text(code, format!("{lines}{name} check {}\n", if well { "passed" } else { "failed" })))
}
