//! An API server of one kind in the process of the test. It believes who shows it the front proxy's certificate.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

pub const GROUP: &str = "flowers.example.com";

/// A server that runs until it is dropped.
pub struct Flowers {
    pub address: SocketAddr,
    /// What signed its certificate: itself.
    pub bundle: String,
    ends: Arc<AtomicBool>,
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

impl Flowers {
    /// Serves at a free port of `ip` as `flowers.default.svc`; callers must show a certificate of `front_ca`.
    pub fn start(ip: IpAddr, front_ca: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let cert = CertificateParams::new(vec!["flowers.default.svc".to_owned()])?.self_signed(&key)?;
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(front_ca.as_bytes()) {
            roots.add(der?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        let (config, ends) = (Arc::new(config), Arc::new(AtomicBool::new(false)));
        let listener = TcpListener::bind((ip, 0))?;
        let address = listener.local_addr()?;
        let stop = ends.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (config, stop) = (config.clone(), stop.clone());
                std::thread::spawn(move || drop(serve(stream, config, &stop)));
            }
        });
        Ok(Self { address, bundle: cert.pem(), ends })
    }
}

impl Drop for Flowers {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        // The listener is woken so that it sees it.
        drop(TcpStream::connect(self.address));
    }
}

/// One connection, call by call.
fn serve(tcp: TcpStream, config: Arc<ServerConfig>, stop: &AtomicBool) -> Result<()> {
    tcp.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, tcp));
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 || stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let of = |name: &str| -> Vec<&str> {
            let named = head.iter().filter_map(|l| l.split_once(": "));
            named.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v).collect()
        };
        let path = head.first().and_then(|l| l.split(' ').nth(1)).context("a request line")?;
        let path = path.split('?').next().unwrap_or(path);
        if of("upgrade") == ["echo"] {
            return echo(stream.into_inner());
        }
        let caller = json!({
            "user": of("x-remote-user").join(","), "groups": of("x-remote-group").join(","),
            "tokens": of("authorization").join(","),
        });
        let (code, body) = answer(path, &caller);
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(answer.as_bytes())?;
        stream.get_mut().flush()?;
    }
}

/// Says back what is said, once.
fn echo(mut stream: Stream) -> Result<()> {
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
    stream.flush()?;
    let mut heard = [0; 16];
    let n = stream.read(&mut heard)?;
    stream.write_all(&heard[..n])?;
    stream.flush()?;
    Ok(())
}

fn rose(caller: &Value) -> Value {
    json!({
        "apiVersion": "flowers.example.com/v1", "kind": "Rose",
        "metadata": {"name": "red", "namespace": "default", "annotations": caller},
    })
}

fn answer(path: &str, caller: &Value) -> (&'static str, Value) {
    let base = format!("/apis/{GROUP}/v1");
    let below = path.strip_prefix(&base);
    match (path, below) {
        (_, Some("")) => (
            "200 OK",
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/v1"), "resources": [
                {"name": "roses", "singularName": "rose", "namespaced": true, "kind": "Rose",
                    "verbs": ["get", "list"], "shortNames": ["ro"]},
            ]}),
        ),
        (_, Some("/namespaces/default/roses")) => (
            "200 OK",
            json!({"apiVersion": "flowers.example.com/v1", "kind": "RoseList", "metadata": {}, "items": [rose(caller)]}),
        ),
        (_, Some("/namespaces/default/roses/red")) => ("200 OK", rose(caller)),
        ("/openapi/v3/apis/flowers.example.com/v1", _) => ("200 OK", document()),
        ("/openapi/v2", _) => ("200 OK", document_v2()),
        _ => (
            "404 Not Found",
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
                "message": "the server could not find the requested resource"}),
        ),
    }
}

fn document() -> Value {
    let gvk = json!({"group": GROUP, "version": "v1", "kind": "Rose"});
    json!({
        "openapi": "3.0.0", "info": {"title": "flowers", "version": "v1"},
        "paths": {"/apis/flowers.example.com/v1/namespaces/{namespace}/roses/{name}": {"get": {
            "operationId": "readRose", "x-kubernetes-action": "get", "x-kubernetes-group-version-kind": gvk,
            "responses": {"200": {"description": "OK"}},
        }}},
        "components": {"schemas": {"com.example.flowers.v1.Rose": {
            "type": "object", "description": "A rose is a rose.", "x-kubernetes-group-version-kind": [gvk],
            "properties": {"thorns": {"type": "integer", "description": "How many."}},
        }}},
    })
}

/// Its own idea of metadata has a name that Kubernetes' has too.
fn document_v2() -> Value {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let gvk = json!({"group": GROUP, "version": "v1", "kind": "Rose"});
    json!({
        "swagger": "2.0", "info": {"title": "flowers", "version": "v1"},
        "paths": {
            "/apis/flowers.example.com/v1/namespaces/{namespace}/roses/{name}": {"get": {
                "operationId": "readRose", "x-kubernetes-action": "get", "x-kubernetes-group-version-kind": gvk,
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/com.example.flowers.v1.Rose"}}},
            }},
            "/version/": {"get": {"operationId": "foreignVersion", "responses": {"200": {"description": "OK"}}}},
        },
        "definitions": {
            "com.example.flowers.v1.Rose": {
                "type": "object", "description": "A rose is a rose.", "x-kubernetes-group-version-kind": [gvk],
                "properties": {
                    "metadata": {"$ref": format!("#/definitions/{META}")},
                    "thorns": {"type": "integer", "description": "How many."},
                },
            },
            META: {"type": "object", "description": "Of flowers."},
            "com.example.flowers.v1.Weed": {"type": "object"},
        },
    })
}
