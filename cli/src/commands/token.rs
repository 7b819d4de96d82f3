//! `coracle token`: the tokens with which nodes join.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use comfy_table::Table;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use rand::Rng;

use super::node::authority;
use crate::kubeconfig::Cluster;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";

#[derive(Subcommand)]
pub enum Command {
    /// Make a token and print the command with which a node joins.
    Create {
        /// How long nodes may join with it, such as 30m or 24h; 0 for ever.
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: SignedDuration,
        /// What it is for.
        #[arg(long)]
        description: Option<String>,
        /// Print the token alone.
        #[arg(long)]
        token_only: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// List the tokens.
    List(#[command(flatten)] Cluster),
    /// Delete a token, by its id or whole.
    Delete {
        /// The part before the dot, or the whole token.
        token: String,
        #[command(flatten)]
        cluster: Cluster,
    },
}

fn duration(text: &str) -> Result<SignedDuration> {
    let given: SignedDuration = if text == "0" {
        SignedDuration::ZERO
    } else {
        text.parse().with_context(|| format!("{text:?} is no duration such as 30m or 24h"))?
    };
    if given.is_negative() {
        bail!("a token cannot end before it begins");
    }
    Ok(given)
}

pub fn run(command: Command) -> Result<()> {
    super::run_client(async {
        match command {
            Command::Create { ttl, description, token_only, cluster } => {
                create(&cluster, ttl, description, token_only).await
            }
            Command::List(cluster) => list(&cluster).await,
            Command::Delete { token, cluster } => {
                let id = token.split('.').next().unwrap_or_default();
                let secrets = secrets(&cluster).await?;
                secrets.delete(&format!("{NAME_PREFIX}{id}"), &DeleteParams::default()).await?;
                super::print(format!("token {id} deleted\n"))
            }
        }
    })
}

async fn secrets(cluster: &Cluster) -> Result<Api<Secret>> {
    Ok(Api::namespaced(cluster.client().await?.0, "kube-system"))
}

/// Lower-case letters and digits.
fn letters(count: usize) -> String {
    const ALL: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..count).filter_map(|_| ALL.get(rng.random_range(0..ALL.len()))).map(|b| char::from(*b)).collect()
}

async fn create(
    cluster: &Cluster,
    ttl: SignedDuration,
    description: Option<String>,
    token_only: bool,
) -> Result<()> {
    let (id, secret) = (letters(6), letters(16));
    let mut data: BTreeMap<String, String> = [
        ("token-id", id.as_str()),
        ("token-secret", &secret),
        ("usage-bootstrap-authentication", "true"),
        ("usage-bootstrap-signing", "true"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    if let Some(description) = description {
        data.insert("description".into(), description);
    }
    if !ttl.is_zero() {
        let end = Timestamp::now().checked_add(ttl).context("the token would end too late")?;
        data.insert("expiration".into(), format!("{end:.0}"));
    }
    let mut object = Secret { type_: Some(TYPE.into()), string_data: Some(data), ..Secret::default() };
    object.metadata.name = Some(format!("{NAME_PREFIX}{id}"));
    let (client, _) = cluster.client().await?;
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    api.create(&PostParams::default(), &object).await.context("create the token")?;
    let token = format!("{id}.{secret}");
    if token_only {
        return super::print(format!("{token}\n"));
    }
    let hash = hash(client).await?;
    let server = cluster.server().await?;
    super::print(format!("coracle node --join {server} --token {token} --ca-cert-hash {hash}\n"))
}

/// The hash by which a node knows the cluster's authority.
async fn hash(client: Client) -> Result<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client, "kube-public");
    let info = maps.get("cluster-info").await.context("read kube-public/cluster-info")?;
    authority::hash(&authority::of_cluster_info(&info)?)
}

async fn list(cluster: &Cluster) -> Result<()> {
    let secrets = secrets(cluster).await?;
    let found = secrets.list(&ListParams::default().fields(&format!("type={TYPE}"))).await?;
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["ID", "EXPIRES", "USAGES", "DESCRIPTION"]);
    for secret in found.items {
        let data = secret.data.clone().unwrap_or_default();
        let text = |key: &str| {
            data.get(key).map(|ByteString(v)| String::from_utf8_lossy(v).into_owned()).unwrap_or_default()
        };
        let usages: Vec<&str> = ["authentication", "signing"]
            .into_iter()
            .filter(|usage| text(&format!("usage-bootstrap-{usage}")) == "true")
            .collect();
        let expires = match text("expiration").as_str() {
            "" => "never".to_owned(),
            at => at.to_owned(),
        };
        let id = secret.name_any().trim_start_matches(NAME_PREFIX).to_owned();
        table.add_row([id, expires, usages.join(","), text("description")]);
    }
    super::print(format!("{table}\n"))
}
