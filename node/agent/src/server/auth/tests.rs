use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

#[test]
fn paths_are_subresources_of_the_node() {
    for (path, expected) in [
        ("/metrics", "metrics"),
        ("/metrics/cadvisor", "metrics"),
        ("/metricsx", "proxy"),
        ("/stats/summary", "stats"),
        ("/logs/syslog", "log"),
        ("/pods", "pods proxy"),
        ("/healthz", "healthz proxy"),
        ("/configz", "configz proxy"),
        ("/exec/ns/p/c", "proxy"),
        ("/containerLogs/ns/p/c", "proxy"),
        ("/checkpoint/ns/p/c", "checkpoint"),
    ] {
        assert_eq!(subresources(path).join(" "), expected, "{path}");
    }
    assert_eq!((verb(&Method::GET), verb(&Method::POST), verb(&Method::HEAD)), ("get", "create", ""));
}

#[test]
fn answers_hold_for_their_time_and_are_bounded() {
    let (all, now) = (Remembered(Mutex::default()), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    all.put(0, 'a', after(2), now);
    assert_eq!((all.get(&0, after(1)), all.get(&0, after(2)), all.get(&1, now)), (Some('a'), None, None));
    for key in 1..=3 * MAX_REMEMBERED {
        all.put(key, 'b', after(9), after(3));
    }
    assert!(all.0.lock().len() <= MAX_REMEMBERED);
    assert_eq!(all.get(&(3 * MAX_REMEMBERED), after(3)), Some('b'));
}

/// An API server that knows one token, whose owner may read metrics; and what it was asked.
fn server() -> (Auth, Arc<Mutex<Vec<Value>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let all = asked.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let all = all.clone();
        async move {
            let body = request.into_body().collect_bytes().await?;
            let mut review: Value = serde_json::from_slice(&body)?;
            all.lock().push(review["spec"].clone());
            let spec = &review["spec"];
            let status = if let Some(token) = spec["token"].as_str() {
                json!({"authenticated": token == "good", "user": {"username": "prometheus", "groups": ["g"]}})
            } else {
                let of = &spec["resourceAttributes"];
                let mine = spec["user"] == "prometheus" && of["name"] == "node-1" && of["verb"] == "get";
                json!({"allowed": mine && matches!(of["subresource"].as_str(), Some("metrics" | "healthz"))})
            };
            review["status"] = status;
            let answer = kube::client::Body::from(serde_json::to_vec(&review)?);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(http::Response::new(answer))
        }
    });
    (Auth::new(kube::Client::new(service, "default"), "node-1".into()), asked)
}

async fn ask(auth: &Auth, certified: Option<&Certified>, path: &str, authorization: &str) -> (u16, String) {
    let mut headers = HeaderMap::new();
    if !authorization.is_empty() {
        headers.insert(AUTHORIZATION, authorization.parse().expect("a value"));
    }
    match auth.check(certified, &Method::GET, path, &headers).await {
        Ok(()) => (200, String::new()),
        Err(answer) => {
            let status = answer.status().as_u16();
            let body = axum::body::to_bytes(answer.into_body(), 4096).await.expect("a body");
            (status, String::from_utf8_lossy(&body).into_owned())
        }
    }
}

#[tokio::test]
async fn tokens_are_reviewed_and_rights_are_asked_for() {
    let (auth, asked) = server();
    for stranger in ["", "Basic Z29vZA==", "Bearer ", "Bearer bad"] {
        let unauthorized = (401, "Unauthorized\n".to_owned());
        assert_eq!(ask(&auth, None, "/metrics", stranger).await, unauthorized, "{stranger}");
    }
    asked.lock().clear();
    for _ in 0..3 {
        assert_eq!(ask(&auth, None, "/metrics/cadvisor", "Bearer good").await.0, 200);
        assert_eq!(ask(&auth, None, "/metrics", "Bearer bad").await.0, 401);
    }
    assert_eq!(asked.lock().len(), 2, "a token and a right, once each: {:?}", asked.lock());
    assert_eq!(ask(&auth, None, "/healthz", "bearer good").await.0, 200);
    let words = "Forbidden (user=prometheus, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
    assert_eq!(ask(&auth, None, "/pods", "Bearer good").await, (403, words.to_owned()));
}

#[tokio::test]
async fn certificates_say_who_calls() {
    let (auth, asked) = server();
    let certified = |name: &str, trusted| Certified {
        user: UserInfo { username: Some(name.to_owned()), ..Default::default() },
        trusted,
    };
    assert_eq!(ask(&auth, Some(&certified("admin", true)), "/pods", "").await.0, 200);
    assert!(asked.lock().is_empty(), "the API server need not be there");
    assert_eq!(ask(&auth, Some(&certified("system:node:other", false)), "/pods", "Bearer good").await.0, 403);
    assert_eq!(ask(&auth, Some(&certified("prometheus", false)), "/metrics", "").await.0, 200);
}
