//! `coracle get`: objects as the server's tables, or as YAML or JSON.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope};
use serde_json::Value;

use crate::kubeconfig::Cluster;

#[derive(Args)]
pub struct Options {
    /// The resource, such as `pods`, `deploy` or `svc`; several with commas.
    resource: String,
    /// One object; all when absent.
    name: Option<String>,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only objects with these labels.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// The form of the answer.
    #[arg(short, long, default_value = "table")]
    output: Output,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Table,
    Wide,
    Yaml,
    Json,
}

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let (client, namespace) = options.cluster.client().await?;
        let discovery =
            Discovery::new(client.clone()).run().await.context("discover the server's resources")?;
        for word in options.resource.split(',') {
            let (resource, scope) = find(&discovery, word)?;
            let answer = fetch(&client, &options, &namespace, &resource, scope).await?;
            match options.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
                Output::Yaml => println!("{}", serde_yaml::to_string(&answer)?),
                Output::Table | Output::Wide => print_table(&answer, &options),
            }
        }
        Ok(())
    })
}

/// A resource by its plural, singular, kind or short name, with or without its group.
pub fn find(discovery: &Discovery, word: &str) -> Result<(ApiResource, Scope)> {
    let lower = word.to_lowercase();
    let (name, group) = lower.split_once('.').map_or((lower.as_str(), None), |(n, g)| (n, Some(g)));
    for candidate in discovery.groups() {
        if group.is_some_and(|group| group != candidate.name()) {
            continue;
        }
        for (resource, capabilities) in candidate.recommended_resources() {
            let known = resource.plural == name
                || resource.kind.to_lowercase() == name
                || SHORT_NAMES.iter().any(|(short, plural)| *short == name && *plural == resource.plural);
            if known {
                return Ok((resource, capabilities.scope));
            }
        }
    }
    bail!("the server has no resource {word:?}")
}

/// kube's discovery does not carry the short names that the server tells.
const SHORT_NAMES: [(&str, &str); 10] = [
    ("po", "pods"),
    ("svc", "services"),
    ("deploy", "deployments"),
    ("rs", "replicasets"),
    ("cm", "configmaps"),
    ("ns", "namespaces"),
    ("no", "nodes"),
    ("ev", "events"),
    ("sa", "serviceaccounts"),
    ("eps", "endpointslices"),
];

async fn fetch(
    client: &kube::Client,
    options: &Options,
    namespace: &str,
    resource: &ApiResource,
    scope: Scope,
) -> Result<Value> {
    let base = if resource.group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{}", resource.api_version)
    };
    let mut path = base;
    if scope == Scope::Namespaced && !options.all_namespaces {
        path += &format!("/namespaces/{namespace}");
    }
    path += &format!("/{}", resource.plural);
    if let Some(name) = &options.name {
        path += &format!("/{name}");
    }
    if let Some(selector) = &options.selector {
        let encoded: String = selector
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }
            })
            .collect();
        path += &format!("?labelSelector={encoded}");
    }
    let accept = match options.output {
        Output::Table | Output::Wide => TABLE,
        Output::Yaml | Output::Json => "application/json",
    };
    let request = http::Request::get(path).header("accept", accept).body(Vec::new())?;
    Ok(client.request(request).await?)
}

fn print_table(answer: &Value, options: &Options) {
    let empty = Vec::new();
    let list = |value: &Value, key: &str| value[key].as_array().unwrap_or(&empty).clone();
    let columns = list(answer, "columnDefinitions");
    let shown: Vec<usize> = columns
        .iter()
        .enumerate()
        .filter(|(_, column)| column["priority"].as_i64().unwrap_or(0) == 0 || options.output == Output::Wide)
        .map(|(index, _)| index)
        .collect();
    let rows = list(answer, "rows");
    if rows.is_empty() {
        eprintln!("No resources found");
        return;
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let mut header: Vec<String> = shown
        .iter()
        .map(|index| columns[*index]["name"].as_str().unwrap_or_default().to_uppercase())
        .collect();
    if options.all_namespaces {
        header.insert(0, "NAMESPACE".into());
    }
    table.set_header(header);
    for row in rows {
        let cells = list(&row, "cells");
        let mut line: Vec<String> =
            shown.iter().map(|index| cells.get(*index).map(text).unwrap_or_default()).collect();
        if options.all_namespaces {
            line.insert(0, text(&row["object"]["metadata"]["namespace"]));
        }
        table.add_row(line);
    }
    println!("{table}");
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
