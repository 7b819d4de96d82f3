//! Lists: selectors, pages, revisions, and the forms they come in.

use serde_json::{Value, json};

use crate::fixture::*;

async fn filled() -> coracle_apiserver::ApiServer {
    let s = server();
    for (name, labels) in [
        ("c0", json!({"app": "web", "tier": "1"})),
        ("c1", json!({"app": "web"})),
        ("c2", json!({"app": "db"})),
        ("c3", json!({})),
    ] {
        let obj = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"i": name}});
        assert_eq!(call(&s, "POST", CONFIG_MAPS, obj).await.code, 201);
    }
    let other = json!({"metadata": {"name": "c9"}});
    assert_eq!(call(&s, "POST", "/api/v1/namespaces/m/configmaps", other).await.code, 201);
    s
}

fn names(answer: &Answer) -> Vec<&str> {
    let items = answer.at("/items").as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|i| i.pointer("/metadata/name").and_then(Value::as_str)).collect()
}

#[tokio::test]
async fn selectors_choose() {
    let s = filled().await;
    let table: [(&str, &[&str]); 9] = [
        ("", &["c0", "c1", "c2", "c3"]),
        ("?labelSelector=app%3Dweb", &["c0", "c1"]),
        ("?labelSelector=app%20in%20(web,db),!tier", &["c1", "c2"]),
        ("?fieldSelector=metadata.name%3Dc1", &["c1"]),
        ("?fieldSelector=metadata.name!%3Dc1", &["c0", "c2", "c3"]),
        ("?fieldSelector=metadata.name%3Dc1,metadata.name%3Dc2", &[]),
        ("?labelSelector=app%3Ddb&fieldSelector=metadata.name%3Dc1", &[]),
        ("?fieldSelector=metadata.namespace%3Dn", &["c0", "c1", "c2", "c3"]),
        ("?limit=0", &["c0", "c1", "c2", "c3"]),
    ];
    for (query, wanted) in table {
        assert_eq!(names(&get(&s, &format!("{CONFIG_MAPS}{query}")).await), wanted, "{query}");
    }
    let all = get(&s, "/api/v1/configmaps").await;
    assert_eq!(names(&all).len(), 5);
    assert_eq!((all.text("/kind"), all.at("/items/0/kind")), ("ConfigMapList", &Value::Null));
    assert_eq!(names(&get(&s, "/api/v1/configmaps?fieldSelector=metadata.name%3Dc9").await), ["c9"]);
    let bad = get(&s, &format!("{CONFIG_MAPS}?fieldSelector=data.i%3D1")).await;
    assert_eq!(
        bad.message(),
        "\"data.i\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
    assert_eq!(get(&s, &format!("{CONFIG_MAPS}?labelSelector=a%20b%3Dc")).await.code, 400);
}

#[tokio::test]
async fn items_are_the_objects() {
    let s = filled().await;
    let one = get(&s, &format!("{CONFIG_MAPS}/c0")).await;
    let list = get(&s, CONFIG_MAPS).await;
    let mut item = list.at("/items/0").clone();
    item["kind"] = "ConfigMap".into();
    item["apiVersion"] = "v1".into();
    assert_eq!(item, one.body);
}

#[tokio::test]
async fn pages_are_consistent() {
    let s = filled().await;
    let first = get(&s, &format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first.at("/metadata/remainingItemCount"), 2);
    // What changes in between is not seen.
    call(&s, "DELETE", &format!("{CONFIG_MAPS}/c3"), Value::Null).await;
    let next = get(&s, &format!("{CONFIG_MAPS}?limit=2&continue={}", first.text("/metadata/continue"))).await;
    assert_eq!(names(&next), ["c2", "c3"], "{}", next.body);
    assert_eq!(next.at("/metadata/resourceVersion"), first.at("/metadata/resourceVersion"));
    assert_eq!(next.at("/metadata/continue"), &Value::Null);
    let selected = get(&s, &format!("{CONFIG_MAPS}?limit=1&labelSelector=app%3Ddb")).await;
    assert_eq!(names(&selected), ["c2"]);
    let exact = get(
        &s,
        &format!(
            "{CONFIG_MAPS}?resourceVersion={}&resourceVersionMatch=Exact",
            first.text("/metadata/resourceVersion")
        ),
    )
    .await;
    assert_eq!(names(&exact).len(), 4);
    assert_eq!(get(&s, &format!("{CONFIG_MAPS}?resourceVersionMatch=Exact")).await.code, 422);
    assert_eq!(get(&s, &format!("{CONFIG_MAPS}?continue=garbage")).await.code, 400);
    assert_eq!(get(&s, &format!("{CONFIG_MAPS}?resourceVersion=abc")).await.code, 400);
}

#[tokio::test]
async fn tables_and_metadata() {
    let s = filled().await;
    let table =
        get_as(&s, CONFIG_MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await;
    assert_eq!(table.text("/kind"), "Table");
    assert_eq!(table.at("/columnDefinitions/0/name"), "Name");
    assert_eq!(table.at("/rows/0/cells/0"), "c0");
    assert_eq!(table.at("/rows/0/object/kind"), "PartialObjectMetadata");
    let one = get_as(
        &s,
        &format!("{CONFIG_MAPS}/c1?includeObject=Object"),
        "application/json;as=Table;v=v1;g=meta.k8s.io",
    )
    .await;
    assert_eq!(one.at("/rows/0/object/data/i"), "c1");
    let partial =
        get_as(&s, CONFIG_MAPS, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!(
        (partial.text("/kind"), partial.at("/items/0/data")),
        ("PartialObjectMetadataList", &Value::Null)
    );
}

#[tokio::test]
async fn long_lists_come_in_pieces() {
    let s = server();
    let filler = "x".repeat(1000);
    for i in 0..700 {
        let obj = json!({"metadata": {"name": format!("c{i:03}")}, "data": {"filler": filler}});
        assert_eq!(call(&s, "POST", CONFIG_MAPS, obj).await.code, 201);
    }
    let response = send(&s, request("GET", CONFIG_MAPS, "", axum::body::Body::empty())).await;
    let mut pieces = response.into_body().into_data_stream();
    let (mut all, mut count) = (Vec::new(), 0);
    while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
        all.extend_from_slice(&piece.expect("piece"));
        count += 1;
    }
    let list: Value = serde_json::from_slice(&all).expect("JSON");
    assert!(count > 2, "{count}");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(700));
    assert_eq!(list["items"][699]["metadata"]["name"], "c699");
    let table = get_as(&s, CONFIG_MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!(table.at("/rows").as_array().map(Vec::len), Some(700));
}

#[tokio::test]
async fn a_page_that_is_too_old_can_be_gone_on_from() {
    let s = filled().await;
    let first = get(&s, &format!("{CONFIG_MAPS}?limit=2")).await;
    call(&s, "DELETE", &format!("{CONFIG_MAPS}/c2"), Value::Null).await;
    let store = s.objects().store().clone();
    store.compact(store.revision()).await.expect("compact");
    let gone = get(&s, &format!("{CONFIG_MAPS}?limit=2&continue={}", first.text("/metadata/continue"))).await;
    assert_eq!((gone.code, gone.text("/reason")), (410, "Expired"));
    assert!(gone.message().starts_with("The provided continue parameter is too old"), "{}", gone.message());
    assert!(gone.message().contains("use the continue token in this response"), "{}", gone.message());
    let fresh = gone.text("/metadata/continue");
    assert!(!fresh.is_empty(), "{}", gone.body);
    let rest = get(&s, &format!("{CONFIG_MAPS}?limit=2&continue={fresh}")).await;
    assert_eq!(names(&rest), ["c3"], "{}", rest.body);
    assert_eq!(rest.text("/metadata/resourceVersion"), store.revision().to_string());
}

#[tokio::test]
async fn large_lists_are_compressed_for_who_asks() {
    use http_body_util::BodyExt;
    use std::io::Read;
    let s = server();
    for i in 0..200 {
        let obj = json!({"metadata": {"name": format!("c{i:03}")}, "data": {"filler": "x".repeat(2000)}});
        assert_eq!(call(&s, "POST", CONFIG_MAPS, obj).await.code, 201);
    }
    for (path, accept, encoded) in [
        (CONFIG_MAPS.to_owned(), "application/json", true),
        (CONFIG_MAPS.to_owned(), "application/json;as=Table;v=v1;g=meta.k8s.io", false),
        (format!("{CONFIG_MAPS}?limit=100"), "application/yaml", true),
        (format!("{CONFIG_MAPS}/c001"), "application/json", false),
    ] {
        let mut asked = request("GET", &path, "", axum::body::Body::empty());
        asked.headers_mut().insert("accept-encoding", "gzip".parse().expect("header"));
        asked.headers_mut().insert("accept", accept.parse().expect("header"));
        let answer = send(&s, asked).await;
        let is = answer.headers().get("content-encoding").is_some_and(|v| v == "gzip");
        assert_eq!(is, encoded, "{path} as {accept}");
        let bytes = answer.into_body().collect().await.expect("body").to_bytes();
        let mut text = String::new();
        if encoded {
            flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip");
        } else {
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        assert!(text.contains("c001"), "{path}");
    }
    // Whoever reads it himself gets lines, errors too.
    for (path, words) in [
        (format!("{CONFIG_MAPS}?pretty=true&limit=2"), "\n  \"items\": [\n    {\n      \"metadata\": {\n"),
        (format!("{CONFIG_MAPS}/none?pretty=true"), "\n  \"code\": 404,\n"),
    ] {
        let answer = send(&s, request("GET", &path, "", axum::body::Body::empty())).await;
        let bytes = answer.into_body().collect().await.expect("body").to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(words), "{path}: {text}");
    }
    let plain = send(&s, request("GET", CONFIG_MAPS, "", axum::body::Body::empty())).await;
    assert!(plain.headers().get("content-encoding").is_none());
}

#[tokio::test]
async fn options_that_make_no_sense_together_are_refused() {
    let s = filled().await;
    let revision = get(&s, CONFIG_MAPS).await.text("/metadata/resourceVersion").to_owned();
    let token = get(&s, &format!("{CONFIG_MAPS}?limit=1")).await.text("/metadata/continue").to_owned();
    for (query, code, words) in [
        (format!("resourceVersionMatch=Exact&resourceVersion={revision}&continue={token}"), 422, "forbidden when continue is provided"),
        (format!("resourceVersion={revision}&continue={token}"), 400, "specifying resource version is not allowed when using continue"),
        ("resourceVersionMatch=Sometimes&resourceVersion=1".into(), 422, "supported values: \"Exact\", \"NotOlderThan\""),
        ("resourceVersionMatch=Exact&resourceVersion=0".into(), 422, "is forbidden for resourceVersion \"0\""),
        ("watch=true&resourceVersionMatch=NotOlderThan".into(), 422, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
        ("watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=Exact&resourceVersion=1".into(), 422, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        (format!("watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&continue={token}"), 422, "forbidden when continue is provided"),
        ("watch=true&timeoutSeconds=x".into(), 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
    ] {
        let refused = get(&s, &format!("{CONFIG_MAPS}?{query}")).await;
        assert_eq!(refused.code, code, "{query}: {}", refused.body);
        assert!(refused.message().contains(words), "{query}: {}", refused.message());
    }
    // A revision that lies ahead is waited for, and not for ever.
    let ahead =
        get(&s, &format!("{CONFIG_MAPS}?resourceVersion=99999&resourceVersionMatch=NotOlderThan")).await;
    assert_eq!((ahead.code, ahead.text("/reason")), (504, "Timeout"));
    assert!(ahead.message().contains("Too large resource version: 99999"), "{}", ahead.message());
}
