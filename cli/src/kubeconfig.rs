//! Which cluster a client command talks to.

use std::path::PathBuf;

use anyhow::{Context, Result};
use base64::Engine;
use clap::Args;
use coracle_apiserver::ca::Identity;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

/// The options that every client command has.
#[derive(Args, Clone)]
pub struct Cluster {
    /// The kubeconfig file; otherwise $KUBECONFIG or ~/.kube/config.
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace; otherwise the context's, or `default`.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
}

/// How to reach the built-in image registry.
pub struct RegistryAccess {
    /// `host:port`.
    pub authority: String,
    /// Certificates to trust, PEM.
    pub ca_pem: String,
    /// The password.
    pub token: String,
}

impl Cluster {
    fn read(&self) -> Result<Kubeconfig> {
        match &self.kubeconfig {
            Some(path) => {
                Kubeconfig::read_from(path).with_context(|| format!("read the kubeconfig {}", path.display()))
            }
            None => Kubeconfig::read().context("read the kubeconfig ($KUBECONFIG or ~/.kube/config)"),
        }
    }

    /// A client and its default namespace.
    pub async fn client(&self) -> Result<(kube::Client, String)> {
        let mut config =
            kube::Config::from_custom_kubeconfig(self.read()?, &KubeConfigOptions::default()).await?;
        if let Some(namespace) = &self.namespace {
            config.default_namespace.clone_from(namespace);
        }
        let namespace = config.default_namespace.clone();
        Ok((kube::Client::try_from(config)?, namespace))
    }

    /// The registry beside the API server of this kubeconfig; its password is the user's token.
    pub fn registry(&self) -> Result<RegistryAccess> {
        let document = serde_json::to_value(self.read()?)?;
        let text = |pointer: &str| document.pointer(pointer).and_then(|value| value.as_str());
        let server = text("/clusters/0/cluster/server").context("the kubeconfig names no server")?;
        let authority = server.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let encoded = text("/clusters/0/cluster/certificate-authority-data")
            .context("the kubeconfig has no certificate-authority-data")?;
        let ca_pem = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded)?)?;
        let token = text("/users/0/user/token")
            .context("the kubeconfig's user has no token, which the registry needs")?;
        Ok(RegistryAccess { authority, ca_pem, token: token.to_owned() })
    }
}

/// A kubeconfig with one cluster and one user, who has a client certificate and perhaps a token.
pub fn write(server: &str, ca_pem: &str, identity: &Identity, token: Option<&str>) -> Result<String> {
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let mut user = json!({
        "client-certificate-data": encode(&identity.cert_pem),
        "client-key-data": encode(&identity.key_pem),
    });
    if let Some(token) = token {
        user["token"] = json!(token);
    }
    // JSON is YAML; pretty, because people look into it.
    Ok(serde_json::to_string_pretty(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "coracle", "cluster": {
            "server": server, "certificate-authority-data": encode(ca_pem),
        }}],
        "users": [{"name": "coracle", "user": user}],
        "contexts": [{"name": "coracle", "context": {"cluster": "coracle", "user": "coracle"}}],
        "current-context": "coracle",
    }))?)
}

/// Writes a file that only its owner may read, so that it is whole or absent.
pub fn write_secret(path: &std::path::Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let staged = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&staged, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}
