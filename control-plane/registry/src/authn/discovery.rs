//! How others check tokens of this cluster: `/.well-known/openid-configuration` and `/openid/v1/jwks` (OpenID Connect discovery).

use std::net::{IpAddr, SocketAddr};

use axum::Router;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::ISSUER;

/// Where the keys are.
pub const KEYS_PATH: &str = "/openid/v1/jwks";
/// Where it is told where the keys are.
pub const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";

/// Both paths, each with its router. `server` is where the API server listens.
pub fn mounts(keys: &Value, server: (IpAddr, u16)) -> [(&'static str, Router); 2] {
    let configuration = json!({
        "issuer": ISSUER,
        "jwks_uri": format!("https://{}{KEYS_PATH}", SocketAddr::from(server)),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    let page = |path: &'static str, media: &'static str, body: String| {
        (path, Router::new().route(path, get(move || async move { ([(CONTENT_TYPE, media)], body) })))
    };
    [
        page(KEYS_PATH, "application/jwk-set+json", keys.to_string()),
        page(CONFIGURATION_PATH, "application/json", configuration.to_string()),
    ]
}
