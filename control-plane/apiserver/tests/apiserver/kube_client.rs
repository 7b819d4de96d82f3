//! kube-rs on the in-process transport.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::fixture::*;

#[tokio::test]
async fn the_usual_calls() {
    let s = server();
    let api: Api<ConfigMap> = Api::namespaced(Client::new(s.service_as(admin()), "default"), "n");
    let obj: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).expect("object");
    let made = api.create(&PostParams::default(), &obj).await.expect("create");
    assert_eq!(made.namespace().as_deref(), Some("n"));
    assert!(
        matches!(api.create(&PostParams::default(), &obj).await, Err(kube::Error::Api(e)) if e.code == 409)
    );
    let merged = api
        .patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"x": "y"}})))
        .await
        .expect("patch");
    assert_eq!(merged.data.map(|d| d.len()), Some(2));
    assert_eq!(api.list(&ListParams::default().limit(10)).await.expect("list").items.len(), 1);
    api.delete("a", &DeleteParams::default()).await.expect("delete");
    assert!(api.get_opt("a").await.expect("get").is_none());
}

#[tokio::test]
async fn watchers_of_both_kinds() {
    let s = server();
    let api: Api<ConfigMap> = Api::namespaced(Client::new(s.service_as(admin()), "default"), "n");
    let make = |name: &str| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name}})).expect("object")
    };
    api.create(&PostParams::default(), &make("a")).await.expect("create");
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut stream = watcher(api.clone(), config).boxed();
        let mut seen = Vec::new();
        loop {
            match stream.try_next().await.expect("watch").expect("open") {
                watcher::Event::InitApply(o) => seen.push(o.name_any()),
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(seen, ["a"]);
        api.create(&PostParams::default(), &make("b")).await.expect("create");
        let next = stream.try_next().await.expect("watch").expect("open");
        assert!(matches!(next, watcher::Event::Apply(o) if o.name_any() == "b"));
        api.delete("b", &DeleteParams::default()).await.expect("delete");
        let next = stream.try_next().await.expect("watch").expect("open");
        assert!(matches!(next, watcher::Event::Delete(o) if o.name_any() == "b"));
    }
}
