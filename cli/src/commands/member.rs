//! `coracle member`: the servers of a cluster.

use anyhow::{Context, Result};
use clap::Subcommand;
use comfy_table::Table;
use serde_json::Value;

use crate::kubeconfig::Cluster;

#[derive(Subcommand)]
pub enum Command {
    /// List the servers of the cluster.
    List(#[command(flatten)] Cluster),
    /// Remove a server for good. Its process ends by itself.
    Remove {
        /// The server's id, as `list` shows it.
        id: u64,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Make a new token for servers that join; the one before is void.
    Token(#[command(flatten)] Cluster),
}

pub fn run(command: Command) -> Result<()> {
    super::run_client(async {
        match command {
            Command::List(cluster) => {
                let found = call(&cluster, http::Method::GET, "/coracle/members").await?;
                let mut table = Table::new();
                table.load_style(comfy_table::presets::NOTHING).set_header(["ID", "ADDRESS", "ROLE"]);
                for member in found["members"].as_array().context("the server named no members")? {
                    let role = match (member["leader"] == true, member["voter"] == true) {
                        (true, _) => "leader",
                        (_, true) => "voter",
                        _ => "learner",
                    };
                    let address = member["address"].as_str().unwrap_or_default().to_owned();
                    table.add_row([member["id"].to_string(), address, role.to_owned()]);
                }
                super::print(format!("{table}\n"))
            }
            Command::Remove { id, cluster } => {
                call(&cluster, http::Method::DELETE, &format!("/coracle/members/{id}")).await?;
                super::print(format!("member {id} removed\n"))
            }
            Command::Token(cluster) => {
                let made = call(&cluster, http::Method::POST, "/coracle/join-token").await?;
                super::print(format!("{}\n", made["token"].as_str().context("the server made no token")?))
            }
        }
    })
}

/// Calls what a server offers about the cluster itself.
pub async fn call(cluster: &Cluster, method: http::Method, path: &str) -> Result<Value> {
    let (client, _) = cluster.client().await?;
    let request = http::Request::builder().method(method).uri(path).body(Vec::new())?;
    Ok(client.request(request).await?)
}
