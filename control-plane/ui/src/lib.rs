//! The web page at `/ui`: static files that talk to the Kubernetes API of the server they came from, as whoever signs in.
//!
//! Nothing here reads the cluster: what a page shows is what its user may see.
#![forbid(unsafe_code)]

use axum::Router;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};

/// Where the page is served.
pub const PATH: &str = "/ui";

/// Only files and calls of the server itself; nothing inline, no frames around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

/// Name, type and content of each file.
const FILES: [(&str, &str, &str); 7] = [
    ("", "text/html; charset=utf-8", include_str!("../assets/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("../assets/style.css")),
    ("app.js", "text/javascript; charset=utf-8", include_str!("../assets/app.js")),
    ("api.js", "text/javascript; charset=utf-8", include_str!("../assets/api.js")),
    ("describe.js", "text/javascript; charset=utf-8", include_str!("../assets/describe.js")),
    ("view.js", "text/javascript; charset=utf-8", include_str!("../assets/view.js")),
    ("icon.svg", "image/svg+xml", include_str!("../assets/icon.svg")),
];

/// The files below [`PATH`].
pub fn router() -> Router {
    let mut router = Router::new().route(PATH, get(async || Redirect::permanent("/ui/")));
    for (name, kind, content) in FILES {
        router = router.route(&format!("{PATH}/{name}"), get(async move || file(kind, content)));
    }
    router
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn get(path: &str) -> (http::StatusCode, String) {
        let request = http::Request::get(path).body(axum::body::Body::empty()).expect("a request");
        let response = router().oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn every_file_that_the_page_names_is_served() {
        let (status, page) = get("/ui/").await;
        assert_eq!(status, 200);
        let named: Vec<_> = page
            .split('"')
            .filter(|word| word.ends_with(".js") || word.ends_with(".css") || word.ends_with(".svg"))
            .collect();
        assert!(named.len() >= 3, "{named:?}");
        for name in named {
            assert_eq!(get(&format!("/ui/{name}")).await.0, 200, "{name}");
        }
        assert_eq!(get("/ui").await.0, 308);
        assert_eq!(get("/ui/other").await.0, 404);
    }
}
