//! Who else may say who somebody is: the flags of kube-apiserver for OpenID Connect, token files and webhooks. `coracle up` takes
//! the same flags and hands them on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_apiserver::UserInfo;
use coracle_apiserver::authn::{Anonymous, TokenAuthenticator};
use coracle_registry::authn::{oidc, token_file, webhook_token::WebhookTokens};

/// Sources of identities beside the cluster's own.
#[derive(Args, Clone, Debug)]
pub struct Authentication {
    /// A file of static tokens: `token,user,uid,"group1,group2"` a line.
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    /// The URL (https://) of an OpenID Connect provider whose tokens are accepted.
    #[arg(long, requires = "oidc_client_id", conflicts_with = "authentication_config")]
    pub oidc_issuer_url: Option<String>,
    /// Whom its tokens must be meant for.
    #[arg(long)]
    pub oidc_client_id: Option<String>,
    /// Certificates that the provider's is checked against; otherwise those of the system.
    #[arg(long)]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that is the user's name.
    #[arg(long, default_value = "sub")]
    pub oidc_username_claim: String,
    /// What is put before it; `-` for nothing. Otherwise the URL and `#`, unless the claim is `email`.
    #[arg(long, allow_hyphen_values = true)]
    pub oidc_username_prefix: Option<String>,
    /// The claim that has the groups.
    #[arg(long)]
    pub oidc_groups_claim: Option<String>,
    /// What is put before each.
    #[arg(long, default_value = "")]
    pub oidc_groups_prefix: String,
    /// KEY=VALUE: a claim that must have this value; may be given several times.
    #[arg(long)]
    pub oidc_required_claim: Vec<String>,
    /// Accepted signatures, such as RS256,ES256; otherwise every one with a public key.
    #[arg(long, value_delimiter = ',')]
    pub oidc_signing_algs: Vec<String>,
    /// A file of kind AuthenticationConfiguration (apiserver.config.k8s.io) that names providers, with claims mapped by CEL, and
    /// says who may call without saying who he is.
    #[arg(long)]
    pub authentication_config: Option<PathBuf>,
    /// Whether calls without credentials are served at all (as `system:anonymous`, who sees health and version).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub anonymous_auth: bool,
    /// A kubeconfig of a server that answers TokenReviews about tokens that nobody else knows.
    #[arg(long)]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Seconds that its answers are believed.
    #[arg(long, default_value_t = 120)]
    pub authentication_token_webhook_cache_ttl: u64,
}

impl Authentication {
    /// The flags, as a server takes them.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let path = |path: &PathBuf| path.display().to_string();
        let some = [
            ("token-auth-file", self.token_auth_file.as_ref().map(path)),
            ("oidc-issuer-url", self.oidc_issuer_url.clone()),
            ("oidc-client-id", self.oidc_client_id.clone()),
            ("oidc-ca-file", self.oidc_ca_file.as_ref().map(path)),
            ("oidc-username-prefix", self.oidc_username_prefix.clone()),
            ("oidc-groups-claim", self.oidc_groups_claim.clone()),
            ("authentication-config", self.authentication_config.as_ref().map(path)),
            (
                "authentication-token-webhook-config-file",
                self.authentication_token_webhook_config_file.as_ref().map(path),
            ),
        ];
        let mut flags: Vec<_> = some.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        flags.extend(self.oidc_required_claim.iter().map(|claim| ("oidc-required-claim", claim.clone())));
        flags.extend(self.oidc_signing_algs.iter().map(|name| ("oidc-signing-algs", name.clone())));
        flags.extend([
            ("anonymous-auth", self.anonymous_auth.to_string()),
            ("oidc-username-claim", self.oidc_username_claim.clone()),
            ("oidc-groups-prefix", self.oidc_groups_prefix.clone()),
            (
                "authentication-token-webhook-cache-ttl",
                self.authentication_token_webhook_cache_ttl.to_string(),
            ),
        ]);
        flags
    }

    /// The tokens of the file.
    pub fn fixed_tokens(&self) -> Result<Vec<(String, UserInfo)>> {
        let Some(path) = &self.token_auth_file else { return Ok(Vec::new()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        token_file::parse(&text).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))
    }

    fn configuration(&self) -> Result<Option<oidc::Configuration>> {
        let Some(path) = &self.authentication_config else { return Ok(None) };
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        oidc::from_file(&text).map(Some).with_context(|| path.display().to_string())
    }

    /// Who may call without saying who he is: as the file says, or the flag.
    pub fn anonymous(&self) -> Result<Anonymous> {
        let said = self.configuration()?.and_then(|configuration| configuration.anonymous);
        Ok(match (said, self.anonymous_auth) {
            (Some(said), _) => said,
            (None, true) => Anonymous::Everywhere,
            (None, false) => Anonymous::Nobody,
        })
    }

    /// Providers and webhooks, in the order in which they are asked.
    pub fn authenticators(&self) -> Result<Vec<Arc<dyn TokenAuthenticator>>> {
        let mut all: Vec<Arc<dyn TokenAuthenticator>> = Vec::new();
        if let Some(issuer_url) = &self.oidc_issuer_url {
            let flags = oidc::Flags {
                issuer_url: issuer_url.clone(),
                client_id: self.oidc_client_id.clone().unwrap_or_default(),
                ca_file: self.oidc_ca_file.clone(),
                username_claim: self.oidc_username_claim.clone(),
                username_prefix: self.oidc_username_prefix.clone(),
                groups_claim: self.oidc_groups_claim.clone(),
                groups_prefix: self.oidc_groups_prefix.clone(),
                required_claims: self.oidc_required_claim.clone(),
                signing_algs: self.oidc_signing_algs.clone(),
            };
            all.push(Arc::new(flags.issuer()?));
        }
        if let Some(configuration) = self.configuration()? {
            let issuers = configuration.issuers;
            all.extend(issuers.into_iter().map(|issuer| Arc::new(issuer) as Arc<dyn TokenAuthenticator>));
        }
        if let Some(path) = &self.authentication_token_webhook_config_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            let ttl = Duration::from_secs(self.authentication_token_webhook_cache_ttl);
            let webhook = WebhookTokens::new(&text, ttl);
            all.push(Arc::new(webhook.map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?));
        }
        Ok(all)
    }
}
