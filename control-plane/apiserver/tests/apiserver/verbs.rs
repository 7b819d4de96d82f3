//! create, get, update, patch, delete and their errors.

use axum::body::Body;
use serde_json::{Value, json};

use crate::fixture::*;

fn cm(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

#[tokio::test]
async fn an_object_lives_and_dies() {
    let s = server();
    let made = call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(made.text("/metadata/namespace"), "n");
    assert_eq!(made.text("/metadata/uid").len(), 36);
    assert!(!made.text("/metadata/creationTimestamp").is_empty());
    let first = made.text("/metadata/resourceVersion").to_owned();
    assert!(first.parse::<u64>().is_ok());
    let path = &format!("{CONFIG_MAPS}/a");
    assert_eq!(get(&s, path).await.body, made.body);

    let again = call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    assert_eq!((again.code, again.message()), (409, "configmaps \"a\" already exists"));

    let mut changed = cm("a");
    changed["data"]["k"] = "w".into();
    let put = call(&s, "PUT", path, changed.clone()).await;
    assert_eq!((put.code, put.text("/data/k")), (200, "w"));
    assert_ne!(put.text("/metadata/resourceVersion"), first);
    assert_eq!(put.text("/metadata/uid"), made.text("/metadata/uid"));

    let noop = call(&s, "PUT", path, changed.clone()).await;
    assert_eq!(noop.text("/metadata/resourceVersion"), put.text("/metadata/resourceVersion"));

    changed["metadata"]["resourceVersion"] = first.into();
    let stale = call(&s, "PUT", path, changed).await;
    assert_eq!((stale.code, stale.text("/reason")), (409, "Conflict"));

    let gone = call(&s, "DELETE", path, Value::Null).await;
    assert_eq!(
        (gone.code, gone.text("/status"), gone.text("/details/uid")),
        (200, "Success", made.text("/metadata/uid"))
    );
    assert_eq!(get(&s, path).await.code, 404);
    assert_eq!(call(&s, "DELETE", path, Value::Null).await.message(), "configmaps \"a\" not found");
}

#[tokio::test]
async fn bad_writes_are_refused_in_kubernetes_words() {
    let s = server();
    call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    let item = &format!("{CONFIG_MAPS}/a");
    let with = |pointer: &str, value: Value| {
        let mut obj = cm("a");
        let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(parent) = obj.pointer_mut(parent) {
            parent[field] = value;
        }
        obj
    };
    let (dry, missing, below) =
        (&format!("{CONFIG_MAPS}?dryRun=Some"), &format!("{CONFIG_MAPS}/b"), &format!("{item}/nothing"));
    let table: Vec<(&str, &str, Value, u16, &str)> = vec![
        (
            "POST",
            CONFIG_MAPS,
            with("/metadata/name", "Bad_Name".into()),
            422,
            "ConfigMap \"Bad_Name\" is invalid: metadata.name: Invalid value",
        ),
        (
            "POST",
            CONFIG_MAPS,
            with("/metadata", json!({})),
            422,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            "POST",
            CONFIG_MAPS,
            with("/metadata/namespace", "m".into()),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            "POST",
            CONFIG_MAPS,
            with("/metadata/labels", json!({"a b": "c"})),
            422,
            "ConfigMap \"a\" is invalid: metadata.labels: Invalid value: \"a b\"",
        ),
        (
            "POST",
            CONFIG_MAPS,
            with("/metadata/finalizers", json!(["nodomain"])),
            422,
            "ConfigMap \"a\" is invalid: metadata.finalizers[0]: Invalid value: \"nodomain\": name is neither a standard finalizer name",
        ),
        ("POST", "/api/v1/configmaps", cm("a"), 405, "the server does not allow this method"),
        ("PUT", CONFIG_MAPS, cm("a"), 405, "the server does not allow this method"),
        ("POST", item, cm("a"), 405, "the server does not allow this method"),
        (
            "PUT",
            item,
            with("/metadata", json!({})),
            400,
            "the name of the object (a based on URL) was undeterminable: name must be provided",
        ),
        (
            "PUT",
            item,
            with("/metadata/namespace", "m".into()),
            400,
            "the namespace of the object (m) does not match the namespace on the request (n)",
        ),
        (
            "PUT",
            item,
            with("/metadata/name", "b".into()),
            400,
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            "PUT",
            item,
            with("/metadata/uid", "0".into()),
            409,
            "Operation cannot be fulfilled on configmaps \"a\": StorageError: invalid object, Code: 4, Key: /registry/configmaps/n/a",
        ),
        (
            "PUT",
            item,
            with("/metadata/resourceVersion", "abc".into()),
            500,
            "strconv.ParseUint: parsing \"abc\": invalid syntax",
        ),
        ("PUT", missing, cm("b"), 404, "configmaps \"b\" not found"),
        (
            "POST",
            dry,
            cm("x"),
            422,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Some\"]: supported values: \"All\"",
        ),
        (
            "GET",
            "/api/v1/namespaces/n/nothings",
            Value::Null,
            404,
            "the server could not find the requested resource",
        ),
        ("GET", below, Value::Null, 404, "the server could not find the requested resource"),
        (
            "POST",
            CONFIG_MAPS,
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}),
            400,
            "Secret in version \"v1\" cannot be handled as a ConfigMap",
        ),
        (
            "POST",
            CONFIG_MAPS,
            with("/data", json!({"a": 1})),
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number",
        ),
    ];
    for (method, path, body, code, words) in table {
        let answer = call(&s, method, path, body.clone()).await;
        assert_eq!(answer.code, code, "{method} {path} {body}: {}", answer.body);
        assert!(answer.message().starts_with(words), "{method} {path}: {}", answer.message());
    }
}

#[tokio::test]
async fn bodies_of_other_types() {
    let s = server();
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yam\ndata:\n  a: b\n";
    let made = read(send(&s, request("POST", CONFIG_MAPS, "application/yaml", yaml)).await).await;
    assert_eq!((made.code, made.text("/data/a")), (201, "b"), "{}", made.body);
    let refused = read(send(&s, request("POST", CONFIG_MAPS, "text/plain", "x")).await).await;
    assert_eq!((refused.code, refused.text("/reason")), (415, "UnsupportedMediaType"));
    let protobuf = "application/vnd.kubernetes.protobuf";
    // The envelope (v1, ConfigMap) around {metadata: {name: "p", namespace: ""}, data: {"a": "b"}}.
    let body =
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0f\x0a\x05\x0a\x01p\x1a\0\x12\x06\x0a\x01a\x12\x01b";
    let made = read(send(&s, request("POST", CONFIG_MAPS, protobuf, body.to_vec())).await).await;
    assert_eq!(
        (made.code, made.text("/data/a"), made.text("/metadata/name")),
        (201, "b", "p"),
        "{}",
        made.body
    );
    let bad = read(send(&s, request("POST", CONFIG_MAPS, protobuf, "x")).await).await;
    assert_eq!((bad.code, bad.text("/reason")), (400, "BadRequest"));
    let large = vec![b' '; (3 << 20) + 1];
    assert_eq!(read(send(&s, request("POST", CONFIG_MAPS, "application/json", large)).await).await.code, 413);
    let bad = read(send(&s, request("POST", CONFIG_MAPS, "application/json", "{\"kind\":")).await).await;
    assert_eq!((bad.code, bad.text("/reason")), (400, "BadRequest"));
    let yaml = get_as(&s, &format!("{CONFIG_MAPS}/yam"), "application/yaml").await;
    assert!(yaml.body.as_str().unwrap_or("").contains("kind: ConfigMap"), "{}", yaml.body);
    assert_eq!(get_as(&s, &format!("{CONFIG_MAPS}/yam"), "text/html").await.code, 406);
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_dropped() {
    let s = server();
    let mut obj = cm("a");
    obj["bogus"] = 1.into();
    let strict = call(&s, "POST", &format!("{CONFIG_MAPS}?fieldValidation=Strict"), obj.clone()).await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.message().ends_with("strict decoding error: unknown field \"bogus\""),
        "{}",
        strict.message()
    );
    let warned = call(&s, "POST", CONFIG_MAPS, obj.clone()).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.warnings(), ["299 - \"unknown field \\\"bogus\\\"\""]);
    assert_eq!(warned.at("/bogus"), &Value::Null);
    obj["metadata"]["name"] = "b".into();
    let ignored = call(&s, "POST", &format!("{CONFIG_MAPS}?fieldValidation=Ignore"), obj).await;
    assert_eq!((ignored.code, ignored.warnings().len()), (201, 0));
}

#[tokio::test]
async fn generated_names_and_dry_run() {
    let s = server();
    let obj = json!({"metadata": {"generateName": "gen-"}});
    let a = call(&s, "POST", CONFIG_MAPS, obj.clone()).await;
    let b = call(&s, "POST", CONFIG_MAPS, obj).await;
    assert_eq!((a.code, b.code), (201, 201), "{}", a.body);
    assert!(a.text("/metadata/name").starts_with("gen-") && a.text("/metadata/name").len() == 9);
    assert_ne!(a.text("/metadata/name"), b.text("/metadata/name"));
    let dry = call(&s, "POST", &format!("{CONFIG_MAPS}?dryRun=All"), cm("dry")).await;
    assert_eq!((dry.code, dry.at("/metadata/resourceVersion")), (201, &Value::Null));
    assert_eq!(get(&s, &format!("{CONFIG_MAPS}/dry")).await.code, 404);
    call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    let deleted = call(&s, "DELETE", &format!("{CONFIG_MAPS}/a?dryRun=All"), Value::Null).await;
    assert_eq!((deleted.code, get(&s, &format!("{CONFIG_MAPS}/a")).await.code), (200, 200));
}

#[tokio::test]
async fn patches_of_three_types() {
    let s = server();
    call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    let path = &format!("{CONFIG_MAPS}/a");
    let json_patch = "application/json-patch+json";
    let merged = call(&s, "PATCH", path, json!({"data": {"k": null, "m": "1"}})).await;
    assert_eq!(merged.at("/data"), &json!({"m": "1"}), "{}", merged.body);
    let patched =
        patch(&s, path, json_patch, json!([{"op": "add", "path": "/data/n", "value": "2"}]).to_string())
            .await;
    assert_eq!(patched.at("/data"), &json!({"m": "1", "n": "2"}), "{}", patched.body);
    let failed =
        patch(&s, path, json_patch, json!([{"op": "test", "path": "/data/n", "value": "3"}]).to_string())
            .await;
    assert_eq!(
        (failed.code, failed.message()),
        (422, "the server rejected our request due to an error in our request")
    );
    let stale =
        call(&s, "PATCH", path, json!({"metadata": {"resourceVersion": "1"}, "data": {"x": "y"}})).await;
    assert_eq!(stale.code, 409, "{}", stale.body);
    let apply = patch(&s, path, "application/apply-patch+yaml", "kind: ConfigMap").await;
    assert_eq!(apply.code, 422);
    assert!(apply.message().contains("fieldManager: Required value"), "{}", apply.message());
    assert_eq!(patch(&s, path, "application/json", "{}").await.message(), "415: Unsupported Media Type");
    let renamed = call(&s, "PATCH", path, json!({"metadata": {"name": "b"}})).await;
    assert_eq!(renamed.message(), "the name of the object (b) does not match the name on the URL (a)");
    assert_eq!(call(&s, "PATCH", &format!("{CONFIG_MAPS}/none"), json!({})).await.code, 404);
    let noop = call(&s, "PATCH", path, json!({"data": {"m": "1"}})).await;
    assert_eq!(noop.text("/metadata/resourceVersion"), patched.text("/metadata/resourceVersion"));
}

pub fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c1", "image": "i1"}, {"name": "c2", "image": "i2"}]}}}})
}

#[tokio::test]
async fn strategic_patches_merge_lists_by_key() {
    let s = server();
    assert_eq!(call(&s, "POST", DEPLOYMENTS, deployment("d")).await.code, 201);
    let body = json!({"spec": {"template": {"spec": {"containers": [{"name": "c2", "image": "new"}, {"name": "c1", "$patch": "delete"}]}}}});
    let patched =
        patch(&s, &format!("{DEPLOYMENTS}/d"), "application/strategic-merge-patch+json", body.to_string())
            .await;
    assert_eq!(patched.code, 200, "{}", patched.body);
    let containers = patched.at("/spec/template/spec/containers").as_array().cloned().unwrap_or_default();
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0]["image"], "new");
    assert_eq!(patched.at("/metadata/generation"), 2);
}

#[tokio::test]
async fn status_and_scale_are_subresources() {
    let s = server();
    call(&s, "POST", DEPLOYMENTS, deployment("d")).await;
    let path = format!("{DEPLOYMENTS}/d");
    let status = call(
        &s,
        "PATCH",
        &format!("{path}/status"),
        json!({"status": {"replicas": 5}, "spec": {"replicas": 9}}),
    )
    .await;
    assert_eq!(
        (status.at("/status/replicas"), status.at("/spec/replicas")),
        (&json!(5), &json!(1)),
        "{}",
        status.body
    );
    let main =
        call(&s, "PATCH", &path, json!({"status": {"replicas": 7}, "metadata": {"labels": {"x": "y"}}}))
            .await;
    assert_eq!((main.at("/status/replicas"), main.at("/metadata/generation")), (&json!(5), &json!(1)));
    let scale = get(&s, &format!("{path}/scale")).await;
    assert_eq!(
        (scale.text("/kind"), scale.at("/spec/replicas"), scale.at("/status")),
        ("Scale", &json!(1), &json!({"replicas": 5, "selector": "a=b"}))
    );
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = get_as(&s, &format!("{path}/scale"), table).await;
    let names: Vec<&str> = (0..4).map(|i| table.text(&format!("/columnDefinitions/{i}/name"))).collect();
    assert_eq!(names, ["Name", "Desired", "Available", "Age"], "{}", table.body);
    let cells = table.at("/rows/0/cells");
    assert_eq!((&cells[0], &cells[1], &cells[2]), (&json!("d"), &json!(1), &json!(5)), "{cells}");
    let scaled = call(&s, "PATCH", &format!("{path}/scale"), json!({"spec": {"replicas": 3}})).await;
    assert_eq!((scaled.code, scaled.at("/spec/replicas")), (200, &json!(3)), "{}", scaled.body);
    let put = call(&s, "PUT", &format!("{path}/scale"), json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": -1}})).await;
    assert_eq!(
        put.message(),
        "Scale.autoscaling \"d\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
    );
    let read = get(&s, &path).await;
    assert_eq!((read.at("/spec/replicas"), read.at("/metadata/generation")), (&json!(3), &json!(2)));
    assert_eq!(call(&s, "DELETE", &format!("{path}/scale"), Value::Null).await.code, 405);
}

#[tokio::test]
async fn finalizers_and_grace_hold_objects() {
    let s = server();
    let mut held = cm("f");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    call(&s, "POST", CONFIG_MAPS, held).await;
    let path = &format!("{CONFIG_MAPS}/f");
    let marked = call(&s, "DELETE", path, Value::Null).await;
    assert!(!marked.text("/metadata/deletionTimestamp").is_empty(), "{}", marked.body);
    let more =
        call(&s, "PATCH", path, json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}}))
            .await;
    assert!(
        more.message().contains("no new finalizers can be added if the object is being deleted"),
        "{}",
        more.body
    );
    assert_eq!(call(&s, "PATCH", path, json!({"metadata": {"finalizers": null}})).await.code, 200);
    assert_eq!(get(&s, path).await.code, 404);

    call(&s, "POST", CONFIG_MAPS, cm("p")).await;
    let foreground =
        call(&s, "DELETE", &format!("{CONFIG_MAPS}/p?propagationPolicy=Foreground"), Value::Null).await;
    assert_eq!(foreground.at("/metadata/finalizers"), &json!(["foregroundDeletion"]));

    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/n/pods";
    let made = call(&s, "POST", pods, pod).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let slow = call(&s, "DELETE", &format!("{pods}/p"), Value::Null).await;
    assert_eq!((slow.code, slow.at("/metadata/deletionGracePeriodSeconds")), (200, &json!(30)));
    let longer = call(&s, "DELETE", &format!("{pods}/p?gracePeriodSeconds=60"), Value::Null).await;
    assert_eq!(longer.at("/metadata/deletionGracePeriodSeconds"), 30);
    let now = call(&s, "DELETE", &format!("{pods}/p?gracePeriodSeconds=0"), Value::Null).await;
    assert_eq!((now.code, now.at("/metadata/deletionGracePeriodSeconds")), (200, &json!(0)));
    assert_eq!(get(&s, &format!("{pods}/p")).await.code, 404);
}

#[tokio::test]
async fn deletions_obey_preconditions() {
    let s = server();
    let made = call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    let path = &format!("{CONFIG_MAPS}/a");
    let wrong = call(&s, "DELETE", path, json!({"preconditions": {"uid": "x"}})).await;
    assert_eq!(wrong.code, 409);
    assert!(wrong.message().contains("the UID in the precondition (x)"), "{}", wrong.message());
    assert_eq!(call(&s, "DELETE", path, json!({"preconditions": {"resourceVersion": "1"}})).await.code, 409);
    let bogus = call(&s, "DELETE", path, json!({"propagationPolicy": "Bogus"})).await;
    assert_eq!(bogus.code, 422);
    let right = call(&s, "DELETE", path, json!({"preconditions": {"uid": made.text("/metadata/uid")}})).await;
    assert_eq!(right.code, 200);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let s = server();
    for (name, tier) in [("a", "1"), ("b", "2"), ("c", "1")] {
        let mut obj = cm(name);
        obj["metadata"]["labels"] = json!({"tier": tier});
        call(&s, "POST", CONFIG_MAPS, obj).await;
    }
    let deleted = call(&s, "DELETE", &format!("{CONFIG_MAPS}?labelSelector=tier%3D1"), Value::Null).await;
    assert_eq!(
        (deleted.code, deleted.at("/items").as_array().map(Vec::len)),
        (200, Some(2)),
        "{}",
        deleted.body
    );
    let left = get(&s, CONFIG_MAPS).await;
    assert_eq!(left.at("/items").as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn writers_that_meet_are_all_served() {
    let s = server();
    call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    let tasks: Vec<_> = (0..8)
        .map(|i| {
            let s = s.clone();
            tokio::spawn(async move {
                call(&s, "PATCH", &format!("{CONFIG_MAPS}/a"), json!({"data": {format!("k{i}"): "x"}}))
                    .await
                    .code
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.expect("task"), 200);
    }
    assert_eq!(get(&s, &format!("{CONFIG_MAPS}/a")).await.at("/data").as_object().map(|d| d.len()), Some(9));
}

#[tokio::test]
async fn odd_requests_are_errors_and_no_panics() {
    let s = server();
    call(&s, "POST", CONFIG_MAPS, cm("a")).await;
    let bodies = [
        "null",
        "[]",
        "1",
        "\"x\"",
        "{\"metadata\":5}",
        "{\"metadata\":[]}",
        "{\"metadata\":{\"name\":7}}",
        "{\"metadata\":{\"labels\":[1]}}",
        "{\"spec\":{\"replicas\":{}}}",
        "\u{0}",
        "{\"metadata\":{\"finalizers\":{}}}",
    ];
    for body in bodies {
        for (method, path) in [
            ("POST", CONFIG_MAPS.to_owned()),
            ("PUT", format!("{CONFIG_MAPS}/a")),
            ("DELETE", format!("{CONFIG_MAPS}/zz")),
            ("POST", DEPLOYMENTS.to_owned()),
        ] {
            let answer =
                read(send(&s, request(method, &path, "application/json", Body::from(body))).await).await;
            assert!(
                (400..500).contains(&answer.code) || answer.code == 200,
                "{method} {path} {body}: {} {}",
                answer.code,
                answer.body
            );
        }
        for content_type in [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ] {
            let answer = patch(&s, &format!("{CONFIG_MAPS}/a"), content_type, body).await;
            assert!(answer.code < 500, "{content_type} {body}: {} {}", answer.code, answer.body);
        }
    }
    for path in [
        "/api/v1/namespaces//configmaps",
        "/apis/",
        "/apis//v1/x",
        "/api/v1/namespaces/%2e%2e/configmaps",
        "/api/v1/namespaces/n/configmaps/a/b/c",
        "//",
        "/api/v1/namespaces/n/configmaps?limit=99999999999999999999",
    ] {
        assert!(get(&s, path).await.code < 500, "{path}");
    }
}
