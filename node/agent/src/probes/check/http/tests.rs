use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::probes::check::{Found, judge};

#[test]
fn paths_of_manifests_are_made_those_of_requests() {
    for (path, asked) in [
        ("", "/"),
        ("/", "/"),
        ("healthz", "/healthz"),
        ("/healthz?full=1&x=%20", "/healthz?full=1&x=%20"),
        ("?full", "/?full"),
        ("/a b/ü", "/a%20b/%C3%BC"),
        ("/a%2Fb", "/a%2Fb"),
        ("/100%", "/100%25"),
        ("/100%?x", "/100%25%3Fx"),
        ("/x#part", "/x"),
        ("/x?a b", "/x?a%20b"),
        ("/q'(v1)'", "/q'(v1)'"),
    ] {
        assert_eq!(request_path(path), asked, "{path}");
    }
}

#[test]
fn locations_lead_on() {
    let here = Url { secure: false, host: "10.0.0.1".into(), port: 8080, path: "/a/b?c".into() };
    for (location, there) in [
        ("/x", "http://10.0.0.1:8080/x"),
        ("x", "http://10.0.0.1:8080/a/x"),
        ("../x?y", "http://10.0.0.1:8080/x?y"),
        ("?d", "http://10.0.0.1:8080/a/b?d"),
        ("https://10.0.0.1/x#y", "https://10.0.0.1:443/x"),
        ("//other", "http://other:80/"),
        ("http://[::1]:8?q", "http://[::1]:8/?q"),
    ] {
        assert_eq!(here.follow(location).map(|url| url.to_string()).as_deref(), Ok(there), "{location}");
    }
    assert!(here.follow("ftp://10.0.0.1/x").is_err_and(|e| e.contains("unsupported protocol scheme")));
}

/// Answers each connection with what the path asks for, and remembers the requests.
async fn server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let all = seen.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                request.push(byte);
                if request.first() == Some(&0x16) {
                    break;
                }
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let (status, location) = match path.as_str() {
                "/there" => ("302 Found", "/fine".to_owned()),
                "/round" => ("307 Temporary Redirect", "/round".to_owned()),
                "/away" => ("301 Moved Permanently", "http://192.0.2.1/".to_owned()),
                "/nowhere" => ("302 Found", String::new()),
                "/bad" => ("500 Internal Server Error", String::new()),
                _ => ("200 OK", String::new()),
            };
            all.lock().push(request);
            // Less comes than is said.
            let length = if matches!(path.as_str(), "/torn" | "/slow") { 50 } else { 5 };
            let answer =
                format!("HTTP/1.1 {status}\r\nLocation: {location}\r\nContent-Length: {length}\r\n\r\nhello");
            let said = if path == "/silent" { "" } else { &answer };
            let _ = stream.write_all(said.as_bytes()).await;
            if matches!(path.as_str(), "/slow" | "/silent") {
                kept.push(stream);
            }
        }
    });
    (port, seen)
}

fn action(port: u16, more: Value) -> HTTPGetAction {
    let mut all = json!({"port": port, "host": "127.0.0.1"});
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
    serde_json::from_value(all).expect("an action")
}

async fn look(action: &HTTPGetAction) -> Result<Answer, Failure> {
    let spec = Default::default();
    let runtime = crate::runtime::Runtime::new("unix:///nowhere").expect("a client");
    let target = Target { spec: &spec, id: "", ip: "192.0.2.9", runtime: &runtime };
    get(action, &target, "probe").await
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host() {
    let (port, seen) = server().await;
    let judged = async |path: &str| {
        let answer = look(&action(port, json!({"path": path}))).await?;
        judge(answer.status, &answer.beginning().await?)
    };
    assert_eq!(judged("there").await, Ok(Found::Fine));
    let warning = Found::Warning("Probe terminated redirects, Response body: hello".to_owned());
    assert_eq!(judged("/away").await.as_ref(), Ok(&warning));
    assert_eq!(judged("/nowhere").await.as_ref(), Ok(&warning));
    assert_eq!(judged("/bad").await, Err("HTTP probe failed with statuscode: 500".to_owned()));
    let round = judged("/round").await;
    assert_eq!(round, Err(format!("Get \"http://127.0.0.1:{port}/round\": stopped after 10 redirects")));
    assert_eq!(seen.lock().iter().filter(|request| request.starts_with("GET /round ")).count(), 10);
}

/// What a probe finds, and how often it was asked.
async fn found(path: &str) -> (Result<Found, String>, usize) {
    let (port, seen) = server().await;
    let probe = json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": path}});
    let probe = serde_json::from_value(probe).expect("a probe");
    let (spec, runtime) =
        (Default::default(), crate::runtime::Runtime::new("unix:///nowhere").expect("a client"));
    let target = Target { spec: &spec, id: "", ip: "192.0.2.9", runtime: &runtime };
    let limit = std::time::Duration::from_millis(500);
    let found = crate::probes::check::check(&probe, &target, limit).await;
    (found, seen.lock().len())
}

#[tokio::test]
async fn an_answer_that_breaks_off_or_stalls_counts_neither_way() {
    for path in ["/torn", "/slow"] {
        let (found, asked) = found(path).await;
        assert!(matches!(&found, Ok(Found::Broken(_))), "{path}: {found:?}");
        assert_eq!(asked, 3, "{path} is asked again");
    }
    let (silent, asked) = found("/silent").await;
    assert!(silent.as_ref().is_err_and(|why| why.contains("no answer within 500ms")), "{silent:?}");
    assert_eq!(asked, 1);
    // A hook is done when there is an answer.
    let (port, _) = server().await;
    let answer = look(&action(port, json!({"path": "/slow"}))).await;
    assert_eq!(answer.map(|a| a.status), Ok(200));
}

#[tokio::test]
async fn requests_are_those_of_the_kubelet() {
    let (port, seen) = server().await;
    look(&action(port, json!({}))).await.expect("an answer");
    let headers = json!([{"name": "Host", "value": "a.example"}, {"name": "User-Agent", "value": "mine"},
        {"name": "Accept", "value": ""}]);
    look(&action(port, json!({"httpHeaders": headers, "path": "there"}))).await.expect("an answer");
    let seen: Vec<String> = seen.lock().iter().map(|request| request.to_lowercase()).collect();
    let [plain, own, next] = seen.as_slice() else { panic!("{seen:?}") };
    for line in [
        &format!("host: 127.0.0.1:{port}"),
        "user-agent: kube-probe/1.36",
        "accept: */*",
        "connection: close",
    ] {
        assert!(plain.contains(&format!("\r\n{line}\r\n")), "{line} in {plain}");
    }
    for request in [own, next] {
        assert!(request.contains("\r\nhost: a.example\r\n"), "{request}");
        assert!(request.contains("\r\nuser-agent: mine\r\n") && !request.contains("kube-probe"), "{request}");
        assert!(!request.contains("accept"), "{request}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart() {
    let (port, _) = server().await;
    let words = format!("Get \"https://127.0.0.1:{port}/\": http: server gave HTTP response to HTTPS client");
    let answer = look(&action(port, json!({"scheme": "HTTPS"}))).await;
    assert_eq!(answer.map(|a| a.status), Err(Failure::Plain(words)));
}
