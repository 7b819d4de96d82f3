//! `coracle server status | compact | defragment`: what operators ask of servers that run.

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use comfy_table::Table;
use serde_json::Value;

use crate::commands::member::call;
use crate::kubeconfig::Cluster;

/// What is asked.
#[derive(Subcommand)]
pub enum Ask {
    /// Show the condition of each server: who leads, how far it is, what room it has, what is wrong. Fails if anything is.
    Status(#[command(flatten)] Cluster),
    /// Forget versions and events that only reads and watches of the past need.
    Compact {
        /// Those before this revision; otherwise all of the past.
        #[arg(long)]
        revision: Option<u64>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Make a server's files as small as what they hold. Its writes wait meanwhile: one server after the other.
    Defragment {
        /// The server's id, as `status` shows it.
        id: u64,
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// Asks it.
pub fn run(ask: Ask) -> Result<()> {
    crate::commands::run_client(async {
        match ask {
            Ask::Status(cluster) => status(&cluster).await,
            Ask::Compact { revision, cluster } => {
                let query = revision.map(|revision| format!("?revision={revision}")).unwrap_or_default();
                let done = call(&cluster, http::Method::POST, &format!("/coracle/compact{query}")).await?;
                crate::commands::print(format!("history before revision {} is forgotten\n", done["revision"]))
            }
            Ask::Defragment { id, cluster } => {
                let done = call(&cluster, http::Method::POST, &format!("/coracle/defragment/{id}")).await?;
                crate::commands::print(format!("{} bytes became {}\n", done["before"], done["after"]))
            }
        }
    })
}

async fn status(cluster: &Cluster) -> Result<()> {
    let found = call(cluster, http::Method::GET, "/coracle/status").await?;
    let mut table = Table::new();
    let columns = ["ID", "ADDRESS", "ROLE", "TERM", "REVISION", "STATE", "LOG", "FREE", "CONDITION"];
    table.load_style(comfy_table::presets::NOTHING).set_header(columns);
    let mut wrong = 0;
    for member in found["members"].as_array().context("the server named no members")? {
        let status = &member["status"];
        let role = match (status["leader"] == member["id"], member["voter"] == true) {
            (true, _) => "leader",
            (_, true) => "voter",
            _ => "learner",
        };
        let condition = condition(member);
        wrong += u64::from(condition != "Ready");
        let shown = |field: &str| match &status[field] {
            Value::Null => "-".to_owned(),
            value => value.to_string(),
        };
        let size = |field: &str| match status[field].as_u64() {
            Some(bytes) if bytes >> 30 > 0 => format!("{:.1}Gi", bytes as f64 / f64::from(1 << 30)),
            Some(bytes) => format!("{:.1}Mi", bytes as f64 / f64::from(1 << 20)),
            None => "-".to_owned(),
        };
        table.add_row([
            member["id"].to_string(),
            member["address"].as_str().unwrap_or_default().to_owned(),
            role.to_owned(),
            shown("term"),
            shown("revision"),
            size("stateBytes"),
            size("logBytes"),
            size("freeBytes"),
            condition,
        ]);
    }
    crate::commands::print(format!("{table}\n"))?;
    match wrong {
        0 => Ok(()),
        some => bail!("{some} of the servers are not well"),
    }
}

/// What is wrong with a server, or `Ready`.
fn condition(member: &Value) -> String {
    if let Some(error) = member["error"].as_str() {
        return format!("Unreachable: {error}");
    }
    let alarms = member["status"]["alarms"].as_array().into_iter().flatten();
    let on = alarms.filter(|alarm| alarm["on"] == true).map(|alarm| {
        let text = |field: &str| alarm[field].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text("name"), text("message"))
    });
    let on: Vec<String> = on.collect();
    if on.is_empty() { "Ready".to_owned() } else { on.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_told() {
        let alarm = |on: bool| serde_json::json!({"name": "DiskFull", "on": on, "message": "5 MiB are left"});
        let member = |on: bool| serde_json::json!({"id": 1, "status": {"alarms": [alarm(on)]}});
        assert_eq!(condition(&member(false)), "Ready");
        assert_eq!(condition(&member(true)), "DiskFull: 5 MiB are left");
        assert_eq!(condition(&serde_json::json!({"id": 1, "error": "gone"})), "Unreachable: gone");
    }
}
