//! An OpenID Connect provider, and a webhook for tokens, in the process of the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// The token that the webhook knows.
pub const OPAQUE: &str = "opaque-token";
const BODY_MAX: usize = 1 << 20;

/// A provider that runs until the test ends.
pub struct Provider {
    pub url: String,
    /// Its certificate, which signed itself.
    pub ca: String,
    key: KeyPair,
}

impl Provider {
    /// Serves at a free port of `ip`.
    pub fn start(ip: IpAddr) -> Result<Self> {
        let serving = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(ip)];
        let cert = params.self_signed(&serving)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(serving.serialize_der())),
            )?;
        let listener = TcpListener::bind((ip, 0))?;
        let address = listener.local_addr()?;
        let key = KeyPair::generate()?;
        let (config, keys) = (Arc::new(config), keys(&key)?);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, keys) = (config.clone(), keys.clone());
                std::thread::spawn(move || drop(serve(stream, config, address, &keys)));
            }
        });
        Ok(Self { url: format!("https://{address}"), ca: cert.pem(), key })
    }

    /// A token with these claims beside issuer and times.
    pub fn token(&self, claims: Value, seconds: i64) -> Result<String> {
        sign(&self.key, &self.url, claims, seconds)
    }
}

/// The same under another key.
pub fn forged(provider: &Provider, claims: Value) -> Result<String> {
    sign(&KeyPair::generate()?, &provider.url, claims, 600)
}

fn sign(key: &KeyPair, issuer: &str, mut claims: Value, seconds: i64) -> Result<String> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    for (name, value) in [("iss", json!(issuer)), ("iat", json!(now)), ("exp", json!(now + seconds))] {
        claims[name] = value;
    }
    let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
    Ok(jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(key.serialized_der()))?)
}

fn keys(key: &KeyPair) -> Result<Value> {
    // An uncompressed point: 4, then both coordinates.
    let point = key.public_key_raw();
    let (x, y) = (point.get(1..33).context("x")?, point.get(33..65).context("y")?);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    Ok(
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "one", "x": x, "y": y}]}),
    )
}

fn serve(tcp: TcpStream, config: Arc<ServerConfig>, address: SocketAddr, keys: &Value) -> Result<()> {
    tcp.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, tcp));
    loop {
        let (mut first, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.parse::<usize>()?.min(BODY_MAX);
            }
            if first.is_empty() {
                first = line.to_owned();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let answer = match first.split(' ').nth(1).unwrap_or("") {
            "/.well-known/openid-configuration" => {
                json!({"issuer": format!("https://{address}"), "jwks_uri": format!("https://{address}/keys")})
            }
            "/keys" => keys.clone(),
            _ => review(&serde_json::from_slice(&body)?),
        };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        stream.get_mut().write_all((head + &answer).as_bytes())?;
        stream.get_mut().flush()?;
    }
}

fn review(asked: &Value) -> Value {
    let status = match asked["spec"]["token"] == OPAQUE {
        true => json!({"authenticated": true, "user": {"username": "hooked", "groups": ["hooks"]}}),
        false => json!({"authenticated": false}),
    };
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status})
}
