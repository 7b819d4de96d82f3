//! Load and abuse over real connections: clients that flood, that are slow, that send too much and that do not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coracle_apiserver::ca::ClusterCa;
use coracle_apiserver::flow::{
    Distinguisher, FlowConfig, FlowRule, FlowSchema, FlowSource, Limits, PriorityLevel, ResourceRule, Subject,
};
use coracle_apiserver::{ApiServer, Objects, UserInfo};
use coracle_store::{Options, Store};
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fixture::*;

/// One seat for a user, who has to go when it is taken; administrators are exempt.
struct OneSeat;

#[async_trait]
impl FlowSource for OneSeat {
    fn prefixes(&self) -> Vec<String> {
        vec!["/registry/none/".into()]
    }

    async fn load(&self, _: &Objects) -> FlowConfig {
        let all = || vec!["*".to_owned()];
        let resources = ResourceRule {
            verbs: all(),
            groups: all(),
            resources: all(),
            cluster_scope: true,
            namespaces: all(),
        };
        let rule = FlowRule {
            subjects: vec![Subject::User("flooder".into())],
            resources: vec![resources],
            paths: vec![],
        };
        let limits = |shares, borrowing| Limits {
            shares,
            lendable_percent: 0,
            borrowing_percent: borrowing,
            queuing: None,
        };
        let level = |name: &str, limits| PriorityLevel {
            name: name.into(),
            uid: format!("uid-of-{name}"),
            limits: Some(limits),
        };
        FlowConfig {
            levels: vec![level("tight", limits(1, Some(0))), level("wide", limits(599, None))],
            schemas: vec![FlowSchema {
                name: "flooders".into(),
                uid: "uid-of-flooders".into(),
                level: "tight".into(),
                precedence: 10,
                distinguisher: Distinguisher::User,
                rules: vec![rule],
            }],
        }
    }
}

struct Running {
    server: ApiServer,
    address: SocketAddr,
    ca: ClusterCa,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

async fn start() -> Running {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().expect("dir");
    let ca = ClusterCa::open(dir.path()).expect("authority");
    let masters = |name: &str| UserInfo::new(name, &["system:masters"]);
    // The authorizer of the tests lets nodes do everything; they are not exempt.
    let node = UserInfo::new("system:node:a", &["system:nodes"]);
    let server = ApiServer::builder(Arc::new(Store::in_memory(&Options::new("unused"))))
        .resources(resources())
        .tokens([("admin".to_owned(), masters("admin")), ("node".to_owned(), node)])
        .token("flooder", UserInfo { name: "flooder".into(), ..UserInfo::new("", &["system:flooders"]) })
        .authorizer(Arc::new(Everyone))
        .flows(Arc::new(OneSeat))
        .stall_period(Duration::from_millis(300))
        .build();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let identity = ca.server("kube-apiserver", &["127.0.0.1".to_owned()]).expect("certificate");
    let tls = ca.server_config(&identity).expect("tls");
    let serving = server.clone();
    let task = tokio::spawn(async move { serving.serve(listener, tls).await });
    Running { server, address, ca, task, _dir: dir }
}

struct Everyone;

#[async_trait]
impl coracle_apiserver::Authorizer for Everyone {
    async fn authorize(
        &self,
        _: &coracle_apiserver::AuthorizationRequest<'_>,
    ) -> coracle_apiserver::Decision {
        coracle_apiserver::Decision::Allow
    }
}

impl Running {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let config = self.ca.client_config(None).expect("client");
        let stream = TcpStream::connect(self.address).await.expect("connect");
        let name = ServerName::try_from("127.0.0.1").expect("name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS")
    }

    async fn open(
        &self,
        token: &str,
        method: &str,
        path: &str,
        length: usize,
        sent: &str,
    ) -> TlsStream<TcpStream> {
        let mut stream = self.connect().await;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{sent}"
        );
        stream.write_all(head.as_bytes()).await.expect("write");
        stream
    }

    async fn get(&self, token: &str, path: &str) -> String {
        answer(self.open(token, "GET", path, 0, "").await).await
    }
}

/// The head of an answer and what comes with it.
async fn answer(mut stream: TlsStream<TcpStream>) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    let reading = async {
        while !all.windows(4).any(|w| w == b"\r\n\r\n") {
            match stream.read(&mut piece).await {
                Ok(n) if n > 0 => all.extend_from_slice(&piece[..n]),
                _ => break,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("an answer in time");
    String::from_utf8_lossy(&all).into_owned()
}

/// Waits until the lines of the server's metrics that begin so add up to so much.
async fn until_metric(server: &ApiServer, begins: &str, wanted: u64) {
    let reached = async {
        loop {
            let said = get(server, "/metrics").await.body;
            let lines = said.as_str().expect("text").lines().filter(|line| line.starts_with(begins));
            let sum: u64 = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
            if sum == wanted {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(20), reached).await;
    reached.unwrap_or_else(|_| panic!("{begins} does not become {wanted}"));
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_is_sent_away_and_others_are_not() {
    let s = start().await;
    let body = json!({"metadata": {"name": "slow"}}).to_string();
    // It holds its seat until its body is there.
    let mut slow = s.open("flooder", "POST", CONFIG_MAPS, body.len(), &body[..5]).await;
    until_metric(&s.server, "apiserver_flowcontrol_current_executing_requests{priority_level=\"tight\"}", 1)
        .await;
    let refused = s.get("flooder", CONFIG_MAPS).await;
    assert_eq!(status(&refused), "429", "{refused}");
    for line in [
        "retry-after: 1",
        "x-kubernetes-pf-flowschema-uid: uid-of-flooders",
        "x-kubernetes-pf-prioritylevel-uid: uid-of-tight",
        "Too many requests, please try again later.",
    ] {
        assert!(refused.contains(line), "{line}: {refused}");
    }
    let other = s.get("node", CONFIG_MAPS).await;
    assert_eq!(status(&other), "200", "{other}");
    assert!(other.contains("audit-id: "), "{other}");
    slow.write_all(&body.as_bytes()[5..]).await.expect("write");
    assert_eq!(status(&answer(slow).await), "201");
    assert_eq!(status(&s.get("flooder", CONFIG_MAPS).await), "200");
    let metrics = get(&s.server, "/metrics").await;
    let text = metrics.body.as_str().unwrap_or("");
    let line = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"flooders\",priority_level=\"tight\",reason=\"concurrency-limit\"}";
    assert!(text.contains(line), "{text}");
    // A watch takes a seat to begin and no longer.
    let watch = s.open("flooder", "GET", &format!("{CONFIG_MAPS}?watch=true"), 0, "").await;
    assert_eq!(status(&answer(watch).await), "200");
    assert_eq!(status(&s.get("flooder", CONFIG_MAPS).await), "200");
}

#[tokio::test]
async fn bodies_that_are_too_large_too_deep_or_too_slow() {
    let s = start().await;
    let large = s.open("admin", "POST", CONFIG_MAPS, 4 << 20, &"x".repeat(1 << 10)).await;
    let large = answer(large).await;
    assert_eq!(status(&large), "413", "{large}");
    assert!(large.contains("RequestEntityTooLarge"), "{large}");
    for (deep, kind) in [
        ("[".repeat(200_000), "application/json"),
        (format!("{{\"a\":{}", "{\"a\":".repeat(100_000)), "application/json"),
        (format!("a: {}", "[".repeat(100_000)), "application/yaml"),
    ] {
        let refused = read(send(&s.server, request("POST", CONFIG_MAPS, kind, deep)).await).await;
        assert_eq!(refused.code, 400, "{kind}: {}", refused.message());
    }
    let started = Instant::now();
    let slow = s.open("admin", "POST", &format!("{CONFIG_MAPS}?timeout=200ms"), 100, "{").await;
    let slow = answer(slow).await;
    assert_eq!(status(&slow), "504", "{slow}");
    assert!(slow.contains("request did not complete within the allotted timeout"), "{slow}");
    assert!(started.elapsed() < Duration::from_secs(10));
    let bad = s.get("admin", &format!("{CONFIG_MAPS}?timeout=soon")).await;
    assert_eq!(status(&bad), "400", "{bad}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_is_cut_off_and_others_do_not_notice() {
    let s = start().await;
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion=0");
    let mut idle = s.open("admin", "GET", &path, 0, "").await;
    let mut busy = s.open("admin", "GET", &path, 0, "").await;
    let filler = "x".repeat(200 << 10);
    let writer = {
        let server = s.server.clone();
        tokio::spawn(async move {
            for i in 0..150 {
                let obj = json!({"metadata": {"name": format!("c{i}")}, "data": {"filler": filler}});
                assert_eq!(call(&server, "POST", CONFIG_MAPS, obj).await.code, 201);
            }
        })
    };
    let (mut seen, mut piece, mut rest) = (0, vec![0; 1 << 16], Vec::new());
    let reading = async {
        while seen < 150 {
            let n = busy.read(&mut piece).await.expect("read");
            assert!(n > 0, "the reader was cut off");
            // Names come before the filler.
            rest.extend_from_slice(&piece[..n]);
            seen += rest.windows(15).filter(|w| *w == b"{\"type\":\"ADDED\"").count();
            rest.drain(..rest.len().saturating_sub(14));
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("all events in time");
    writer.await.expect("writer");
    until_metric(&s.server, "apiserver_longrunning_requests", 1).await;
    // What lies in the buffers is still read; then the connection is at its end, long before the last event.
    let mut total = 0;
    let end = async {
        while let Ok(n) = idle.read(&mut piece).await {
            if n == 0 {
                break;
            }
            total += n;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), end).await.expect("the idle watcher is cut off");
    assert!(total < 150 * (200 << 10), "{total}");
}

#[tokio::test]
async fn a_server_that_stops_finishes_what_was_begun() {
    let s = start().await;
    let body = json!({"metadata": {"name": "late"}}).to_string();
    let mut late = s.open("admin", "POST", CONFIG_MAPS, body.len(), &body[..5]).await;
    let mut watch = s.open("admin", "GET", &format!("{CONFIG_MAPS}?watch=true"), 0, "").await;
    // Both are being worked on.
    let head = b"HTTP/1.1 200";
    let mut first = [0; 12];
    watch.read_exact(&mut first).await.expect("watch");
    assert_eq!(&first, head);
    until_metric(&s.server, "apiserver_current_inflight_requests{request_kind=\"mutating\"}", 1).await;
    s.server.shutdown_token().cancel();
    assert_eq!(get(&s.server, "/readyz").await.code, 500);
    assert_eq!(get(&s.server, "/livez").await.code, 200);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), watch.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the watch ends");
    late.write_all(&body.as_bytes()[5..]).await.expect("write");
    assert_eq!(status(&answer(late).await), "201");
    let stopped = tokio::time::timeout(Duration::from_secs(10), s.task).await.expect("it stops");
    assert!(stopped.expect("task").is_ok());
    assert_eq!(get(&s.server, &format!("{CONFIG_MAPS}/late")).await.code, 200);
}
