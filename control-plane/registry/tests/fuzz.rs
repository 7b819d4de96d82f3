//! What callers send breaks nothing: whole calls made of changed ones, against a server in this process. No answer is an internal
//! error, and nothing panics. Each target first replays its files in `fuzz/corpus`, then a bounded number of changed ones from a
//! seed that is always the same. A long run: `FUZZ_RUNS=1000000 FUZZ_SEED=7 cargo test -p coracle-registry --test fuzz TARGET`;
//! what it finds is written into the corpus, so that it is replayed from then on.

#[path = "fuzz/engine.rs"]
mod engine;

use std::sync::Arc;

use axum::body::Body;
use coracle_apiserver::{ApiServer, UserInfo};
use coracle_registry::RegistryOptions;
use coracle_store::{Options, Store};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// What Kubernetes answers with 500 and no reason, though it is the caller's mistake.
const PLAIN: [&str; 5] = [
    "resourceVersion: Invalid value: ",
    "resourceVersion should not be set on objects to be created",
    "strconv.ParseUint: parsing ",
    "target.kind: Unsupported value: ",
    "target.name: Required value",
];

async fn server() -> ApiServer {
    let store = Store::in_memory(&Options::new("unused"));
    let options = RegistryOptions::default();
    let builtin = coracle_registry::builtin(&options, &store).expect("options");
    let server = builtin.install(ApiServer::builder(Arc::new(store))).build();
    coracle_registry::bootstrap(&server, &options).await.expect("bootstrap");
    server
}

/// The code and the answer of a call; an internal error is one of the server's own making.
async fn call(
    server: &ApiServer,
    (method, path, kind): (&str, &str, &str),
    body: Vec<u8>,
) -> Result<(u16, Value), String> {
    let request =
        Request::builder().method(method).uri(path).header("content-type", kind).body(Body::from(body));
    // What is no call of HTTP does not reach the server.
    let Ok(request) = request else { return Ok((0, Value::Null)) };
    let service = server.service_as(UserInfo::new("admin", &["system:masters"]));
    let Ok(response) = service.oneshot(request).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    // Kubernetes too answers 504 for a version that lies ahead, and 500 without a reason for patches that fit no type.
    let is_kubernetes = match code {
        500 if answer["kind"] == "Status" && answer["reason"].is_null() => {
            let message = answer["message"].as_str().unwrap_or_default();
            method == "PATCH" || PLAIN.iter().any(|words| message.starts_with(words))
        }
        504 => answer["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge",
        _ => code < 500,
    };
    if !is_kubernetes {
        return Err(format!("{method} {path}: {code}: {}", String::from_utf8_lossy(&bytes)));
    }
    Ok((code, answer))
}

async fn made(server: &ApiServer, path: &str, object: Value) {
    let (code, answer) = call(server, ("POST", path, "application/json"), object.to_string().into_bytes())
        .await
        .expect("an answer");
    assert_eq!(code, 201, "{answer}");
}

/// The first line, of three words, and what follows it.
fn headed(input: &[u8]) -> Option<([&str; 3], &[u8])> {
    let end = input.iter().position(|b| *b == b'\n')?;
    let (line, rest) = input.split_at(end);
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    Some(([words.next()?, words.next()?, words.next()?], rest.get(1..).unwrap_or_default()))
}

fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("%{b:02X}")).collect()
}

fn widgets(schema: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

/// Files begin with a line of method, path and content type; the rest is the body.
#[tokio::test]
async fn bodies_of_any_kind() {
    let server = server().await;
    engine::run("bodies", async |input: &[u8]| {
        let Some((head, body)) = headed(input) else { return Ok(()) };
        call(&server, (head[0], head[1], head[2]), body.to_vec()).await.map(drop)
    })
    .await;
}

/// As bodies; the objects that are patched are a Deployment and a custom object.
#[tokio::test]
async fn patches_of_any_kind() {
    let server = server().await;
    let free = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
        "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "at": {"x-kubernetes-int-or-string": true},
    }});
    made(&server, CRDS, widgets(&json!({"type": "object", "properties": {"spec": free}}))).await;
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
        "spec": {"items": [{"name": "a", "n": 1}], "tags": ["x"], "at": 1, "free": {"a": [1]}}});
    made(&server, "/apis/example.com/v1/widgets", widget).await;
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
    "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
        "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "env": [{"name": "E", "value": "1"}]}],
    }}}});
    made(&server, "/apis/apps/v1/namespaces/default/deployments", deployment).await;
    engine::run("patches", async |input: &[u8]| {
        let Some((head, body)) = headed(input) else { return Ok(()) };
        call(&server, (head[0], head[1], head[2]), body.to_vec()).await.map(drop)
    })
    .await;
}

/// Files begin with a line of method, path and the name of an option; the rest is the option's value.
#[tokio::test]
async fn options_of_any_text() {
    let server = server().await;
    engine::run("queries", async |input: &[u8]| {
        let Some((head, value)) = headed(input) else { return Ok(()) };
        let path = format!("{}?{}={}", head[1], head[2], escaped(value));
        call(&server, (head[0], &path, "application/json"), Vec::new()).await.map(drop)
    })
    .await;
}

/// Files are schemas of a definition; with those that are accepted an object is made.
#[tokio::test]
async fn schemas_of_any_shape() {
    let server = server().await;
    engine::run("definitions", async |input: &[u8]| defined(&server, input).await).await;
}

async fn defined(server: &ApiServer, schema: &[u8]) -> Result<(), String> {
    const JSON: &str = "application/json";
    let own = format!("{CRDS}/widgets.example.com");
    let Ok(schema) = serde_json::from_slice::<Value>(schema) else { return Ok(()) };
    let body = widgets(&schema).to_string().into_bytes();
    let (code, _) = call(server, ("POST", CRDS, JSON), body).await?;
    if code != 201 {
        return Ok(());
    }
    let specs = [
        json!({"n": 1, "max": 2, "s": "a", "list": [1, 2], "labels": {"a": "b"}, "when": "2026-01-01T00:00:00Z"}),
        json!({"n": i64::MIN, "max": i64::MAX, "s": "", "list": [], "labels": {}}),
        json!({"n": "x", "list": {"a": null}, "labels": [1.5, 1e300]}),
    ];
    for spec in specs {
        let object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
        let body = object.to_string().into_bytes();
        call(server, ("POST", "/apis/example.com/v1/widgets?dryRun=All", JSON), body).await?;
    }
    call(server, ("GET", "/apis/example.com/v1/widgets", JSON), Vec::new()).await?;
    let (code, answer) = call(server, ("DELETE", &own, JSON), Vec::new()).await?;
    if code != 200 {
        return Err(format!("the definition stays: {code} {answer}"));
    }
    gone(server, &own).await
}

/// Waits until a definition is gone: that of the next round has the same name.
async fn gone(server: &ApiServer, path: &str) -> Result<(), String> {
    for _ in 0..20_000 {
        if call(server, ("GET", path, "application/json"), Vec::new()).await?.0 == 404 {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
    Err("the definition does not go".into())
}

/// Files are expressions: rules of a definition, and of a policy.
#[tokio::test]
async fn expressions_of_any_text() {
    let server = server().await;
    engine::run("expressions", async |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let schema = json!({"type": "object", "properties": {"spec": {
            "type": "object", "x-kubernetes-validations": [{"rule": text}],
            "properties": {
                "n": {"type": "integer"}, "max": {"type": "integer"}, "s": {"type": "string", "maxLength": 10},
                "when": {"type": "string", "format": "date-time"},
                "list": {"type": "array", "maxItems": 5, "items": {"type": "integer"}},
                "labels": {"type": "object", "maxProperties": 5, "additionalProperties": {"type": "string", "maxLength": 10}},
            },
        }}});
        defined(&server, schema.to_string().as_bytes()).await?;
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"},
            "spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
                "validations": [{"expression": text}],
            },
        });
        let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies?dryRun=All";
        call(&server, ("POST", path, "application/json"), policy.to_string().into_bytes()).await.map(drop)
    })
    .await;
}
