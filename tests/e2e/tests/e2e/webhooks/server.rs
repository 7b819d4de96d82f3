//! A webhook of the test's own: HTTPS, one thread a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

type Answer = dyn Fn(&str, &Value) -> Value + Send + Sync;

/// A webhook that answers by a function of the path and the review's `request`.
pub struct Hook {
    pub address: SocketAddr,
    /// For `caBundle`.
    pub bundle: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    connections: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
}

impl Hook {
    /// Starts one on an address; its certificate is for that address and for these names.
    pub fn start(
        ip: IpAddr,
        names: &[&str],
        answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
    ) -> Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        params.subject_alt_names.push(SanType::IpAddress(ip));
        let cert = params.self_signed(&key)?;
        let bundle = base64::engine::general_purpose::STANDARD.encode(cert.pem());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)?;
        let (config, listener) = (Arc::new(config), TcpListener::bind((ip, 0))?);
        let hook = Self {
            address: listener.local_addr()?,
            bundle,
            seen: Arc::default(),
            connections: Arc::default(),
            ends: Arc::default(),
        };
        let (seen, connections, ends) = (hook.seen.clone(), hook.connections.clone(), hook.ends.clone());
        let answer: Arc<Answer> = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (config, seen, answer) = (config.clone(), seen.clone(), answer.clone());
                std::thread::spawn(move || drop(serve(stream, config, &seen, answer.as_ref())));
            }
        });
        Ok(hook)
    }

    /// The requests that it was sent so far, by path.
    pub fn seen(&self, path: &str) -> Vec<Value> {
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.iter().filter(|(at, _)| at == path).map(|(_, request)| request.clone()).collect()
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// `clientConfig` by URL.
    pub fn url(&self, path: &str) -> Value {
        json!({"url": format!("https://{}{path}", self.address), "caBundle": self.bundle})
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    seen: &Mutex<Vec<(String, Value)>>,
    answer: &Answer,
) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    let tls = rustls::StreamOwned::new(rustls::ServerConnection::new(config)?, stream);
    let mut reader = BufReader::new(tls);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).context("path")?.split('?').next().unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(given) = header.strip_prefix("content-length:") {
                length = given.trim().parse::<usize>()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let review: Value = serde_json::from_slice(&body)?;
        let request = review["request"].clone();
        let said = answer(&path, &request);
        let seen_now = || seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen_now().push((path, request.clone()));
        let mut response = json!({"uid": request["uid"]});
        for (key, value) in said.as_object().into_iter().flatten() {
            response[key] = value.clone();
        }
        let review =
            json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response})
                .to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            review.len()
        );
        reader.get_mut().write_all((head + &review).as_bytes())?;
        reader.get_mut().flush()?;
    }
}
