//! Exchanges recorded from Kubernetes 1.36.2, replayed from the first to the last of each file against a server in this process.
//!
//! `tests/golden-differences.txt` names every exchange that still differs, with the reason; the test fails when one differs that is
//! not named, and when one is named that no longer differs. `GOLDEN_UPDATE=1` writes the file anew with the known reasons; what is new
//! in it has to be given a reason by hand.
//!
//! Two differences hold everywhere and are taken out on both sides before comparing: answers to questions (reviews) carry no managed fields, and the volume
//! with a pod's token, whose name is chance and which the recording's distribution gave a file of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use coracle_apiserver::{ApiServer, UserInfo};
use coracle_registry::{Cidr, RegistryOptions};
use coracle_store::{Options, Store};
use http::{HeaderName, Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

const FILES: [&str; 6] =
    ["01-crud", "02-defaulting", "03-validation", "04-patch", "05-lists", "06-subresources"];
const PLACEHOLDERS: [&str; 9] =
    ["<uid>", "<rv>", "<time>", "<rand>", "<continue>", "<ip>", "<port>", "<age>", "<token>"];
/// Values that the recording replaced whole, numbers included.
const WHOLE: [&str; 2] = ["<port>", "<age>"];

async fn server() -> ApiServer {
    let store = Arc::new(Store::in_memory(&Options::new("unused")));
    // Recorded on a cluster whose pods do not live on loopback addresses.
    let options = RegistryOptions {
        pod_cidr: Cidr::parse("10.42.0.0/16").expect("range"),
        api_server: ("10.0.0.1".parse().expect("address"), 6443),
        fixed_tokens: vec![("admin-token".into(), UserInfo::new("admin", &["system:masters"]))],
        // There was no StorageClass.
        default_storage_class: false,
        ..RegistryOptions::default()
    };
    let server = coracle_registry::builtin(&options, &store)
        .expect("options")
        .install(ApiServer::builder(store))
        .build();
    coracle_registry::bootstrap(&server, &options).await.expect("bootstrap");
    server
}

/// Who made the recorded call.
fn caller(exchange: &Value) -> UserInfo {
    let identity = &exchange["identity"];
    if let Some(user) = identity["impersonateUser"].as_str() {
        return UserInfo::new(user, &[]);
    }
    if identity["token"] == "" {
        return UserInfo::anonymous();
    }
    UserInfo::new("admin", &["system:masters"])
}

fn is_token_volume(value: &Value) -> bool {
    value["name"].as_str().is_some_and(|n| n.starts_with("kube-api-access-"))
}

/// Whether objects of a kind are answered and not kept, so that nobody owns them.
fn is_question(kind: &str) -> bool {
    kind.ends_with("Review") || kind == "TokenRequest"
}

/// Takes out what differs everywhere.
fn normalize(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("kind").and_then(Value::as_str).is_some_and(is_question)
                && let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut)
            {
                metadata.remove("managedFields");
            }
            for key in ["volumes", "volumeMounts"] {
                if let Some(list) = map.get_mut(key).and_then(Value::as_array_mut) {
                    let had = list.len();
                    list.retain(|v| !is_token_volume(v));
                    if had > 0 && list.is_empty() {
                        map.remove(key);
                    }
                }
            }
            map.values_mut().for_each(normalize);
        }
        Value::Array(items) => items.iter_mut().for_each(normalize),
        _ => {}
    }
}

/// Whether text is as expected, where a placeholder stands for any text.
fn text_matches(expected: &str, actual: &str) -> bool {
    let first = PLACEHOLDERS.iter().filter_map(|p| expected.find(p).map(|at| (at, p))).min();
    let Some((at, placeholder)) = first else { return expected == actual };
    let (before, after) = (&expected[..at], &expected[at + placeholder.len()..]);
    let Some(rest) = actual.strip_prefix(before) else { return false };
    if after.is_empty() {
        return true;
    }
    (0..=rest.len()).any(|i| rest.is_char_boundary(i) && text_matches(after, &rest[i..]))
}

fn differences(path: &str, expected: &Value, actual: &Value, out: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(e), Value::Object(a)) => {
            for key in e.keys().chain(a.keys()).collect::<BTreeSet<_>>() {
                let (missing, at) = (json!("<absent>"), format!("{path}/{key}"));
                differences(&at, e.get(key).unwrap_or(&missing), a.get(key).unwrap_or(&missing), out);
            }
        }
        (Value::Array(e), Value::Array(a)) if e.len() == a.len() => {
            e.iter()
                .zip(a)
                .enumerate()
                .for_each(|(i, (e, a))| differences(&format!("{path}/{i}"), e, a, out));
        }
        (Value::String(e), Value::Number(_)) if WHOLE.contains(&e.as_str()) => {}
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

async fn answer(server: &ApiServer, exchange: &Value, answers: &BTreeMap<String, Value>) -> Response<Body> {
    let text = |key: &str| exchange[key].as_str().unwrap_or("");
    let body = match &exchange["body"] {
        Value::Null => String::new(),
        Value::String(raw) => raw.clone(),
        value => value.to_string(),
    };
    let mut request = Request::builder()
        .header("user-agent", "golden/1.0")
        .method(text("method"))
        .uri(filled(text("path"), answers))
        .body(Body::from(filled(&body, answers)))
        .expect("request");
    for (name, value) in exchange["headers"].as_object().into_iter().flatten() {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("header");
        request.headers_mut().insert(name, value.as_str().unwrap_or("").parse().expect("header"));
    }
    match server.service_as(caller(exchange)).oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// What differs; empty for nothing.
async fn replay(server: &ApiServer, exchange: &Value, answers: &mut BTreeMap<String, Value>) -> Vec<String> {
    let response = answer(server, exchange, answers).await;
    let code = response.status().as_u16();
    let warnings: Vec<String> = response
        .headers()
        .get_all("warning")
        .iter()
        .filter_map(|v| v.to_str().ok().map(str::to_string))
        .collect();
    let bytes = response.into_body().collect().await.expect("body").to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut expected = exchange["response"].clone();
    let mut actual: Value = if expected.is_array() {
        text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).collect::<Vec<_>>().into()
    } else {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    answers.insert(exchange["name"].as_str().unwrap_or("").to_owned(), actual.clone());
    normalize(&mut expected);
    normalize(&mut actual);
    let mut out = Vec::new();
    if exchange["status"] != code {
        out.push(format!("expected code {}, got {code}", exchange["status"]));
    }
    differences("", &expected, &actual, &mut out);
    let wanted = exchange["response_headers"].get("Warning").cloned().unwrap_or_else(|| json!([]));
    if wanted != json!(warnings) {
        out.push(format!("expected warnings {wanted}, got {warnings:?}"));
    }
    out
}

fn known(path: &PathBuf) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    lines.filter_map(|l| l.split_once(": ")).map(|(n, r)| (n.to_string(), r.to_string())).collect()
}

#[tokio::test]
async fn exchanges_recorded_from_kubernetes() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = manifest.join("../../../shared/facts/golden");
    let list = manifest.join("tests/golden-differences.txt");
    let known = known(&list);
    let only = std::env::var("GOLDEN_ONLY").unwrap_or_default();
    let (mut found, mut report, mut counts) = (BTreeMap::new(), String::new(), String::new());
    let mut unexplained = Vec::new();
    for file in FILES {
        let path = folder.join(format!("{file}.jsonl"));
        let lines = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}: the recorded exchanges are needed", path.display()));
        let server = server().await;
        let mut answers = BTreeMap::new();
        let (mut total, mut same) = (0, 0);
        for line in lines.lines() {
            let exchange: Value = serde_json::from_str(line).expect("exchange");
            let name = format!("{file}/{}", exchange["name"].as_str().unwrap_or(""));
            let wrong = replay(&server, &exchange, &mut answers).await;
            total += 1;
            if wrong.is_empty() {
                same += 1;
                continue;
            }
            let reason = known.get(&name).cloned();
            if !known.contains_key(&name) || (!only.is_empty() && name.contains(&only)) {
                report.push_str(&format!(
                    "{name} {} {}\n    {}\n",
                    exchange["method"],
                    exchange["path"],
                    wrong.join("\n    ")
                ));
            }
            match reason {
                Some(reason) => found.insert(name, reason),
                None => {
                    unexplained.push(name);
                    None
                }
            };
        }
        counts.push_str(&format!("{file}: {same} of {total} exchanges are as recorded\n"));
    }
    println!("{counts}\n{report}");
    if std::env::var_os("GOLDEN_UPDATE").is_some() {
        let mut text =
            String::from("# Recorded exchanges that are answered otherwise, and why. See golden.rs.\n");
        found.iter().for_each(|(name, reason)| text.push_str(&format!("{name}: {reason}\n")));
        std::fs::write(&list, text).expect("golden-differences.txt");
        assert!(unexplained.is_empty(), "differ, and the list must say why: {unexplained:?}");
        return;
    }
    assert!(unexplained.is_empty(), "{counts}differ and are not named: {unexplained:?}\n{report}");
    let (found, known): (BTreeSet<_>, BTreeSet<_>) =
        (found.into_keys().collect(), known.into_keys().collect());
    let new: Vec<_> = found.difference(&known).collect();
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "{counts}differ now: {new:?}\nno longer differ: {gone:?}\n{report}"
    );
}
