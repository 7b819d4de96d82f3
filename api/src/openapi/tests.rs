use super::*;

fn served() -> Vec<OpenapiResource> {
    let all = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
    let one = |group: &str, kind: &str, plural: &str, sub: Option<&str>, verbs: &[&str]| OpenapiResource {
        gvk: Gvk::new(if sub == Some("scale") { "autoscaling" } else { group }, "v1", kind),
        group: group.into(),
        version: "v1".into(),
        plural: plural.into(),
        subresource: sub.map(String::from),
        namespaced: plural != "namespaces",
        verbs: verbs.iter().map(|v| v.to_string()).collect(),
        custom: None,
    };
    vec![
        one("", "Pod", "pods", None, &all),
        one("", "Pod", "pods", Some("status"), &["get", "update", "patch"]),
        one("", "Pod", "pods", Some("log"), &["get"]),
        one("", "Namespace", "namespaces", None, &all[..7]),
        one("apps", "Deployment", "deployments", None, &all),
        one("apps", "Scale", "deployments", Some("scale"), &["get", "update", "patch"]),
    ]
}

fn every_ref_resolves(document: &Value, place: &str) {
    let text = document.to_string();
    for part in text.split("\"$ref\":\"").skip(1) {
        let name = part.split('"').next().unwrap().trim_start_matches("#/").replace('/', "\u{0}");
        let at = name.split('\u{0}').try_fold(document, |v, k| v.get(k));
        assert!(at.is_some(), "{name} in {place}");
    }
}

#[test]
fn v3_serves_what_kubectl_reads() {
    let document: Value = serde_json::from_slice(&v3("", "v1", &served())).unwrap();
    every_ref_resolves(&document, "v3");
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    assert!(
        patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"] == "fieldValidation" && p["in"] == "query")
    );
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "", "version": "v1", "kind": "Pod"})
    );
    let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
    assert!(pod["description"].as_str().unwrap().starts_with("Pod is a collection of containers"));
    let containers =
        &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(document["paths"]["/api/v1/namespaces/{namespace}"], Value::Null);
    assert!(document["paths"]["/api/v1/namespaces/{name}"]["delete"].is_object());
    assert!(document["paths"].get("/apis/apps/v1/deployments").is_none());
    let apps: Value = serde_json::from_slice(&v3("apps", "v1", &served())).unwrap();
    every_ref_resolves(&apps, "apps");
    assert!(
        apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"].is_object()
    );
}

#[test]
fn the_index_names_documents_by_content() {
    let index: Value =
        serde_json::from_slice(&v3_index([("api/v1", "1F"), ("apis/apps/v1", "2")].into_iter())).unwrap();
    let address = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(address.starts_with("/openapi/v3/apis/apps/v1?hash="));
    assert!(index["paths"].get("api/v1").is_some());
}

#[test]
fn v2_as_json_and_protobuf() {
    let document: Value = serde_json::from_slice(&v2_json(&served())).unwrap();
    every_ref_resolves(&document, "v2");
    let ids: Vec<&str> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().values().filter_map(|o| o.get("operationId")?.as_str()))
        .collect();
    assert!(ids.len() > 15);
    let unique: BTreeSet<&&str> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    let bytes = v2_protobuf(&served());
    // Field 1, length 3: swagger "2.0".
    assert_eq!(&bytes[..5], b"\x0a\x032.0");
    assert!(bytes.len() > 100_000);
}
