//! OpenAPI v2 documents of other servers beside our own: the paths of their groups, and the definitions that those need.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

const PREFIX: &str = "#/definitions/";
const PARAMETERS: &str = "#/parameters/";
const GVKS: &str = "x-kubernetes-group-version-kind";
/// How often a name is changed to make it one of its own.
const MAX_NAMES: usize = 1000;

/// What another server says of a group and version.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    pub group: &'a str,
    pub version: &'a str,
    /// Its whole OpenAPI v2 document, as JSON. One that is none is passed over.
    pub document: &'a [u8],
}

/// Adds to a v2 document what `other` says of its group and version. What is there already stays as it is: a definition of the
/// same name that says something else gets another name.
pub(super) fn merge(own: &mut Value, other: &Foreign<'_>) {
    let Ok(document) = serde_json::from_slice::<Value>(other.document) else { return };
    let part = |name: &str| document.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
    let (mut paths, mut definitions) = (part("paths"), part("definitions"));
    let root = format!("/apis/{}/{}/", other.group, other.version);
    paths.retain(|path, _| path.starts_with(&root));
    let parameters = part("parameters");
    paths.values_mut().for_each(|item| write_out(item, &parameters));
    let needed = reachable(&paths, &definitions, other);
    definitions.retain(|name, _| needed.contains(name));
    let Some(own) = own.as_object_mut() else { return };
    let Some(ours) = object(own, "definitions") else { return };
    let renamed: Map<String, Value> = definitions
        .iter()
        .filter_map(|(name, definition)| {
            let taken = |name: &str| ours.get(name).is_some_and(|there| !alike(there, definition));
            let free = |name: &String| !taken(name) && !definitions.contains_key(name);
            if !taken(name) {
                return None;
            }
            let new = (2..MAX_NAMES).map(|i| format!("{name}_v{i}")).find(free)?;
            Some((name.clone(), new.into()))
        })
        .collect();
    for (name, mut definition) in definitions {
        point(&mut definition, &renamed);
        let name = renamed.get(&name).and_then(Value::as_str).map_or(name.clone(), str::to_owned);
        ours.entry(name).or_insert(definition);
    }
    let Some(ours) = object(own, "paths") else { return };
    for (path, mut item) in paths {
        point(&mut item, &renamed);
        ours.entry(path).or_insert(item);
    }
}

/// Puts the parameters that a document has once, as those of Kubernetes' own servers have, where a path names them: our document
/// has none of that kind. A name of nothing goes.
fn write_out(item: &mut Value, shared: &Map<String, Value>) {
    let named = |parameter: &Value| {
        parameter.get("$ref").and_then(Value::as_str)?.strip_prefix(PARAMETERS).map(str::to_owned)
    };
    let Some(item) = item.as_object_mut() else { return };
    for (name, member) in item {
        let parameters = match name.as_str() {
            "parameters" => Some(member),
            _ => member.get_mut("parameters"),
        };
        if let Some(parameters) = parameters.and_then(Value::as_array_mut) {
            parameters.retain_mut(|parameter| {
                let Some(name) = named(parameter) else { return true };
                shared.get(&name).map(|found| *parameter = found.clone()).is_some()
            });
        }
    }
}

fn object<'a>(of: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    let member = of.entry(name).or_insert_with(|| Map::new().into());
    if !member.is_object() {
        *member = Map::new().into();
    }
    member.as_object_mut()
}

/// Whether two definitions say the same, but for the kinds that they are.
fn alike(a: &Value, b: &Value) -> bool {
    let bare = |v: &Value| {
        let mut v = v.clone();
        v.as_object_mut().map(|map| map.remove(GVKS));
        v
    };
    a == b || bare(a) == bare(b)
}

/// The definitions that paths lead to, and those of kinds of the group and version, whether a path names them or not.
fn reachable(
    paths: &Map<String, Value>,
    definitions: &Map<String, Value>,
    other: &Foreign<'_>,
) -> BTreeSet<String> {
    let mut open = Vec::new();
    paths.values().for_each(|item| references(item, &mut open));
    let is = |gvk: &Value| {
        gvk.get("group").is_some_and(|g| g == other.group)
            && gvk.get("version").is_some_and(|v| v == other.version)
    };
    for (name, definition) in definitions {
        if definition.get(GVKS).and_then(Value::as_array).is_some_and(|all| all.iter().any(is)) {
            open.push(name.clone());
        }
    }
    let mut found = BTreeSet::new();
    while let Some(name) = open.pop() {
        let Some(definition) = definitions.get(&name) else { continue };
        if found.insert(name) {
            references(definition, &mut open);
        }
    }
    found
}

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, member) in map {
                match member.as_str().and_then(|text| text.strip_prefix(PREFIX)) {
                    Some(target) if name == "$ref" => out.push(target.to_owned()),
                    _ => references(member, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, out)),
        _ => {}
    }
}

/// Points references at the new names.
fn point(value: &mut Value, renamed: &Map<String, Value>) {
    match value {
        Value::Object(map) => {
            for (name, member) in map {
                let target = member.as_str().and_then(|text| text.strip_prefix(PREFIX));
                match target.filter(|_| name == "$ref").and_then(|target| renamed.get(target)) {
                    Some(new) => *member = format!("{PREFIX}{}", new.as_str().unwrap_or_default()).into(),
                    None => point(member, renamed),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| point(item, renamed)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut own: Value, document: &Value) -> Value {
        let bytes = document.to_string();
        merge(&mut own, &Foreign { group: "g.io", version: "v1", document: bytes.as_bytes() });
        own
    }

    /// As servers of k8s.io/apiserver since 1.27 write them.
    #[test]
    fn parameters_that_a_document_has_once_are_where_they_are_used() {
        let pretty = json!({"in": "query", "name": "pretty", "type": "string", "uniqueItems": true});
        let body = json!({"in": "body", "name": "body", "schema": {"$ref": "#/definitions/Thing"}});
        let of = |name: &str| json!({"$ref": format!("#/parameters/{name}")});
        let other = json!({
            "paths": {"/apis/g.io/v1/things": {
                "post": {"operationId": "make", "parameters": [of("body-1"), {"in": "query", "name": "own", "type": "string"}]},
                "parameters": [of("pretty-2"), of("lost")],
            }},
            "parameters": {"pretty-2": pretty, "body-1": body},
            "definitions": {"Thing": {"type": "object"}},
        });
        let got = merged(json!({"swagger": "2.0", "paths": {}}), &other);
        let path = &got["paths"]["/apis/g.io/v1/things"];
        assert_eq!(path["parameters"], json!([pretty]));
        assert_eq!(path["post"]["parameters"][0], body);
        assert_eq!(path["post"]["parameters"][1]["name"], "own");
        assert_eq!(got["definitions"], json!({"Thing": {"type": "object"}}), "a parameter needs it");
    }

    #[test]
    fn paths_of_the_group_and_what_they_need() {
        let own = json!({"swagger": "2.0", "paths": {"/api/v1/pods": {"get": {}}},
            "definitions": {"Meta": {"type": "object"}, "Same": {"type": "string"}}});
        let reference = |name: &str| json!({"$ref": format!("#/definitions/{name}")});
        let other = json!({
            "paths": {
                "/apis/g.io/v1/things": {"get": {"responses": {"200": {"schema": reference("Thing")}}}},
                "/apis/g.io/v2/things": {"get": {"responses": {"200": {"schema": reference("Lost")}}}},
                "/api/v1/pods": {"get": {"x": 1}},
            },
            "definitions": {
                "Thing": {"properties": {"meta": reference("Meta"), "same": reference("Same"), "own": reference("Thing")}},
                "Meta": {"type": "string", "description": "another"},
                "Same": {"type": "string", GVKS: [{"group": "g.io", "version": "v9", "kind": "K"}]},
                "Named": {GVKS: [{"group": "g.io", "version": "v1", "kind": "Named"}]},
                "Lost": {"type": "object"},
            },
        });
        let got = merged(own, &other);
        assert!(got.get("parameters").is_none());
        let names =
            |v: &Value| v.as_object().map(|m| m.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        assert_eq!(names(&got["paths"]), ["/api/v1/pods", "/apis/g.io/v1/things"]);
        assert_eq!(got["paths"]["/api/v1/pods"], json!({"get": {}}));
        assert_eq!(names(&got["definitions"]), ["Meta", "Meta_v2", "Named", "Same", "Thing"]);
        let thing = &got["definitions"]["Thing"]["properties"];
        assert_eq!((&thing["meta"], &thing["same"]), (&reference("Meta_v2"), &reference("Same")));
        assert_eq!(got["definitions"]["Meta"], json!({"type": "object"}));
        assert_eq!(merged(json!({"a": 1}), &json!([1])), json!({"a": 1, "definitions": {}, "paths": {}}));
    }
}
