//! Watches: from a revision, from now, with selectors, with bookmarks, in other forms.

use axum::body::Body;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::fixture::*;

/// Reads a watch that ends by its timeout.
async fn events(s: &coracle_apiserver::ApiServer, query: &str, accept: &str) -> Vec<Value> {
    let mut request = request(
        "GET",
        &format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=1&{query}"),
        "application/json",
        Body::empty(),
    );
    request.headers_mut().insert("accept", accept.parse().expect("header"));
    let response = send(s, request).await;
    assert_eq!(response.status(), 200);
    let answer = read(response).await;
    match answer.body {
        Value::String(text) => text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

fn short(events: &[Value]) -> Vec<String> {
    let name =
        |e: &Value| e.pointer("/object/metadata/name").and_then(Value::as_str).unwrap_or("-").to_owned();
    events.iter().map(|e| format!("{} {}", e["type"].as_str().unwrap_or(""), name(e))).collect()
}

const JSON: &str = "application/json";

async fn story() -> (coracle_apiserver::ApiServer, String) {
    let s = server();
    let put = async |method: &str, name: &str, app: &str| {
        let path = if method == "POST" { CONFIG_MAPS.to_owned() } else { format!("{CONFIG_MAPS}/{name}") };
        let obj = json!({"metadata": {"name": name, "labels": {"app": app}}});
        call(&s, method, &path, obj).await
    };
    put("POST", "a", "web").await;
    let start = put("POST", "b", "db").await.text("/metadata/resourceVersion").to_owned();
    put("PUT", "a", "gone").await;
    put("PUT", "b", "web").await;
    put("POST", "c", "web").await;
    call(&s, "DELETE", &format!("{CONFIG_MAPS}/b"), Value::Null).await;
    (s, start)
}

#[tokio::test]
async fn from_a_revision() {
    let (s, start) = story().await;
    let all = events(&s, &format!("resourceVersion={start}"), JSON).await;
    assert_eq!(short(&all), ["MODIFIED a", "MODIFIED b", "ADDED c", "DELETED b"]);
    let versions: Vec<u64> = all
        .iter()
        .filter_map(|e| e.pointer("/object/metadata/resourceVersion")?.as_str()?.parse().ok())
        .collect();
    assert!(versions.is_sorted() && versions.len() == 4, "{versions:?}");
    assert_eq!(all[0].pointer("/object/kind"), Some(&json!("ConfigMap")));
    let web = events(&s, &format!("resourceVersion={start}&labelSelector=app%3Dweb"), JSON).await;
    assert_eq!(short(&web), ["DELETED a", "ADDED b", "ADDED c", "DELETED b"]);
    assert_eq!(web[0].pointer("/object/metadata/labels/app"), Some(&json!("web")));
    let one = events(&s, &format!("resourceVersion={start}&fieldSelector=metadata.name%3Db"), JSON).await;
    assert_eq!(short(&one), ["MODIFIED b", "DELETED b"]);
    assert_eq!(events(&s, "resourceVersion=99999", JSON).await.len(), 0);
}

#[tokio::test]
async fn from_the_present_state() {
    let (s, _) = story().await;
    assert_eq!(short(&events(&s, "", JSON).await), ["ADDED a", "ADDED c"]);
    assert_eq!(short(&events(&s, "resourceVersion=0&labelSelector=app%3Dweb", JSON).await), ["ADDED c"]);
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let listed = events(&s, query, JSON).await;
    assert_eq!(short(&listed), ["ADDED a", "ADDED c", "BOOKMARK -"]);
    let end = listed.last().expect("bookmark");
    assert_eq!(end.pointer("/object/metadata/annotations/k8s.io~1initial-events-end"), Some(&json!("true")));
    let bad =
        get(&s, &format!("{CONFIG_MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true")).await;
    assert_eq!(bad.code, 422);
}

#[tokio::test]
async fn in_other_forms() {
    let (s, start) = story().await;
    let table =
        events(&s, &format!("resourceVersion={start}"), "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!(table[0].pointer("/object/rows/0/cells/0"), Some(&json!("a")));
    assert!(table[0].pointer("/object/columnDefinitions").is_some_and(Value::is_array));
    assert_eq!(table[1].pointer("/object/columnDefinitions"), Some(&Value::Null));
    let partial = events(
        &s,
        &format!("resourceVersion={start}"),
        "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
    )
    .await;
    assert_eq!(partial[0].pointer("/object/kind"), Some(&json!("PartialObjectMetadata")));
}

#[tokio::test]
async fn a_revision_that_is_gone_ends_in_an_error_event() {
    let (s, start) = story().await;
    let store = s.objects().store().clone();
    store.compact(store.revision()).await.expect("compact");
    let gone = events(&s, &format!("resourceVersion={start}"), JSON).await;
    assert_eq!(gone.len(), 1);
    assert_eq!(
        (gone[0]["type"].as_str(), gone[0]["object"]["code"].as_u64(), gone[0]["object"]["reason"].as_str()),
        (Some("ERROR"), Some(410), Some("Expired"))
    );
}

#[tokio::test]
async fn events_arrive_as_they_happen_and_shutdown_ends_them() {
    let (s, _) = story().await;
    let revision = s.objects().store().revision();
    let request =
        request("GET", &format!("{CONFIG_MAPS}?watch=true&resourceVersion={revision}"), JSON, Body::empty());
    let mut stream = send(&s, request).await.into_body().into_data_stream();
    call(&s, "POST", CONFIG_MAPS, json!({"metadata": {"name": "new"}})).await;
    let line = stream.next().await.expect("open").expect("line");
    assert!(line.starts_with(b"{\"type\":\"ADDED\""), "{line:?}");
    s.shutdown_token().cancel();
    assert!(stream.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_or_told_twice_under_load() {
    let s = server();
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion=0");
    let mut stream =
        send(&s, request("GET", &path, JSON, Body::empty())).await.into_body().into_data_stream();
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let s = s.clone();
            tokio::spawn(async move {
                for i in 0..50 {
                    let obj = json!({"metadata": {"name": format!("w{w}-{}", i % 5)}, "data": {"i": i.to_string()}});
                    if i < 5 {
                        assert_eq!(call(&s, "POST", CONFIG_MAPS, obj).await.code, 201);
                    } else {
                        let path = format!("{CONFIG_MAPS}/w{w}-{}", i % 5);
                        assert_eq!(call(&s, "PUT", &path, obj).await.code, 200);
                    }
                }
            })
        })
        .collect();
    let (mut seen, mut last) = (0, 0);
    while seen < 200 {
        let line =
            tokio::time::timeout(std::time::Duration::from_secs(20), stream.next()).await.expect("in time");
        let event: Value = serde_json::from_slice(&line.expect("open").expect("line")).expect("JSON");
        let version =
            event["object"]["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok());
        let version = version.expect("version");
        assert!(version > last, "{version} after {last}");
        (last, seen) = (version, seen + 1);
    }
    for writer in writers {
        writer.await.expect("writer");
    }
    assert_eq!(last, s.objects().store().revision());
}

#[tokio::test]
async fn one_object_by_its_name_in_the_path_or_in_a_selector() {
    let (s, start) = story().await;
    let read_all = async |path: String| {
        let answer = get(&s, &path).await;
        let lines = answer.body.as_str().map(str::to_owned).unwrap_or_else(|| answer.body.to_string());
        let events: Vec<Value> = lines.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        short(&events)
    };
    let query = format!("timeoutSeconds=1&resourceVersion={start}");
    let wanted = ["MODIFIED b", "DELETED b"];
    let (old, named, selected) = tokio::join!(
        read_all(format!("/api/v1/watch/namespaces/n/configmaps/b?{query}")),
        read_all(format!("{CONFIG_MAPS}/b?watch=true&{query}")),
        read_all(format!(
            "/api/v1/configmaps?watch=true&fieldSelector=metadata.name%3Db,metadata.namespace%3Dn&{query}"
        )),
    );
    assert_eq!(old, wanted);
    assert_eq!(named, wanted);
    assert_eq!(selected, wanted);
}

#[tokio::test]
async fn bookmarks_tell_how_far_a_watch_is() {
    let (s, start) = story().await;
    let path = |query: &str| {
        format!(
            "{CONFIG_MAPS}?watch=true&timeoutSeconds=3&labelSelector=app%3Dnone&resourceVersion={start}&{query}"
        )
    };
    let (with, without) = (path("allowWatchBookmarks=true"), path("allowWatchBookmarks=false"));
    let (with, without) = tokio::join!(get(&s, &with), get(&s, &without));
    assert_eq!(without.body, "", "nothing matches");
    // The last one comes before the end, at the newest revision although nothing matched.
    let revision = s.objects().store().revision().to_string();
    assert_eq!(with.body.get("type"), Some(&json!("BOOKMARK")), "{}", with.body);
    assert_eq!(with.text("/object/metadata/resourceVersion"), revision);
    assert_eq!(with.text("/object/kind"), "ConfigMap");
    assert_eq!(with.at("/object/metadata/annotations"), &Value::Null);
}

/// What a watch from a revision makes of the list at it: names and their resource versions.
fn after(mut state: Known, events: &[Value]) -> Known {
    for event in events {
        let text = |at: &str| event.pointer(at).and_then(Value::as_str).unwrap_or("").to_owned();
        let (name, version) = (text("/object/metadata/name"), text("/object/metadata/resourceVersion"));
        let was = match text("/type").as_str() {
            "DELETED" => state.remove(&name).is_some(),
            "ADDED" => state.insert(name, version).is_none(),
            "MODIFIED" => state.insert(name, version).is_some(),
            _ => false,
        };
        assert!(was, "{event} does not follow from what is known");
    }
    state
}

type Known = std::collections::BTreeMap<String, String>;

/// From every revision, with every selector: what the list was, changed by what the watch tells, is what the list is.
#[tokio::test]
async fn a_watch_tells_the_difference_of_two_lists() {
    let s = server();
    let mut seed = 0x5EED_u64;
    let mut random = |most: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % most
    };
    for _ in 0..120 {
        let name = format!("c{}", random(6));
        let obj = json!({"metadata": {"name": name, "labels": {"app": format!("a{}", random(3))}}});
        let path = format!("{CONFIG_MAPS}/{name}");
        match random(4) {
            0 => call(&s, "DELETE", &path, Value::Null).await,
            1 => call(&s, "PUT", &path, obj).await,
            _ => call(&s, "POST", CONFIG_MAPS, obj).await,
        };
    }
    let end = s.objects().store().revision();
    let selectors =
        ["", "labelSelector=app%3Da1", "labelSelector=app!%3Da1", "fieldSelector=metadata.name%3Dc3"];
    let starts: Vec<u64> = (2..=end).step_by(4).chain([end]).collect();
    let checks = selectors.iter().flat_map(|selector| starts.iter().map(move |start| (selector, start)));
    let checks: Vec<_> = checks
        .map(|(selector, start)| {
            let s = s.clone();
            async move {
                let list = async |query: String| -> Known {
                    let list = get(&s, &format!("{CONFIG_MAPS}?{selector}&{query}")).await;
                    assert_eq!(list.code, 200, "{}", list.body);
                    let items = list.at("/items").as_array().cloned().unwrap_or_default();
                    let text =
                        |o: &Value, at: &str| o.pointer(at).and_then(Value::as_str).unwrap_or("").to_owned();
                    items
                        .iter()
                        .map(|o| (text(o, "/metadata/name"), text(o, "/metadata/resourceVersion")))
                        .collect()
                };
                let before = list(format!("resourceVersion={start}&resourceVersionMatch=Exact")).await;
                let told = events(&s, &format!("{selector}&resourceVersion={start}"), JSON).await;
                assert_eq!(after(before, &told), list(String::new()).await, "{selector} from {start}");
            }
        })
        .collect();
    assert!(checks.len() > 40, "{}", checks.len());
    futures::future::join_all(checks).await;
}
