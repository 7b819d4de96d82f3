//! Tokens of a registry's token service.

use super::*;

/// A registry that wants a token, and a token service that gives it for a refresh token.
async fn registry() -> (SocketAddr, Registry) {
    let inner = Registry::start().await;
    inner.push("app", "v1", b"component");
    inner.content.lock().unwrap().wanted = Some("Bearer access".to_owned());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let content = inner.content.clone();
    let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"registry\"");
    let challenged = move |mut answer: Response| {
        if answer.status() == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        }
        answer
    };
    let token = async |body: String| {
        let has = |pair: &str| body.split('&').any(|p| p == pair);
        let fine = has("grant_type=refresh_token")
            && has("refresh_token=s%2Bcret")
            && has("service=registry")
            && has("scope=repository%3Aapp%3Apull")
            && body.contains("client_id=");
        if fine {
            json!({"access_token": "access"}).to_string().into_response()
        } else {
            StatusCode::UNAUTHORIZED.into_response()
        }
    };
    let router = axum::Router::new()
        .route("/v2/{*path}", get(serve))
        .with_state(content)
        .layer(axum::middleware::map_response(move |answer: Response| {
            let challenged = challenged.clone();
            async move { challenged(answer) }
        }))
        .route("/token", axum::routing::post(token));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, inner)
}

#[tokio::test]
async fn an_identity_token_is_shown_to_the_token_service_alone() {
    let (address, inner) = registry().await;
    let dir = tempfile::tempdir().unwrap();
    let puller = Puller::new(Arc::new(Store::open(dir.path()).unwrap()), RegistryConfig::default());
    let name = format!("{address}/app:v1");
    let wrong = Credentials::Identity("other".to_owned());
    let refused = puller.pull(&name, Wanted::WasmFirst, &wrong).await.unwrap_err();
    assert!(matches!(refused, Error::Unauthorized { .. }), "{refused:?}");
    let record =
        puller.pull(&name, Wanted::WasmFirst, &Credentials::Identity("s+cret".to_owned())).await.unwrap();
    assert_eq!(record.layer, digest(b"component"));
    assert!(inner.content.lock().unwrap().queries.iter().all(|q| !q.contains("cret")));
}
