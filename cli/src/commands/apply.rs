//! `coracle apply`: creates or changes the objects of manifests, as `kubectl apply` does on the client's side.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use kube::Api;
use kube::api::DynamicObject;
use kube::discovery::{Discovery, Scope};
use serde_json::{Map, Value, json};

use super::Failures;
use crate::kubeconfig::Cluster;

/// kubectl's annotation, so that both clients can change the same objects.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A field that the kind does not have is a mistake to be told.
const STRICT: &str = "fieldValidation=Strict&fieldManager=coracle";

#[derive(Args)]
pub struct Options {
    /// A manifest, a folder of them, or `-` for standard input.
    #[arg(short = 'f', long = "filename", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    cluster: Cluster,
}

pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let (client, namespace) = options.cluster.client().await?;
        let discovery = options.cluster.discover(&client).await?;
        let asked = options.cluster.namespace.as_deref();
        let mut failures = Failures::default();
        for object in read(&options.files)? {
            match apply_one(&client, &discovery, (&namespace, asked), object).await {
                Ok(done) => super::print(done)?,
                Err(error) => failures.add(error),
            }
        }
        failures.end()
    })
}

async fn apply_one(
    client: &kube::Client,
    discovery: &Discovery,
    (namespace, asked): (&str, Option<&str>),
    object: Value,
) -> Result<String> {
    let own = object.pointer("/metadata/namespace").and_then(Value::as_str);
    if let (Some(own), Some(asked)) = (own, asked)
        && own != asked
    {
        bail!("the object's namespace {own:?} is not the {asked:?} of --namespace");
    }
    let (api, shown, object) = resolve(client, discovery, namespace, object)?;
    let done = apply(client, &api, object).await.with_context(|| shown.clone())?;
    Ok(format!("{shown} {done}\n"))
}

/// The objects of manifests; folders are read in the order of their files' names.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in paths {
        let mut files = vec![path.clone()];
        if path.is_dir() {
            files =
                std::fs::read_dir(path)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
            files.retain(|file| is_manifest(file));
            files.sort();
        }
        for file in files {
            let text = if file == Path::new("-") {
                std::io::read_to_string(std::io::stdin())
            } else {
                std::fs::read_to_string(&file)
            };
            let text = text.with_context(|| format!("read {}", file.display()))?;
            let documents = coracle_api::yaml::to_json_documents(&text)
                .with_context(|| format!("parse {}", file.display()))?;
            for mut document in documents.into_iter().filter(|document| !document.is_null()) {
                // A List stands for what is in it.
                match document.get_mut("items").map(Value::take) {
                    Some(Value::Array(items)) => objects.extend(items),
                    _ => objects.push(document),
                }
            }
        }
    }
    if objects.is_empty() {
        bail!(
            "no objects in {}",
            paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(objects)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

/// Where an object belongs, how it is called, and the object with its namespace filled in.
pub fn resolve(
    client: &kube::Client,
    discovery: &Discovery,
    namespace: &str,
    mut object: Value,
) -> Result<(Api<DynamicObject>, String, Value)> {
    let field = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
    let api_version = field("apiVersion").context("an object without apiVersion")?;
    let kind = field("kind").context("an object without kind")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let gvk = kube::core::GroupVersionKind::gvk(group, version, &kind);
    let (resource, capabilities) = discovery
        .resolve_gvk(&gvk)
        .with_context(|| format!("the server has no kind {kind:?} in version {api_version:?}"))?;
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .with_context(|| format!("a {kind} without metadata.name"))?
        .to_owned();
    let qualified = if group.is_empty() { String::new() } else { format!(".{group}") };
    let shown = format!("{}{qualified}/{name}", kind.to_lowercase());
    let api = if capabilities.scope == Scope::Namespaced {
        let own =
            object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or(namespace).to_owned();
        object["metadata"]["namespace"] = json!(own);
        Api::namespaced_with(client.clone(), &own, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    };
    Ok((api, shown, object))
}

async fn apply(client: &kube::Client, api: &Api<DynamicObject>, mut object: Value) -> Result<&'static str> {
    let applied = object.to_string();
    let metadata =
        object.get_mut("metadata").and_then(Value::as_object_mut).context("metadata is no object")?;
    let annotations = metadata.entry("annotations").or_insert(Value::Null);
    if annotations.is_null() {
        *annotations = json!({});
    }
    let annotations = annotations.as_object_mut().context("metadata.annotations is no object")?;
    annotations.insert(LAST_APPLIED.to_owned(), json!(applied));
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let Some(live) = api.get_opt(&name).await? else {
        let request = http::Request::post(format!("{}?{STRICT}", api.resource_url()))
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&object)?)?;
        client.request::<Value>(request).await?;
        return Ok("created");
    };
    let live = serde_json::to_value(live)?;
    let before = live
        .pointer("/metadata/annotations")
        .and_then(|all| all.get(LAST_APPLIED))
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_else(|| json!({}));
    let patch = three_way(&before, &object, &live);
    if patch.as_object().is_some_and(Map::is_empty) {
        return Ok("unchanged");
    }
    let request = http::Request::patch(format!("{}/{name}?{STRICT}", api.resource_url()))
        .header("content-type", "application/strategic-merge-patch+json")
        .body(serde_json::to_vec(&patch)?)?;
    client.request::<Value>(request).await?;
    Ok("configured")
}

/// What to change so that `live` has what `wanted` says and lacks what only `before` said. Lists are replaced or, by the
/// server's merge keys, merged.
fn three_way(before: &Value, wanted: &Value, live: &Value) -> Value {
    let empty = Map::new();
    let (before, live) = (before.as_object().unwrap_or(&empty), live.as_object().unwrap_or(&empty));
    let mut patch = Map::new();
    for (key, value) in wanted.as_object().unwrap_or(&empty) {
        match live.get(key) {
            Some(current) if holds(current, value) => {}
            None if value.is_null() => {}
            Some(current) if current.is_object() && value.is_object() => {
                let inner = three_way(before.get(key).unwrap_or(&Value::Null), value, current);
                if inner.as_object().is_some_and(|inner| !inner.is_empty()) {
                    patch.insert(key.clone(), inner);
                }
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.keys() {
        if wanted.get(key).is_none() && live.contains_key(key) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    Value::Object(patch)
}

/// Whether `live` says everything that `wanted` says; what else it has are the server's defaults. Lists have to be as long.
fn holds(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| live.get(key).is_some_and(|current| same(key, current, value)))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| holds(live, wanted))
        }
        _ => live == wanted,
    }
}

/// [`holds`] for a field; the annotation with the manifest compares by what it says, since clients write it differently.
fn same(key: &str, live: &Value, wanted: &Value) -> bool {
    let parse = |value: &Value| serde_json::from_str::<Value>(value.as_str()?).ok().map(without_annotation);
    holds(live, wanted) || (key == LAST_APPLIED && parse(live).is_some() && parse(live) == parse(wanted))
}

/// kubectl writes an empty map of annotations into the manifest that it remembers.
fn without_annotation(mut manifest: Value) -> Value {
    if let Some(metadata) = manifest.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata.get("annotations").is_some_and(|all| all.as_object().is_some_and(Map::is_empty))
    {
        metadata.remove("annotations");
    }
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_what_differs_and_removes_what_is_no_longer_said() {
        let before = json!({"data": {"a": "1", "b": "2"}});
        let wanted = json!({"data": {"a": "3"}});
        let live = json!({"data": {"a": "1", "b": "2", "c": "theirs"}});
        assert_eq!(three_way(&before, &wanted, &live), json!({"data": {"a": "3", "b": null}}));
        assert_eq!(three_way(&wanted, &wanted, &wanted), json!({}));
        let defaulted = json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}});
        let wanted = json!({"spec": {"ports": [{"port": 80}]}});
        assert_eq!(three_way(&wanted, &wanted, &defaulted), json!({}));
    }
}
