//! The resources and verbs of Kubernetes 1.36.2 that are not served: `missing.txt` says why, a line for each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::client::Client;
use super::kind::{group_versions, text};

type Resources = BTreeMap<String, Value>;

/// Every resource of a list with what is compared.
fn resources(list: &Value, all: &mut Resources) {
    let group_version = text(list, "groupVersion");
    for resource in list["resources"].as_array().into_iter().flatten() {
        let mut resource = resource.clone();
        resource.as_object_mut().expect("resource").remove("storageVersionHash");
        all.insert(format!("{group_version}/{}", text(&resource, "name")), resource);
    }
}

fn recorded() -> Resources {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/facts/discovery-1.36.2.json");
    let file = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}: the recorded discovery is needed", path.display()));
    let documents: Value = serde_json::from_str(&file).expect("discovery");
    let mut all = Resources::new();
    for document in documents["legacy"].as_object().expect("documents").values() {
        // What the recorded distribution adds.
        if document["kind"] == "APIResourceList" && !text(document, "groupVersion").contains("cattle.io") {
            resources(document, &mut all);
        }
    }
    all
}

/// What is missing or other than recorded and not listed, and what is listed and is as recorded.
pub async fn differences(client: &Client) -> Vec<String> {
    let mut served = Resources::new();
    for path in group_versions(client).await {
        resources(&client.get(&path).await.1, &mut served);
    }
    let mut found = BTreeMap::new();
    for (name, wanted) in recorded() {
        match served.get(&name) {
            None => found.insert(name, "not served".to_owned()),
            Some(own) if *own != wanted => found.insert(name, format!("wanted {wanted}, found {own}")),
            Some(_) => None,
        };
    }
    let lines = include_str!("missing.txt").lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    let listed: BTreeSet<String> = lines.filter_map(|l| l.split_once(": ")).map(|(n, _)| n.into()).collect();
    let new = found.iter().filter(|(name, _)| !listed.contains(*name)).map(|(n, why)| format!("{n}: {why}"));
    let old = listed.iter().filter(|name| !found.contains_key(*name)).map(|n| format!("{n}: is as recorded"));
    new.chain(old).collect()
}
