//! Custom kinds over their life, against a server in this process: definition, objects, subresources, versions, deletion.

#[path = "custom_resources/names.rs"]
mod names;
#[path = "custom_resources/schemas.rs"]
mod schemas;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use coracle_apiserver::{ApiServer, UserInfo};
use coracle_registry::RegistryOptions;
use coracle_store::{Options, Store};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

async fn over(store: &Store) -> ApiServer {
    let options = RegistryOptions::default();
    let builtin = coracle_registry::builtin(&options, store).expect("options");
    let server = builtin.install(ApiServer::builder(Arc::new(store.clone()))).build();
    coracle_registry::bootstrap(&server, &options).await.expect("bootstrap");
    server
}

async fn server() -> ApiServer {
    over(&Store::in_memory(&Options::new("unused"))).await
}

async fn send(
    server: &ApiServer,
    method: &str,
    path: &str,
    kind: &str,
    accept: &str,
    body: String,
) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .header("accept", accept)
        .body(Body::from(body))
        .expect("request");
    let service = server.service_as(UserInfo::new("admin", &["system:masters"]));
    let Ok(response) = service.oneshot(request).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("body").to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn call(server: &ApiServer, method: &str, path: &str, body: Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    send(server, method, path, kind, "application/json", body).await
}

async fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    call(server, "GET", path, Value::Null).await
}

fn version(name: &str, storage: bool) -> Value {
    json!({
        "name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {
            "type": "object", "description": "A widget.",
            "properties": {
                "spec": {
                    "type": "object", "required": ["size"],
                    "x-kubernetes-validations": [
                        {"rule": "self.size <= self.max", "message": "size must not exceed max"},
                        {"rule": "self.size >= oldSelf.size", "messageExpression": "'may not shrink from ' + string(oldSelf.size)"},
                    ],
                    "properties": {
                        "size": {"type": "integer", "minimum": 1, "description": "How large."},
                        "max": {"type": "integer", "default": 100},
                        "color": {"type": "string", "enum": ["red", "green"]},
                    },
                },
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        }},
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector"}},
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "selectableFields": [{"jsonPath": ".spec.color"}],
    })
}

fn definition(versions: Vec<Value>) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn define(server: &ApiServer) {
    let (code, answer) = call(server, "POST", CRDS, definition(vec![version("v1", true)])).await;
    assert_eq!(code, 201, "{answer}");
}

#[tokio::test]
async fn a_definition_is_served_at_once() {
    let server = server().await;
    let (code, _) = get(&server, WIDGETS).await;
    assert_eq!(code, 404);
    let (code, made) = call(&server, "POST", CRDS, definition(vec![version("v1", true)])).await;
    assert_eq!(code, 201, "{made}");
    let conditions: Vec<(&str, &str)> = made["status"]["conditions"]
        .as_array()
        .expect("conditions")
        .iter()
        .map(|c| (c["type"].as_str().unwrap_or(""), c["status"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(conditions, [("NamesAccepted", "True"), ("Established", "True")]);
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(made["spec"]["names"]["listKind"], "WidgetList");
    let (code, list) = get(&server, WIDGETS).await;
    assert_eq!((code, list["kind"].as_str()), (200, Some("WidgetList")));
    let (_, resources) = get(&server, "/apis/example.com/v1").await;
    let names: Vec<&str> =
        resources["resources"].as_array().expect("list").iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (_, groups) = send(&server, "GET", "/apis", "", aggregated, String::new()).await;
    assert!(groups.to_string().contains("\"wd\""));
    let (_, v3) = get(&server, "/openapi/v3/apis/example.com/v1").await;
    let schema = &v3["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["description"], "How large.");
    let (_, v2) = get(&server, "/openapi/v2").await;
    assert!(v2["definitions"]["com.example.v1.Widget"].is_object());
    let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let (code, _) = send(&server, "GET", "/openapi/v2", "", protobuf, String::new()).await;
    assert_eq!(code, 200);
}

#[tokio::test]
async fn objects_are_checked_defaulted_and_pruned() {
    let server = server().await;
    define(&server).await;
    let (code, made) = call(&server, "POST", WIDGETS, widget("a", json!({"size": 3, "bogus": 1}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"size": 3, "max": 100})), "{made}");
    assert_eq!(made["metadata"]["generation"], 1);
    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    let (code, refused) = call(&server, "POST", &strict, widget("b", json!({"size": 3, "bogus": 1}))).await;
    assert_eq!(code, 400);
    let words = "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field \"spec.bogus\"";
    assert_eq!(refused["message"], words);
    let table = [
        (json!({}), "spec.size: Required value"),
        (
            json!({"size": 0}),
            "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
        ),
        (
            json!({"size": 1, "color": "blue"}),
            "spec.color: Unsupported value: \"blue\": supported values: \"red\", \"green\"",
        ),
        (json!({"size": 200}), "spec: Invalid value: \"object\": size must not exceed max"),
    ];
    for (spec, words) in table {
        let (code, refused) = call(&server, "POST", WIDGETS, widget("b", spec)).await;
        assert_eq!(code, 422, "{refused}");
        assert_eq!(refused["message"], format!("Widget.example.com \"b\" is invalid: {words}"));
    }
    let path = format!("{WIDGETS}/a");
    let (code, refused) = call(&server, "PATCH", &path, json!({"spec": {"size": 2}})).await;
    assert_eq!(code, 422, "{refused}");
    assert!(refused["message"].as_str().unwrap_or("").ends_with("may not shrink from 3"), "{refused}");
    let (code, grown) =
        call(&server, "PATCH", &path, json!({"spec": {"size": 4}, "status": {"phase": "no"}})).await;
    assert_eq!((code, &grown["metadata"]["generation"], &grown["status"]), (200, &json!(2), &Value::Null));
}

#[tokio::test]
async fn subresources_tables_and_selectors() {
    let server = server().await;
    define(&server).await;
    call(&server, "POST", WIDGETS, widget("a", json!({"size": 3, "color": "red"}))).await;
    call(&server, "POST", WIDGETS, widget("b", json!({"size": 5, "color": "green"}))).await;
    let status = json!({"spec": {"size": 9}, "status": {"phase": "Ready", "selector": "a=b", "size": 2}});
    let (code, answer) = call(&server, "PATCH", &format!("{WIDGETS}/a/status"), status).await;
    assert_eq!(
        (code, &answer["spec"]["size"], &answer["status"]["phase"]),
        (200, &json!(3), &json!("Ready"))
    );
    assert_eq!(answer["metadata"]["generation"], 1);
    let (code, scale) = get(&server, &format!("{WIDGETS}/a/scale")).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(3)));
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));
    let (code, _) =
        call(&server, "PATCH", &format!("{WIDGETS}/a/scale"), json!({"spec": {"replicas": 7}})).await;
    assert_eq!(code, 200);
    assert_eq!(get(&server, &format!("{WIDGETS}/a")).await.1["spec"]["size"], 7);
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let (_, table) = send(&server, "GET", WIDGETS, "", table, String::new()).await;
    let heads: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .expect("columns")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(heads, ["Name", "Size", "Phase", "Age"]);
    let cells = table["rows"][0]["cells"].as_array().expect("cells");
    assert_eq!(cells[..3], [json!("a"), json!(7), json!("Ready")]);
    assert_eq!(table["rows"][1]["cells"][2], Value::Null);
    let (_, green) = get(&server, &format!("{WIDGETS}?fieldSelector=spec.color%3Dgreen")).await;
    assert_eq!(green["items"].as_array().map(Vec::len), Some(1));
    // Unlike those of built-in kinds, listed custom objects say what they are.
    assert_eq!(green["items"][0]["kind"], "Widget");
    let (code, _) = get(&server, &format!("{WIDGETS}?fieldSelector=spec.size%3D3")).await;
    assert_eq!(code, 400);
}

/// Waits until a path is answered with this code; bounded.
async fn until(server: &ApiServer, path: &str, code: u16) {
    let wait = async {
        while get(server, path).await.0 != code {
            tokio::task::yield_now().await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(10), wait).await;
    assert!(done.is_ok(), "{path} is not answered with {code}");
}

#[tokio::test]
async fn versions_convert_and_schemas_change() {
    let store = Store::in_memory(&Options::new("unused"));
    let server = over(&store).await;
    define(&server).await;
    call(&server, "POST", WIDGETS, widget("a", json!({"size": 3}))).await;
    let (_, mut found) = get(&server, &format!("{CRDS}/widgets.example.com")).await;
    let mut old = version("v1", false);
    old["deprecated"] = true.into();
    let mut new = version("v2", true);
    new["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["mood"] =
        json!({"type": "string", "default": "calm"});
    found["spec"]["versions"] = json!([old, new]);
    let (code, changed) = call(&server, "PUT", &format!("{CRDS}/widgets.example.com"), found).await;
    assert_eq!(code, 200, "{changed}");
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let path = "/apis/example.com/v2/namespaces/default/widgets/a";
    let (_, a) = get(&server, path).await;
    assert_eq!((&a["apiVersion"], &a["spec"]["mood"]), (&json!("example.com/v2"), &json!("calm")));
    // Another member, that has seen none of these calls.
    let other = over(&store).await;
    let (code, a) = get(&other, path).await;
    assert_eq!((code, &a["apiVersion"]), (200, &json!("example.com/v2")));
    let (code, _) = call(&other, "PATCH", &format!("{WIDGETS}/a"), json!({"spec": {"size": 4}})).await;
    assert_eq!(code, 200);
    assert_eq!(get(&server, path).await.1["spec"]["size"], 4);
}

#[tokio::test]
async fn deletion_takes_the_objects_with_it() {
    let server = server().await;
    define(&server).await;
    call(&server, "POST", WIDGETS, widget("a", json!({"size": 3}))).await;
    let mut held = widget("held", json!({"size": 3}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    call(&server, "POST", WIDGETS, held).await;
    let crd = format!("{CRDS}/widgets.example.com");
    let (code, marked) = call(&server, "DELETE", &crd, Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    until(&server, &format!("{WIDGETS}/a"), 404).await;
    assert_eq!(get(&server, &format!("{WIDGETS}/held")).await.0, 200);
    let (code, refused) = call(&server, "POST", WIDGETS, widget("late", json!({"size": 1}))).await;
    assert_eq!(code, 405, "{refused}");
    let (code, _) =
        call(&server, "PATCH", &format!("{WIDGETS}/held"), json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(code, 200);
    until(&server, &crd, 404).await;
    assert_eq!(get(&server, WIDGETS).await.0, 404);
}

#[tokio::test]
async fn wrong_definitions_are_refused_with_paths() {
    let server = server().await;
    let mut wrong = definition(vec![version("v1", true), version("v1", true)]);
    wrong["metadata"]["name"] = "wrong.example.com".into();
    wrong["spec"]["scope"] = "Global".into();
    wrong["spec"]["conversion"] = json!({"strategy": "Webhook"});
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["x"] =
        json!({});
    wrong["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{"rule": "self.size <"}]);
    let (code, refused) = call(&server, "POST", CRDS, wrong).await;
    assert_eq!(code, 422);
    let message = refused["message"].as_str().unwrap_or("");
    for words in [
        "metadata.name: Invalid value: \"wrong.example.com\": must be spec.names.plural+\".\"+spec.group",
        "spec.scope: Unsupported value: \"Global\"",
        "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
        "must contain unique version names",
        "must have exactly one version marked as storage version",
        "spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[x].type: Required value",
    ] {
        assert!(message.contains(words), "{words} is not in {message}");
    }
}
