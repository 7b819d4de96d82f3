//! What schemas say beyond types: null, sets, whole objects inside, versions that end.

use super::*;

const PARTS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// A definition with these properties of `spec`.
async fn with(properties: Value) -> ApiServer {
    let server = server().await;
    let schema =
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}});
    let version =
        json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let (code, answer) = call(&server, "POST", CRDS, definition(vec![version])).await;
    assert_eq!(code, 201, "{answer}");
    server
}

#[tokio::test]
async fn null_is_kept_where_it_may_be_and_is_absence_elsewhere() {
    let server = with(json!({
        "may": {"type": "string", "nullable": true, "default": "d"},
        "not": {"type": "string", "default": "d"},
        "plain": {"type": "string"},
    }))
    .await;
    let spec = json!({"may": null, "not": null, "plain": null});
    let (code, made) = call(&server, "POST", PARTS, widget("a", spec)).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"may": null, "not": "d"})), "{made}");
    let (_, read) = get(&server, &format!("{PARTS}/a")).await;
    assert_eq!(read["spec"], json!({"may": null, "not": "d"}));
    // A merge patch takes the member away, and the default comes.
    let (code, patched) = call(&server, "PATCH", &format!("{PARTS}/a"), json!({"spec": {"may": null}})).await;
    assert_eq!((code, &patched["spec"]), (200, &json!({"may": "d", "not": "d"})), "{patched}");
}

#[tokio::test]
async fn objects_within_are_whole_objects() {
    let server = with(json!({
        "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
    }))
    .await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}, "bogus": 1}, "any": {"x": 1}});
    let (code, made) = call(&server, "POST", PARTS, widget("a", json!({"pod": pod}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["pod"]["metadata"], json!({"name": "p", "labels": {"a": "b"}}));
    assert_eq!(made["spec"]["pod"]["any"]["x"], 1);
    for (pod, words) in [
        (json!({"kind": "Pod"}), "spec.pod.apiVersion: Required value"),
        (json!({"apiVersion": "v1"}), "spec.pod.kind: Required value"),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a/b"}}),
            "spec.pod.metadata.name: Invalid value: \"a/b\": may not contain '/'",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a b": "c"}}}),
            "spec.pod.metadata.labels: Invalid value: \"a b\"",
        ),
    ] {
        let (code, refused) = call(&server, "POST", PARTS, widget("b", json!({"pod": pod}))).await;
        let said = refused["message"].as_str().unwrap_or("");
        assert!(code == 422 && said.contains(words), "{pod}: {refused}");
    }
}

#[tokio::test]
async fn sets_have_no_doubles_and_merge_by_value() {
    let server = with(json!({
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "whole": {"type": "array", "x-kubernetes-list-type": "atomic", "items": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
    }))
    .await;
    let (code, refused) = call(&server, "POST", PARTS, widget("a", json!({"tags": ["x", "y", "x"]}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        refused["message"],
        "Widget.example.com \"a\" is invalid: spec.tags[2]: Duplicate value: \"x\""
    );
    let apply = async |manager: &str, spec: Value| {
        let path = format!("{PARTS}/a?fieldManager={manager}");
        let body = widget("a", spec).to_string();
        send(&server, "PATCH", &path, "application/apply-patch+yaml", "application/json", body).await
    };
    let (code, made) = apply("one", json!({"tags": ["x"], "whole": ["x"], "free": {"x": "1"}})).await;
    assert_eq!(code, 201, "{made}");
    let (code, both) = apply("two", json!({"tags": ["y"]})).await;
    assert_eq!((code, &both["spec"]["tags"]), (200, &json!(["x", "y"])), "{both}");
    // What is one thing has one owner.
    for (spec, field) in
        [(json!({"whole": ["y"]}), ".spec.whole"), (json!({"free": {"y": "1"}}), ".spec.free")]
    {
        let (code, refused) = apply("two", spec).await;
        assert_eq!(code, 409, "{refused}");
        let words = format!("Apply failed with 1 conflict: conflict with \"one\": {field}");
        assert_eq!(refused["message"], words);
    }
}

#[tokio::test]
async fn versions_that_end_warn_whoever_calls() {
    let server = server().await;
    let mut old = version("v1", true);
    old["deprecated"] = true.into();
    let mut older = version("v1beta1", false);
    older["deprecated"] = true.into();
    older["deprecationWarning"] = "v1beta1 of Widget ends in spring".into();
    let (code, answer) =
        call(&server, "POST", CRDS, definition(vec![old, older, version("v2", false)])).await;
    assert_eq!(code, 201, "{answer}");
    let warned = async |method: &str, path: &str, body: Value| -> Vec<String> {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let service = server.service_as(UserInfo::new("admin", &["system:masters"]));
        let Ok(response) = service.oneshot(request.body(body).expect("request")).await;
        assert!(response.status().is_success(), "{method} {path}");
        let all = response.headers().get_all("warning").iter();
        all.filter_map(|v| v.to_str().ok().map(str::to_owned)).collect()
    };
    let words = "299 - \"example.com/v1 Widget is deprecated\"";
    let at =
        |version: &str, rest: &str| format!("/apis/example.com/{version}/namespaces/default/widgets{rest}");
    assert_eq!(warned("POST", &at("v1", ""), widget("a", json!({"size": 1}))).await, [words]);
    assert_eq!(warned("GET", &at("v1", "/a"), Value::Null).await, [words]);
    assert_eq!(warned("GET", &at("v1", ""), Value::Null).await, [words]);
    let own = "299 - \"v1beta1 of Widget ends in spring\"";
    assert_eq!(warned("GET", &at("v1beta1", "/a"), Value::Null).await, [own]);
    assert!(warned("GET", &at("v2", "/a"), Value::Null).await.is_empty());
    let endpoints = "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
    assert_eq!(warned("GET", "/api/v1/namespaces/default/endpoints", Value::Null).await, [endpoints]);
    assert_eq!(warned("DELETE", &at("v1", "/a"), Value::Null).await, [words]);
}

/// What one manager owns of an object, below `f:spec`.
fn owned(object: &Value, manager: &str) -> Value {
    let managers = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    managers.iter().find(|m| m["manager"] == manager).map_or(Value::Null, |m| m["fieldsV1"]["f:spec"].clone())
}

#[tokio::test]
async fn what_no_schema_describes_is_applied_as_it_looks() {
    let server = with(json!({
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
    }))
    .await;
    let apply = async |manager: &str, options: &str, spec: Value| {
        let path = format!("{PARTS}/a?fieldManager={manager}{options}");
        let body = widget("a", spec).to_string();
        send(&server, "PATCH", &path, "application/apply-patch+yaml", "application/json", body).await
    };
    // Maps by their members, lists as a whole; what no schema names is a field of its own.
    let free = json!({"n": 1, "deep": {"x": "1", "list": [1, 2]}, "empty": {}, "items": [{"name": "a"}]});
    let (code, made) = apply("one", "", json!({"free": free, "any": {"p": 1}})).await;
    assert_eq!(code, 201, "{made}");
    let deep = json!({".": {}, "f:x": {}, "f:list": {}});
    let all = json!({"f:n": {}, "f:deep": deep, "f:empty": {}, "f:items": {}});
    assert_eq!(owned(&made, "one"), json!({"f:free": all, "f:any": {"f:p": {}}}));
    let (code, both) = apply("two", "", json!({"free": {"deep": {"y": "2"}}, "any": {"q": [2]}})).await;
    assert_eq!(code, 200, "{both}");
    assert_eq!(both["spec"]["free"]["deep"], json!({"x": "1", "y": "2", "list": [1, 2]}));
    assert_eq!(both["spec"]["any"], json!({"p": 1, "q": [2]}));
    assert_eq!(
        owned(&both, "two"),
        json!({"f:free": {"f:deep": {".": {}, "f:y": {}}}, "f:any": {"f:q": {}}})
    );
    for (free, field) in [
        (json!({"deep": {"list": [1]}}), ".spec.free.deep.list"),
        (json!({"items": [{"name": "b"}]}), ".spec.free.items"),
        (json!({"deep": "flat"}), ".spec.free.deep"),
    ] {
        let (code, refused) = apply("two", "", json!({"free": free})).await;
        assert_eq!(code, 409, "{refused}");
        let words = format!("Apply failed with 1 conflict: conflict with \"one\": {field}");
        assert_eq!(refused["message"], words);
    }
    // A map that becomes something else takes what was owned in it along.
    let (code, flat) = apply("two", "&force=true", json!({"free": {"deep": "flat"}})).await;
    assert_eq!((code, &flat["spec"]["free"]["deep"]), (200, &json!("flat")), "{flat}");
    let left = json!({"f:n": {}, "f:empty": {}, "f:items": {}});
    assert_eq!(owned(&flat, "one"), json!({"f:free": left, "f:any": {"f:p": {}}}));
    assert_eq!(owned(&flat, "two"), json!({"f:free": {"f:deep": {}}}));
    // And the other way round.
    let (code, map) = apply("one", "&force=true", json!({"free": {"deep": {"x": "3"}, "n": 1}})).await;
    assert_eq!((code, &map["spec"]["free"]), (200, &json!({"deep": {"x": "3"}, "n": 1})), "{map}");
    let own = json!({"f:free": {"f:deep": {".": {}, "f:x": {}}, "f:n": {}}});
    assert_eq!((owned(&map, "one"), owned(&map, "two")), (own, Value::Null));
    assert_eq!(map["spec"].get("any"), None, "nobody owns what was in it: {map}");
}
