//! Registries with certificates of their own, as containerd's files tell of them.

use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tower::Service as _;

use super::*;

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: rcgen::Certificate,
}

fn authority() -> Authority {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    let certificate = params.self_signed(&key).unwrap();
    Authority { issuer: rcgen::Issuer::new(params, key), certificate }
}

impl Authority {
    fn issue(
        &self,
        name: &str,
        usage: rcgen::ExtendedKeyUsagePurpose,
    ) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages.push(usage);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// A registry over TLS with this authority's certificate; `mutual`: who asks has to show one of it too.
async fn start(authority: &Authority, mutual: bool) -> Registry {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (certificate, key) = authority.issue("127.0.0.1", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let builder = match mutual {
        true => ServerConfig::builder().with_client_cert_verifier(verifier),
        false => ServerConfig::builder().with_no_client_auth(),
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (content, router) = router();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (acceptor.clone(), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request| router.clone().call(request));
                let stream = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await;
            });
        }
    });
    Registry { content, address }
}

#[tokio::test]
async fn a_registry_has_certificates_of_its_own() {
    let authority = authority();
    let (plain, mutual) = (start(&authority, false).await, start(&authority, true).await);
    let (id, same) = (plain.push("app", "v1", b"component"), mutual.push("app", "v1", b"component"));
    mutual.content.lock().unwrap().wanted = Some("Basic dTpw".into());
    assert_eq!(id, same);
    let dir = tempfile::tempdir().unwrap();
    let folder = |registry: &Registry| {
        let folder = dir.path().join("certs.d").join(registry.address.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let config = RegistryConfig { host_dirs: vec![dir.path().join("certs.d")], ..RegistryConfig::default() };
    let serial = std::sync::atomic::AtomicUsize::new(0);
    let pull = async |registry: &Registry| {
        let serial = serial.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let store = Store::open(&dir.path().join(format!("store-{serial}"))).unwrap();
        let puller = Puller::new(Arc::new(store), config.clone());
        let given = Credentials::Basic { username: "u".into(), password: "p".into() };
        let name = format!("{}/app:v1", registry.address);
        match puller.pull(&name, Wanted::WasmFirst, &given).await {
            Ok(record) => record.id,
            Err(error) => error.to_string(),
        }
    };
    // Without a word it is asked over HTTP, and with HTTPS alone not believed.
    assert!(!pull(&plain).await.starts_with("sha256:"));
    std::fs::write(folder(&plain).join("hosts.toml"), format!("server = \"https://{}\"", plain.address))
        .unwrap();
    let said = pull(&plain).await;
    assert!(said.contains("certificate"), "{said}");
    std::fs::write(folder(&plain).join("hosts.toml"), "skip_verify = true").unwrap();
    assert_eq!(pull(&plain).await, id);
    std::fs::write(folder(&plain).join("ca.crt"), authority.certificate.pem()).unwrap();
    std::fs::write(folder(&plain).join("hosts.toml"), "ca = \"ca.crt\"").unwrap();
    assert_eq!(pull(&plain).await, id);
    std::fs::write(folder(&plain).join("hosts.toml"), "cacert = \"ca.crt\"").unwrap();
    let said = pull(&plain).await;
    assert!(said.contains("cacert") && said.contains("hosts.toml"), "{said}");

    // The other one wants to see who asks.
    std::fs::write(folder(&mutual).join("ca.crt"), authority.certificate.pem()).unwrap();
    let said = pull(&mutual).await;
    assert!(said.contains("no registry could be asked"), "{said}");
    let (certificate, key) = authority.issue("node-1", rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    std::fs::write(folder(&mutual).join("client.cert"), certificate.pem()).unwrap();
    std::fs::write(folder(&mutual).join("client.key"), key.serialize_pem()).unwrap();
    assert_eq!(pull(&mutual).await, id);
}
