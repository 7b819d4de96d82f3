//! TLS with the cluster's own authority: client certificates, tokens, nobody.

use std::net::SocketAddr;
use std::sync::Arc;

use coracle_apiserver::ca::{ClusterCa, Identity, kubeconfig};
use coracle_apiserver::{ApiServer, UserInfo};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::net::TcpListener;

use crate::fixture::*;

async fn start(ca: &ClusterCa) -> (ApiServer, SocketAddr, tokio::task::JoinHandle<std::io::Result<()>>) {
    let s = server();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned(), "kubernetes.default.svc".to_owned()];
    let identity = ca.ensure_server("apiserver", "kube-apiserver", &names).expect("certificate");
    let tls = ca.server_config(&identity).expect("tls");
    let running = s.clone();
    let task = tokio::spawn(async move { running.serve(listener, tls).await });
    (s, address, task)
}

async fn client(address: SocketAddr, ca: &ClusterCa, identity: &Identity) -> Client {
    let text = kubeconfig(&format!("https://{address}"), ca.cert_pem(), identity, None);
    let config = Kubeconfig::from_yaml(&text).expect("kubeconfig");
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.expect("config");
    Client::try_from(config).expect("client")
}

#[tokio::test]
async fn certificates_are_identities() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().expect("dir");
    let ca = ClusterCa::open(dir.path()).expect("authority");
    let (s, address, task) = start(&ca).await;
    let admin = ca.client("admin", &["system:masters"]).expect("certificate");
    let api: Api<Namespace> = Api::all(client(address, &ca, &admin).await);
    assert!(api.list(&ListParams::default()).await.expect("list").items.is_empty());

    let jane = ca.client("jane", &["devs"]).expect("certificate");
    let api: Api<ConfigMap> = Api::all(client(address, &ca, &jane).await);
    let refused = api.list(&ListParams::default()).await;
    assert!(
        matches!(refused, Err(kube::Error::Api(e)) if e.code == 403 && e.message.contains("User \"jane\""))
    );

    let other = tempfile::tempdir().expect("dir");
    let stranger = ClusterCa::open(other.path())
        .expect("authority")
        .client("admin", &["system:masters"])
        .expect("certificate");
    let api: Api<ConfigMap> = Api::all(client(address, &ca, &stranger).await);
    assert!(api.list(&ListParams::default()).await.is_err());

    s.shutdown_token().cancel();
    assert!(task.await.expect("task").is_ok());
}

#[tokio::test]
async fn tokens_are_identities() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().expect("dir");
    let ca = ClusterCa::open(dir.path()).expect("authority");
    let (s, address, task) = start(&ca).await;
    let tls = ca.client_config(None).expect("tls");
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_all_versions()
        .build();
    let client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build(connector);
    let code = async |authorization: Option<&str>, path: &str| {
        let mut request = http::Request::get(format!("https://{address}{path}"));
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let request = request.body(axum::body::Body::empty()).expect("request");
        client.request(request).await.expect("answer").status().as_u16()
    };
    assert_eq!(code(Some("Bearer secret"), CONFIG_MAPS).await, 200);
    assert_eq!(code(Some("Basic dTpzZWNyZXQ="), CONFIG_MAPS).await, 200);
    assert_eq!(code(Some("Bearer weak"), CONFIG_MAPS).await, 403);
    assert_eq!(code(Some("Bearer wrong"), CONFIG_MAPS).await, 401);
    assert_eq!(code(None, CONFIG_MAPS).await, 403);
    assert_eq!(code(None, "/healthz").await, 200);
    s.shutdown_token().cancel();
    assert!(task.await.expect("task").is_ok());
}

#[test]
fn the_authority_is_reused() {
    let dir = tempfile::tempdir().expect("dir");
    let first = ClusterCa::open(dir.path()).expect("authority");
    let names = vec!["127.0.0.1".to_owned()];
    let cert = first.ensure_server("apiserver", "kube-apiserver", &names).expect("certificate");
    let again = ClusterCa::open(dir.path()).expect("authority");
    assert_eq!(first.cert_pem(), again.cert_pem());
    assert_eq!(
        again.ensure_server("apiserver", "kube-apiserver", &names).expect("certificate").cert_pem,
        cert.cert_pem
    );
    let more = vec!["127.0.0.1".to_owned(), "other.example".to_owned()];
    assert_ne!(
        again.ensure_server("apiserver", "kube-apiserver", &more).expect("certificate").cert_pem,
        cert.cert_pem
    );
    let _ = Arc::new(UserInfo::anonymous());
}

/// What many tasks of one client have under way is given up at once where it ends: the others on its connection go on.
#[tokio::test]
async fn requests_that_are_given_up_disturb_no_other() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().expect("dir");
    let ca = ClusterCa::open(dir.path()).expect("authority");
    let (s, address, task) = start(&ca).await;
    let mut tls =
        ca.client_config(Some(&ca.client("admin", &["system:masters"]).expect("certificate"))).expect("tls");
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await.expect("connect");
    let name = "localhost".try_into().expect("name");
    let stream =
        tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("handshake");
    let (sender, mut connection) = h2::client::handshake(stream).await.expect("handshake");
    let mut sender = sender.ready().await.expect("ready");
    let mut ask = || {
        let request = http::Request::get(format!("https://{address}/api/v1/configmaps")).body(());
        sender.send_request(request.expect("request"), true).expect("sent").0
    };
    let asked: Vec<_> = (0..90).map(|_| ask()).collect();
    // Nobody but the connection is polled: the server, in this thread too, finds all of it at once.
    assert!(futures::poll!(&mut connection).is_pending());
    drop(asked);
    assert!(futures::poll!(&mut connection).is_pending());
    let answer = ask();
    let answered = tokio::select! {
        answer = answer => answer.expect("an answer").status(),
        ended = &mut connection => panic!("the connection ended: {ended:?}"),
    };
    assert_eq!(answered, 200);
    s.shutdown_token().cancel();
    drop(connection);
    assert!(task.await.expect("task").is_ok());
}
