//! Which cluster a client command talks to.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::data_dir::{create_private, make_private, rename_durably};

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
    /// Certificates to trust, DER.
    pub ca_der: Vec<Vec<u8>>,
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

    async fn config(&self) -> Result<kube::Config> {
        let options = KubeConfigOptions::default();
        kube::Config::from_custom_kubeconfig(self.read()?, &options).await.context("use the kubeconfig")
    }

    /// A client and its default namespace.
    pub async fn client(&self) -> Result<(kube::Client, String)> {
        let mut config = self.config().await?;
        if let Some(namespace) = &self.namespace {
            config.default_namespace.clone_from(namespace);
        }
        let namespace = config.default_namespace.clone();
        Ok((kube::Client::try_from(config)?, namespace))
    }

    /// What the server serves.
    ///
    /// # Errors
    /// When it does not answer, which names it.
    pub async fn discover(&self, client: &kube::Client) -> Result<kube::Discovery> {
        let discovered = kube::Discovery::new(client.clone()).run().await;
        let server = self.server().await?;
        discovered.with_context(|| format!("ask {server} what it serves"))
    }

    /// The API server of the current context, `https://host:port`.
    pub async fn server(&self) -> Result<String> {
        Ok(self.config().await?.cluster_url.to_string().trim_end_matches('/').to_owned())
    }

    /// The registry beside the API server of the current context; its password is the user's token.
    pub async fn registry(&self) -> Result<RegistryAccess> {
        let config = self.config().await?;
        let url = &config.cluster_url;
        let host = url.host().context("the kubeconfig's server has no host")?;
        let authority = format!("{host}:{}", url.port_u16().unwrap_or(443));
        let ca_der = config.root_cert.context("the kubeconfig has no certificate-authority")?;
        let user = serde_json::to_value(&config.auth_info)?;
        let token = user.get("token").and_then(serde_json::Value::as_str);
        let token = token.context("the kubeconfig's user has no token, which the registry needs")?;
        Ok(RegistryAccess { authority, ca_der, token: token.to_owned() })
    }
}

/// Writes a file that only its owner may read, so that it is whole or absent.
pub fn write_secret(path: &std::path::Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            make_private(parent)?;
        }
        let mut file = create_private(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        rename_durably(&staged, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}
