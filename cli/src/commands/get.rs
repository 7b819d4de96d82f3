//! `coracle get`: objects as the server's tables, or as YAML or JSON.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope};
use serde_json::{Value, json};

use crate::kubeconfig::Cluster;

#[derive(Args)]
pub struct Options {
    /// The resource, such as `pods`, `deploy` or `svc`; several with commas, or one object as `deploy/hello`.
    resource: String,
    /// The objects; all when absent.
    names: Vec<String>,
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
        let discovery = options.cluster.discover(&client).await?;
        let mut answers = Vec::new();
        for (word, name) in targets(&options)? {
            let (resource, scope) = find(&discovery, &word)?;
            answers.push(fetch(&client, &options, &namespace, &resource, scope, name.as_deref()).await?);
        }
        show(&options, &namespace, answers)
    })
}

/// Resources, each with the name that is asked for.
fn targets(options: &Options) -> Result<Vec<(String, Option<String>)>> {
    let named = !options.names.is_empty() || options.resource.contains('/');
    if named && (options.selector.is_some() || options.all_namespaces) {
        bail!("objects by name cannot be chosen by --selector or --all-namespaces too");
    }
    if options.resource.contains('/') {
        let words = std::iter::once(&options.resource).chain(&options.names);
        let pairs = words.map(|word| {
            let (resource, name) =
                word.split_once('/').with_context(|| format!("{word} is not RESOURCE/NAME"))?;
            Ok((resource.to_owned(), Some(name.to_owned())))
        });
        return pairs.collect();
    }
    let resources = options.resource.split(',').map(str::to_owned);
    if options.names.is_empty() {
        return Ok(resources.map(|resource| (resource, None)).collect());
    }
    let each =
        |resource: String| options.names.iter().map(move |name| (resource.clone(), Some(name.clone())));
    Ok(resources.flat_map(each).collect())
}

fn show(options: &Options, namespace: &str, mut answers: Vec<Value>) -> Result<()> {
    if matches!(options.output, Output::Table | Output::Wide) {
        for answer in &answers {
            print_table(answer, options, namespace)?;
        }
        return Ok(());
    }
    let whole = if answers.len() == 1 {
        answers.remove(0)
    } else {
        let mut items = Vec::new();
        for mut answer in answers {
            match answer.get_mut("items").map(Value::take) {
                Some(Value::Array(inner)) => items.extend(inner),
                _ => items.push(answer),
            }
        }
        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
    };
    match options.output {
        Output::Json => super::print(serde_json::to_string_pretty(&whole)? + "\n"),
        _ => super::print(serde_yaml::to_string(&whole)?),
    }
}

/// A resource by its plural, singular, kind or short name, with or without its group.
pub fn find(discovery: &Discovery, word: &str) -> Result<(ApiResource, Scope)> {
    let lower = word.to_lowercase();
    let (name, group) = lower.split_once('.').map_or((lower.as_str(), None), |(n, g)| (n, Some(g)));
    let mut groups = discovery.groups_alphabetical();
    // A name that several groups have means the built-in one, and an object before a measurement of it.
    groups.sort_by_key(|group| (!is_builtin(group.name()), group.name() == METRICS));
    for candidate in groups {
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

/// The group of measurements, whose kinds share the names of what they measure.
const METRICS: &str = "metrics.k8s.io";

fn is_builtin(group: &str) -> bool {
    !group.contains('.') || group.ends_with(".k8s.io")
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
    name: Option<&str>,
) -> Result<Value> {
    let base = if resource.group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{}", resource.api_version)
    };
    let mut path = base;
    if scope == Scope::Namespaced && !options.all_namespaces {
        path += &format!("/namespaces/{}", escape(namespace));
    }
    path += &format!("/{}", resource.plural);
    if let Some(name) = name {
        path += &format!("/{}", escape(name));
    }
    if let Some(selector) = &options.selector {
        path += &format!("?labelSelector={}", escape(selector));
    }
    let accept = match options.output {
        Output::Table | Output::Wide => TABLE,
        Output::Yaml | Output::Json => "application/json",
    };
    let request = http::Request::get(path).header("accept", accept).body(Vec::new())?;
    Ok(client.request(request).await?)
}

/// Text as one segment of a path or a query. `.` stays: names have it, and no server reads `..` from `%2E%2E`.
fn escape(text: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let escape = |byte| if safe(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}

fn print_table(answer: &Value, options: &Options, namespace: &str) -> Result<()> {
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
        let place = if options.all_namespaces { String::new() } else { format!(" in {namespace} namespace") };
        eprintln!("No resources found{place}.");
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let mut header: Vec<String> = shown
        .iter()
        .map(|index| {
            columns.get(*index).and_then(|column| column["name"].as_str()).unwrap_or_default().to_uppercase()
        })
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
    let lines: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    super::print(lines)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
