//! Gets, lists, selectors, Tables, watches, and the documents about a kind.

use std::path::Path;

use serde_json::{Value, json};

use super::checks::Findings;
use super::client::Client;
use super::kind::{Kind, lacks};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

/// The revision now.
pub async fn revision(client: &Client, kind: &Kind) -> String {
    let (_, list) = client.get(&kind.path).await;
    list["metadata"]["resourceVersion"].as_str().unwrap_or("").to_owned()
}

/// The object as it was made.
pub async fn one(client: &Client, kind: &Kind, made: &Value, found: &mut Findings) {
    let Some(read) = found.code("get", 200, client.get(&kind.at()).await) else { return };
    found.expect(read == *made, || format!("made as {made} and read as {read}"));
    found.code("get of what is not there", 404, client.get(&format!("{}x", kind.at())).await);
    let Some(part) = found.code("get of metadata", 200, client.get_as(&kind.at(), METADATA).await) else {
        return;
    };
    found.expect(part["kind"] == "PartialObjectMetadata" && part["metadata"] == made["metadata"], || {
        format!("metadata alone is {part}")
    });
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().into_iter().flatten().filter_map(|i| i["metadata"]["name"].as_str()).collect()
}

/// Lists and what selects from them.
pub async fn lists(client: &Client, kind: &Kind, found: &mut Findings) {
    let Some(list) = found.code("list", 200, client.get(&kind.path).await) else { return };
    let wanted = format!("{}List", kind.object["kind"].as_str().unwrap_or(""));
    found.expect(list["kind"] == wanted && list["apiVersion"] == kind.object["apiVersion"], || {
        format!("the list is {} {}", list["apiVersion"], list["kind"])
    });
    let name = kind.name();
    for (selector, is_in) in [
        ("".to_owned(), true),
        ("labelSelector=merge%3Dyes".to_owned(), true),
        ("labelSelector=merge+in+(yes,no),!dry".to_owned(), true),
        ("labelSelector=merge!%3Dyes".to_owned(), false),
        (format!("fieldSelector=metadata.name%3D{name}"), true),
        (format!("fieldSelector=metadata.name!%3D{name}"), false),
        (format!("fieldSelector=metadata.name%3D{name}&labelSelector=none"), false),
        ("resourceVersion=0".to_owned(), true),
    ] {
        let mut paths = vec![&kind.path];
        if kind.namespaced {
            paths.push(&kind.plain);
        }
        for path in paths {
            let answer = client.get(&format!("{path}?{selector}")).await;
            let Some(list) = found.code(&format!("list with {selector}"), 200, answer) else { continue };
            found.expect(names(&list).contains(&name) == is_in, || {
                format!("list with {selector}: {:?}", names(&list))
            });
        }
    }
    let odd = client.get(&format!("{}?fieldSelector=no.such.field%3Dx", kind.path)).await;
    found.code("list by an unknown field", 400, odd);
    let metadata = client.get_as(&kind.path, METADATA_LIST).await;
    if let Some(list) = found.code("list of metadata", 200, metadata) {
        found.expect(list["kind"] == "PartialObjectMetadataList" && names(&list).contains(&name), || {
            format!("metadata alone is a {}", list["kind"])
        });
    }
}

fn recorded_columns(resource: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/facts/table-columns-1.36.2.json");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}: the recorded columns are needed", path.display()));
    let all: Value = serde_json::from_str(&text).expect("columns");
    all[resource].clone()
}

/// Columns as in Kubernetes, a cell for each, of one object and of a list.
pub async fn tables(client: &Client, kind: &Kind, found: &mut Findings) {
    let recorded = recorded_columns(&kind.plain);
    for path in [kind.at(), kind.path.clone()] {
        let Some(table) = found.code("table", 200, client.get_as(&path, TABLE).await) else { continue };
        let columns = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
        let bare: Vec<Value> = columns
            .iter()
            .map(|c| json!({"name": c["name"], "type": c["type"], "format": c["format"], "priority": c["priority"]}))
            .collect();
        // Kubernetes serves alpha kinds when it is asked to only, so that nothing of them was recorded.
        let alpha = kind.path.contains("alpha");
        found.expect(alpha || !recorded.is_null(), || "no columns are recorded".into());
        found.expect(recorded.is_null() || recorded == json!(bare), || {
            let mut lacking = Vec::new();
            lacks("", &recorded, &json!(bare), &mut lacking);
            format!("columns of {path}: {lacking:?}")
        });
        for column in &columns {
            let described = column["description"].as_str().is_some_and(|d| !d.is_empty());
            found.expect(described, || format!("column {} has no description", column["name"]));
        }
        let rows = table["rows"].as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|r| r["object"]["metadata"]["name"] == kind.name());
        let Some(row) = row else {
            found.expect(false, || format!("{path} as a table has no row of the object"));
            continue;
        };
        found.expect(row["object"]["kind"] == "PartialObjectMetadata", || "a row has no object".into());
        let cells = row["cells"].as_array().cloned().unwrap_or_default();
        found.expect(cells.len() == columns.len(), || format!("{} cells", cells.len()));
        for (cell, column) in cells.iter().zip(&columns) {
            let fits = match column["type"].as_str().unwrap_or("") {
                "integer" | "number" => cell.is_number(),
                "boolean" => cell.is_boolean(),
                "date" => cell.is_string() || cell.is_null(),
                _ => cell.is_string() || cell.is_number() || cell.is_boolean(),
            };
            found.expect(fits, || format!("cell {cell} of column {} {}", column["name"], column["type"]));
        }
    }
}

/// The whole life of the object, from the history.
pub async fn watches(client: &Client, kind: &Kind, before: &str, found: &mut Findings) {
    if !kind.has("watch") {
        found.expect(false, || "no watch".into());
        return;
    }
    let name = kind.name();
    let watch = format!("{}?watch=1&timeoutSeconds=5&resourceVersion={before}", kind.path);
    let events = client.watch(&format!("{watch}&fieldSelector=metadata.name%3D{name}")).await;
    let types: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    let whole = types.first() == Some(&"ADDED") && types.last() == Some(&"DELETED") && types.len() > 3;
    found.expect(whole, || format!("watch: {types:?}"));
    found
        .expect(types.iter().skip(1).rev().skip(1).all(|t| *t == "MODIFIED"), || format!("watch: {types:?}"));
    for (_, object) in &events {
        let fits = object["kind"] == kind.object["kind"] && object["apiVersion"] == kind.object["apiVersion"];
        found.expect(fits && object["metadata"]["name"] == name, || format!("watch: {object}"));
    }
    // It begins to match when it gets its label, and is gone for who selects by it.
    let events = client.watch(&format!("{watch}&labelSelector=apply%3Dyes")).await;
    let types: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    let fits = types.first() == Some(&"ADDED") && types.last() == Some(&"DELETED");
    found.expect(fits, || format!("watch by a label: {types:?}"));
}

/// OpenAPI v3 has the kind and its paths.
pub async fn documents(client: &Client, kind: &Kind, found: &mut Findings) {
    let (path, _) = kind.plain.rsplit_once('/').expect("path");
    let answer = client.get(&format!("/openapi/v3{path}")).await;
    let Some(document) = found.code("OpenAPI v3", 200, answer) else { return };
    found.expect(document["paths"][&kind.plain]["get"].is_object(), || "OpenAPI v3 has no list".into());
    let schemas = document["components"]["schemas"].as_object().cloned().unwrap_or_default();
    let schema = schemas.values().find(|s| {
        s["x-kubernetes-group-version-kind"].as_array().is_some_and(|all| {
            all.iter().any(|gvk| {
                let group = gvk["group"].as_str().unwrap_or("");
                let version = gvk["version"].as_str().unwrap_or("");
                let own = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
                gvk["kind"] == kind.object["kind"] && kind.object["apiVersion"] == own
            })
        })
    });
    found.expect(schema.is_some(), || "OpenAPI v3 has no schema".into());
    let described = schema.is_some_and(|s| s["description"].as_str().is_some_and(|d| !d.is_empty()));
    found.expect(described, || "OpenAPI v3 has no description".into());
}
