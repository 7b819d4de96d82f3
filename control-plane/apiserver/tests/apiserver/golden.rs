//! Exchanges recorded from Kubernetes on a kind without rules of its own, replayed. What differs is listed by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use axum::body::Body;
use coracle_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::fixture::*;

const FILES: [&str; 4] = ["01-crud", "04-patch", "05-lists", "06-subresources"];
const PLACEHOLDERS: [&str; 5] = ["<uid>", "<rv>", "<time>", "<rand>", "<continue>"];

/// Exchanges that need what is not here: rules of the kind, other identities, protobuf. Each is checked where that is.
fn elsewhere(name: &str) -> bool {
    const PREFIXES: [&str; 10] = [
        "cm-immutable",
        "cm-bad-data",
        "cm-data-binary",
        "delete-immutable",
        "table-",
        "watch-table",
        "rbac-",
        "imp-",
        "no-token",
        "bad-token",
    ];
    const NAMES: [&str; 2] = ["cm-create-missing-namespace", "ns2-create-in-terminating"];
    PREFIXES.iter().any(|p| name.starts_with(p)) || NAMES.contains(&name)
}

/// What differs, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("01-crud/accept-unsupported", "answers are never protobuf"),
    ("05-lists/as-unknown", "answers are never protobuf"),
    ("01-crud/accept-yaml", "members come in another order"),
    ("04-patch/ssa-malformed", "words of another YAML decoder"),
    ("04-patch/json-wrong-type-result", "the error quotes the object, with sorted metadata"),
    ("04-patch/merge-unknown-field-strict", "the same"),
    ("04-patch/merge-wrong-type", "the same"),
];

/// Whether text is as expected, where a placeholder stands for any text.
fn text_matches(expected: &str, actual: &str) -> bool {
    let Some((at, placeholder)) =
        PLACEHOLDERS.iter().filter_map(|p| expected.find(p).map(|at| (at, p))).min()
    else {
        return expected == actual;
    };
    let (before, after) = (&expected[..at], &expected[at + placeholder.len()..]);
    let Some(rest) = actual.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|i| rest.is_char_boundary(i) && text_matches(after, &rest[i..]))
}

fn differences(path: &str, expected: &Value, actual: &Value, out: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(e), Value::Object(a)) => {
            for key in e.keys().chain(a.keys()).collect::<BTreeSet<_>>() {
                let at = format!("{path}/{key}");
                differences(&at, e.get(key).unwrap_or(&Value::Null), a.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(e), Value::Array(a)) if e.len() == a.len() => {
            e.iter()
                .zip(a)
                .enumerate()
                .for_each(|(i, (e, a))| differences(&format!("{path}/{i}"), e, a, out));
        }
        (Value::String(e), Value::String(a)) if text_matches(e, a) => {}
        (e, a) if e == a => {}
        (e, a) => out.push(format!("{path}: expected {e}, got {a}")),
    }
}

/// Replaces `${name:path.in.response}` by what the server answered then.
fn filled(text: &str, answers: &BTreeMap<String, Value>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (reference, tail) = after.split_once('}').expect("closed reference");
        let (name, path) = reference.split_once(':').expect("name and path");
        let value = answers.get(name).and_then(|v| v.pointer(&format!("/{}", path.replace('.', "/"))));
        out.push_str(before);
        out.push_str(value.and_then(Value::as_str).unwrap_or(""));
        rest = tail;
    }
    out + rest
}

async fn replay(server: &ApiServer, exchange: &Value, answers: &mut BTreeMap<String, Value>) -> Vec<String> {
    let text = |key: &str| exchange[key].as_str().unwrap_or("");
    let body = match &exchange["body"] {
        Value::Null => String::new(),
        Value::String(raw) => raw.clone(),
        value => value.to_string(),
    };
    let mut request = request(
        text("method"),
        &filled(text("path"), answers),
        "application/json",
        Body::from(filled(&body, answers)),
    );
    request.headers_mut().insert("user-agent", "golden/1.0".parse().expect("header"));
    for (name, value) in exchange["headers"].as_object().into_iter().flatten() {
        let name = http::HeaderName::from_bytes(name.as_bytes()).expect("header");
        request.headers_mut().insert(name, value.as_str().unwrap_or("").parse().expect("header"));
    }
    let answer = read(send(server, request).await).await;
    answers.insert(text("name").to_owned(), answer.body.clone());
    let mut out = Vec::new();
    if exchange["status"] != answer.code {
        out.push(format!("expected code {}, got {}", exchange["status"], answer.code));
    }
    let expected = exchange["response"].clone();
    let mut actual = answer.body.clone();
    if expected.is_array() {
        actual = match &actual {
            Value::String(lines) => {
                lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).collect::<Vec<_>>().into()
            }
            Value::Null => json!([]),
            one => json!([one]),
        };
    }
    differences("", &expected, &actual, &mut out);
    let warnings = exchange["response_headers"].get("Warning").cloned().unwrap_or_else(|| json!([]));
    if warnings != json!(answer.warnings()) {
        out.push(format!("expected warnings {warnings}, got {:?}", answer.warnings()));
    }
    out
}

#[tokio::test]
async fn exchanges_recorded_from_kubernetes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/facts/golden");
    let mut differing = BTreeSet::new();
    let (mut report, mut count) = (String::new(), 0);
    for file in FILES {
        let path = folder.join(format!("{file}.jsonl"));
        let lines = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}: the recorded exchanges are needed", path.display()));
        let server = server();
        let mut answers = BTreeMap::new();
        for line in lines.lines() {
            let exchange: Value = serde_json::from_str(line).expect("exchange");
            let (name, path) =
                (exchange["name"].as_str().unwrap_or(""), exchange["path"].as_str().unwrap_or(""));
            if !path.contains("/configmaps") && !path.contains("nothing") || elsewhere(name) {
                continue;
            }
            count += 1;
            let wrong = replay(&server, &exchange, &mut answers).await;
            if !wrong.is_empty() {
                differing.insert(format!("{file}/{name}"));
                report.push_str(&format!(
                    "{file}/{name} {} {path}\n    {}\n",
                    exchange["method"],
                    wrong.join("\n    ")
                ));
            }
        }
    }
    let known: BTreeSet<String> = DIFFERENT.iter().map(|(name, _)| (*name).to_owned()).collect();
    println!("{count} exchanges, {} differ\n{report}", differing.len());
    assert_eq!(differing, known, "of {count} exchanges these differ now, or no longer:\n{report}");
}
