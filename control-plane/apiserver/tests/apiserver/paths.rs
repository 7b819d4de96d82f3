//! Discovery, health, version, metrics, and who may call.

use axum::body::Body;
use coracle_apiserver::UserInfo;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::fixture::*;

#[tokio::test]
async fn discovery_derives_from_resources() {
    let s = server();
    assert_eq!(get(&s, "/api").await.at("/versions"), &json!(["v1"]));
    assert_eq!(get(&s, "/apis").await.at("/groups/0/preferredVersion/groupVersion"), "apps/v1");
    let apps = get(&s, "/apis/apps/v1").await;
    let names: Vec<&str> =
        apps.at("/resources").as_array().into_iter().flatten().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["deployments", "deployments/scale", "deployments/status"]);
    assert_eq!(apps.at("/resources/1/group"), "autoscaling");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let aggregated = get_as(&s, "/apis", accept).await;
    assert_eq!(aggregated.at("/items/0/versions/0/resources/0/resource"), "deployments");
    let content_type = aggregated.headers.get("content-type").and_then(|v| v.to_str().ok());
    assert_eq!(content_type, Some("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"));
    assert_eq!(get(&s, "/apis/nothing.example.com/v1/things").await.code, 404);
}

#[tokio::test]
async fn health_version_metrics_and_openapi() {
    let s = server();
    assert_eq!(get(&s, "/readyz").await.body, "ok");
    for (path, words) in [
        ("/livez?verbose", "[+]ping ok\nlivez check passed\n"),
        ("/readyz/store?verbose", "[+]store ok\nreadyz check passed\n"),
        (
            "/readyz?verbose&exclude=ping&exclude=bogus",
            "[+]ping excluded: ok\n[+]store ok\n[+]shutdown ok\nwarn: some health checks cannot be excluded: no matches for \"bogus\"\nreadyz check passed\n",
        ),
    ] {
        assert_eq!(get(&s, path).await.body, words, "{path}");
    }
    assert_eq!(get(&s, "/livez/bogus").await.code, 404);
    for (path, code) in [("/version", 200), (CONFIG_MAPS, 405), ("/apis/apps/v1", 200)] {
        use http_body_util::BodyExt;
        let answer = send(&s, request("HEAD", path, "", Body::empty())).await;
        assert_eq!(answer.status(), code, "{path}");
        assert!(answer.headers().contains_key("content-length"), "{path}");
        let body = answer.into_body().collect().await.expect("body").to_bytes();
        assert!(body.is_empty(), "{path}: {body:?}");
    }
    assert_eq!(get(&s, "/version").await.at("/minor"), "36");
    call(&s, "POST", CONFIG_MAPS, json!({"metadata": {"name": "a"}})).await;
    let metrics = get(&s, "/metrics").await;
    let text = metrics.body.as_str().unwrap_or("");
    for line in [
        "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 1",
        "apiserver_storage_objects{resource=\"configmaps\"} 1",
        "apiserver_storage_objects{resource=\"deployments.apps\"} 0",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"catch-all\"} 600",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let index = get(&s, "/openapi/v3").await;
    let url = index.at("/paths/api~1v1/serverRelativeURL").as_str().unwrap_or("").to_owned();
    assert!(url.starts_with("/openapi/v3/api/v1"), "{}", index.body);
    let document = get(&s, &url).await;
    assert!(
        document.at("/paths").get("/api/v1/namespaces/{namespace}/configmaps").is_some(),
        "{}",
        document.code
    );
    let protobuf =
        get_as(&s, "/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf").await;
    let content_type = protobuf.headers.get("content-type").and_then(|v| v.to_str().ok());
    assert_eq!(content_type, Some("application/com.github.proto-openapi.spec.v2.v1.0+protobuf"));
}

async fn code_as(s: &coracle_apiserver::ApiServer, user: UserInfo, path: &str) -> (u16, String) {
    let response = s
        .service_as(user)
        .oneshot(request("GET", path, "application/json", Body::empty()))
        .await
        .expect("infallible");
    let answer = read(response).await;
    (answer.code, answer.message().to_owned())
}

#[tokio::test]
async fn only_those_who_may() {
    let s = server();
    let jane = || UserInfo::new("jane", &[]);
    let (code, words) = code_as(&s, jane(), CONFIG_MAPS).await;
    assert_eq!(
        (code, words.as_str()),
        (
            403,
            "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"n\""
        )
    );
    let (_, words) = code_as(&s, jane(), "/api/v1/namespaces/n/pods/x/log").await;
    assert_eq!(
        words,
        "pods \"x\" is forbidden: User \"jane\" cannot get resource \"pods/log\" in API group \"\" in the namespace \"n\""
    );
    let (_, words) = code_as(&s, jane(), "/metrics").await;
    assert_eq!(words, "forbidden: User \"jane\" cannot get path \"/metrics\"");
    assert_eq!(code_as(&s, UserInfo::anonymous(), "/healthz").await.0, 200);
    assert_eq!(code_as(&s, UserInfo::anonymous(), "/api").await.0, 403);
    assert_eq!(code_as(&s, jane(), "/api").await.0, 200);
    for user in
        [UserInfo::new("system:kube-scheduler", &[]), UserInfo::new("system:node:n1", &["system:nodes"])]
    {
        assert_eq!(code_as(&s, user, CONFIG_MAPS).await.0, 200);
    }
    assert_eq!(code_as(&s, UserInfo::new("system:node:n1", &[]), CONFIG_MAPS).await.0, 403);
    let mut as_jane = request("GET", CONFIG_MAPS, "application/json", Body::empty());
    as_jane.headers_mut().insert("impersonate-user", "jane".parse().expect("header"));
    as_jane.headers_mut().insert("impersonate-extra-scopes", "view".parse().expect("header"));
    assert_eq!(read(send(&s, as_jane).await).await.code, 403);
}

#[tokio::test]
async fn mounts_get_the_caller() {
    let store = coracle_store::Store::in_memory(&coracle_store::Options::new("unused"));
    let router = axum::Router::new().route(
        "/v2/{*rest}",
        axum::routing::get(|axum::Extension(user): axum::Extension<UserInfo>| async move { user.name }),
    );
    let s = coracle_apiserver::ApiServer::builder(std::sync::Arc::new(store))
        .mount_with_passwords("/v2", router)
        .build();
    assert_eq!(get(&s, "/v2/x").await.body, Value::from("admin"));
    let response = s
        .service_as(UserInfo::anonymous())
        .oneshot(request("GET", "/v2/x", "text/plain", Body::empty()))
        .await
        .expect("infallible");
    assert_eq!(response.status(), 401);
    assert!(response.headers().contains_key("www-authenticate"));
}
