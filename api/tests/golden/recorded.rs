//! Reads the recorded exchanges.

use std::path::PathBuf;

use coracle_api::Gvk;
use serde_json::Value;

pub struct Exchange {
    pub name: String,
    pub method: String,
    pub path: String,
    pub content_type: String,
    pub body: String,
    pub status: u16,
    pub response: Value,
    headers: Value,
}

fn facts(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/facts").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| {
        panic!(
            "{}: {e}: the recorded facts of Kubernetes 1.36.2 must lie in ../shared beside the repository",
            path.display()
        )
    })
}

pub fn exchanges(topic: &str) -> Vec<Exchange> {
    facts(&format!("golden/{topic}.jsonl")).lines().map(read).collect()
}

fn read(line: &str) -> Exchange {
    let v: Value = serde_json::from_str(line).expect("a recorded line is JSON");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let body = match &v["body"] {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    Exchange {
        name: text(&v["name"]),
        method: text(&v["method"]),
        path: text(&v["path"]),
        content_type: text(&v["headers"]["Content-Type"]),
        body,
        status: v["status"].as_u64().unwrap_or(0) as u16,
        response: v["response"].clone(),
        headers: v["response_headers"].clone(),
    }
}

impl Exchange {
    pub fn query(&self, key: &str) -> Option<String> {
        let query = self.path.split_once('?')?.1;
        query.split('&').find_map(|p| p.strip_prefix(key)?.strip_prefix('=')).map(String::from)
    }

    /// The path of the object: without query and without `/status`.
    pub fn object_path(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        match (self.method.as_str(), self.response["metadata"]["name"].as_str()) {
            ("POST", Some(name)) => format!("{path}/{name}"),
            _ => path.to_string(),
        }
    }

    /// The kind of the body that the path takes.
    pub fn kind(&self) -> Option<Gvk> {
        let path = self.path.split('?').next()?;
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let rest = match rest {
            ["namespaces", _, rest @ ..]
                if !rest.is_empty() && rest != ["finalize"] && rest != ["status"] =>
            {
                rest
            }
            rest => rest,
        };
        // POST to an item and PUT to a collection are refused before the body is read.
        let (plural, sub) = match (self.method.as_str(), rest) {
            ("POST", [plural]) | ("PUT", [plural, _]) => (*plural, None),
            (_, [plural, _, sub]) => (*plural, Some(*sub)),
            _ => return None,
        };
        match sub {
            Some("scale") => return Some(Gvk::new("autoscaling", "v1", "Scale")),
            Some("eviction") => return Some(Gvk::new("policy", "v1", "Eviction")),
            Some("token") => return Some(Gvk::new("authentication.k8s.io", "v1", "TokenRequest")),
            Some("binding") => return Some(Gvk::new("", "v1", "Binding")),
            Some("status" | "finalize" | "resize" | "ephemeralcontainers") | None => {}
            Some(_) => return None,
        }
        let singular = |kind: &str| {
            let kind = kind.to_ascii_lowercase();
            let plurals = [format!("{kind}s"), format!("{kind}es"), kind.replace('y', "ies"), kind.clone()];
            plurals.iter().any(|p| p == plural)
                || (kind.ends_with('y') && format!("{}ies", &kind[..kind.len() - 1]) == plural)
        };
        let kinds = coracle_api::schema::types().iter().flat_map(|t| &t.gvks);
        kinds.into_iter().find(|g| g.group == group && g.version == version && singular(&g.kind)).cloned()
    }

    /// The objects of the answer: itself, or its items.
    pub fn objects(&self) -> Vec<Value> {
        let Some(kind) = self.response["kind"].as_str() else { return Vec::new() };
        if self.status >= 300 {
            return Vec::new();
        }
        match (kind.strip_suffix("List"), self.response["items"].as_array()) {
            (Some(item), Some(items)) => items
                .iter()
                .map(|object| {
                    let mut object = object.clone();
                    object["kind"] = item.into();
                    object["apiVersion"] = self.response["apiVersion"].clone();
                    object
                })
                .collect(),
            _ => vec![self.response.clone()],
        }
    }

    pub fn warnings(&self) -> Vec<String> {
        let list = match &self.headers["Warning"] {
            Value::Array(list) => list.clone(),
            Value::Null => Vec::new(),
            one => vec![one.clone()],
        };
        let unquote = |w: &Value| {
            let text = w.as_str().unwrap_or_default().trim_start_matches("299 - ");
            text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text).replace("\\\"", "\"")
        };
        list.iter().map(unquote).collect()
    }
}

/// The placeholders of the recording as values of the right type.
pub fn concrete(value: &Value) -> Value {
    match value {
        Value::String(s) if s == "<time>" => "2026-01-02T03:04:05Z".into(),
        Value::String(s) if s == "<port>" => 30000.into(),
        Value::Array(list) => list.iter().map(concrete).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), concrete(v))).collect(),
        other => other.clone(),
    }
}

/// Where two values differ, for people.
pub fn differences(ours: &Value, theirs: &Value) -> Vec<String> {
    let mut out = Vec::new();
    compare("", ours, theirs, &mut out);
    out
}

fn compare(at: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                match b.get(key) {
                    Some(other) => compare(&format!("{at}.{key}"), value, other, out),
                    None => out.push(format!("{at}.{key}: ours alone has {value}")),
                }
            }
            for (key, value) in b.iter().filter(|(k, _)| !a.contains_key(*k)) {
                out.push(format!("{at}.{key}: theirs alone has {value}"));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| compare(&format!("{at}[{i}]"), a, b, out));
        }
        (Value::String(a), Value::String(b)) if a.replace(".000000Z", "Z") == *b => {}
        _ if ours != theirs => out.push(format!("{at}: ours {ours}, theirs {theirs}")),
        _ => {}
    }
}

pub fn percent_decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).unwrap_or(0) as u8;
        out.push(match b {
            b'%' => hex(bytes.next()) * 16 + hex(bytes.next()),
            b'+' => b' ',
            b => b,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}
