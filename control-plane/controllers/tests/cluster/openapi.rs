//! Whether a call is one that the API of Kubernetes 1.36 knows: its path, verb, query and the fields of its body.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::tap::Call;

pub struct Facts {
    facts: Value,
    /// Templates by the number of their parts.
    templates: BTreeMap<usize, Vec<String>>,
}

impl Facts {
    pub fn read() -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/facts/openapi-1.36.2.json");
        let text = std::fs::read_to_string(&file)
            .unwrap_or_else(|e| panic!("{}: {e}: the facts of the API are needed", file.display()));
        let facts: Value = serde_json::from_str(&text).unwrap();
        let mut templates: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for template in facts["paths"].as_object().unwrap().keys() {
            templates.entry(parts(template).len()).or_default().push(template.clone());
        }
        Self { facts, templates }
    }

    fn template(&self, path: &str) -> Option<&Value> {
        let wanted = parts(path);
        let fits = |template: &&String| {
            parts(template).iter().zip(&wanted).all(|(t, w)| t == w || t.starts_with('{'))
        };
        let found = self.templates.get(&wanted.len())?.iter().filter(fits);
        // What is written out counts before a placeholder.
        let best = found.min_by_key(|template| template.matches('{').count())?;
        Some(&self.facts["paths"][best.as_str()])
    }

    /// What is wrong with a call; nothing where it is known.
    pub fn judge(&self, call: &Call) -> Result<(), String> {
        let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
        let Some(known) = self.template(path) else {
            // Reading what discovery names is a collector's work; metrics are another server's API.
            return if call.is_write() { Err(format!("no such path: {path}")) } else { Ok(()) };
        };
        let verb = call.method.as_str().to_ascii_lowercase();
        let operation = &known["operations"][&verb];
        if operation.is_null() {
            return Err(format!("no {verb} on {path}"));
        }
        let allowed = operation["queryParameters"].as_array().cloned().unwrap_or_default();
        for name in query.split('&').filter_map(|pair| pair.split('=').next()).filter(|n| !n.is_empty()) {
            if !allowed.iter().any(|one| one == name) {
                return Err(format!("{verb} {path} has no parameter {name}"));
            }
        }
        let body: Value = match call.body.as_slice() {
            [] => return Ok(()),
            bytes => serde_json::from_slice(bytes).map_err(|e| format!("{path}: {e}"))?,
        };
        let is_patch = verb == "patch";
        let types = operation["consumes"].as_array().cloned().unwrap_or_default();
        if is_patch && !types.iter().any(|one| *one == call.content_type.as_str()) {
            return Err(format!("{path}: no patch of type {}", call.content_type));
        }
        let schema = if is_patch { &operation["responses"]["200"] } else { &operation["body"] };
        self.fields(&body, schema, "").map_err(|field| format!("{verb} {path}: no such field: {field}"))
    }

    fn fields(&self, value: &Value, schema: &Value, at: &str) -> Result<(), String> {
        if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/definitions/")) {
            return self.fields(value, &self.facts["definitions"][name], at);
        }
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.fields(item, &schema["items"], at)),
            Value::Object(map) => {
                let properties = schema["properties"].as_object();
                for (key, value) in map.iter().filter(|(key, _)| !key.starts_with('$')) {
                    let inner =
                        properties.and_then(|p| p.get(key)).or_else(|| schema.get("additionalProperties"));
                    match inner {
                        Some(inner) => self.fields(value, inner, &format!("{at}.{key}"))?,
                        // An object without properties holds anything.
                        None if properties.is_none() => {}
                        None => return Err(format!("{at}.{key}")),
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn parts(path: &str) -> Vec<&str> {
    path.trim_matches('/').split('/').collect()
}
