//! What a node is told about registries.

use serde::{Deserialize, Serialize};

/// Where images come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryConfig {
    /// Asked in this order, before the default registry, for a name without a registry (or of docker.io).
    pub mirrors: Vec<Mirror>,
    /// The registry of names without one, asked last (docker.io); `None`: only the mirrors are asked.
    pub default_registry: Option<String>,
    /// `host:port` of registries that are spoken to over plain HTTP. Those of 127.0.0.0/8 and `localhost` always are,
    /// unless they are listed as a mirror.
    pub insecure: Vec<String>,
    pub limits: Limits,
    /// Whose signatures images need. Of several that name a repository the longest decides.
    pub signatures: Vec<SignaturePolicy>,
    /// Folders with a folder for each registry in containerd's shape (`hosts.toml`, certificates); see [`crate::hosts`].
    pub host_dirs: Vec<std::path::PathBuf>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            default_registry: Some(crate::reference::DEFAULT_REGISTRY.to_owned()),
            insecure: Vec::new(),
            limits: Limits::default(),
            signatures: Vec::new(),
            host_dirs: Vec::new(),
        }
    }
}

/// Images that have to be signed, as cosign does it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct SignaturePolicy {
    /// A whole name with its registry (`ghcr.io/team`), for it and all below; empty for every image.
    pub repositories: String,
    /// Public keys (PEM: ECDSA P-256, RSA or Ed25519); one of them is enough, and none means that nothing may be pulled.
    pub keys: Vec<String>,
}

/// A registry that is asked first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// `https://host:port` or `http://host:port`.
    pub url: String,
    /// Asked first for names of other registries too, which it has under the whole name (`gcr.io/a/b`).
    pub every_registry: bool,
    /// Certificates (PEM) to trust for it, instead of the system's.
    pub ca_pem: Option<String>,
    /// Who we are there, unless a request brings its own for this very registry.
    pub credentials: Credentials,
}

impl Mirror {
    /// `host:port`, and whether it is spoken to over TLS.
    pub fn authority(&self) -> (&str, bool) {
        let (rest, tls) = match self.url.strip_prefix("http://") {
            Some(rest) => (rest, false),
            None => (self.url.strip_prefix("https://").unwrap_or(&self.url), true),
        };
        (rest.trim_end_matches('/'), tls)
    }
}

/// How to show a registry who we are.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Credentials {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// Sent as it is: `Authorization: Bearer ...`.
    Bearer(String),
    /// What the registry's token service gives tokens for: an OAuth 2 refresh token, which `docker login` keeps as
    /// `identitytoken`.
    Identity(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(..)",
            Self::Bearer(_) => "Bearer(..)",
            Self::Identity(_) => "Identity(..)",
        })
    }
}

/// Bounds on what a registry may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// A manifest or configuration, in bytes.
    pub manifest_bytes: u64,
    /// A component, in bytes.
    pub layer_bytes: u64,
    /// A layer of a Linux image as it comes, in bytes.
    pub linux_layer_bytes: u64,
    /// How long nothing may come from a registry, in seconds; a pull takes as long as it takes.
    pub idle_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            layer_bytes: 512 << 20,
            linux_layer_bytes: 32 << 30,
            idle_seconds: 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_a_node_is_given_can_be_read() {
        let text = r#"{"mirrors": [{"url": "https://127.0.0.1:6443", "caPem": "pem",
            "credentials": {"basic": {"username": "node", "password": "token"}}}]}"#;
        let config: RegistryConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.mirrors[0].authority(), ("127.0.0.1:6443", true));
        assert!(
            matches!(&config.mirrors[0].credentials, Credentials::Basic { password, .. } if password == "token")
        );
        assert_eq!(config.default_registry.as_deref(), Some("docker.io"));
        let text = r#"{"mirrors": [{"url": "http://a:1/", "credentials": {"bearer": "t"}}], "defaultRegistry": null,
            "insecure": ["b:2"], "limits": {"layerBytes": 5}}"#;
        let config: RegistryConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.mirrors[0].authority(), ("a:1", false));
        assert_eq!((config.default_registry, config.limits.layer_bytes), (None, 5));
        assert!(serde_json::from_str::<RegistryConfig>(r#"{"mirror": []}"#).is_err(), "a misspelt field");
    }
}
